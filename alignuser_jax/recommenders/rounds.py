"""Between two rounds of sessions: simulated ratings join the log and recommenders are refitted.

Each arm has one snapshot per round. Within a round nothing is fitted, so the order of its
sessions changes nothing, and a run that is killed and resumed loads the snapshots that it made.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np

from alignuser_jax.datasets import Dataset, Log
from alignuser_jax.durable.whole import write_whole
from alignuser_jax.recommenders.base import Fittable, Saveable, digest, refit, version_of
from alignuser_jax.recommenders.loading import load_saved
from alignuser_jax.records import Event, Interaction, Recommender


def check_fittable(arms: Mapping[str, Recommender]) -> None:
    """Raise `ValueError` if an arm's recommender cannot be fitted here, naming the arms."""
    unfit = sorted(arm for arm, recommender in arms.items() if not _is_fittable(recommender))
    if unfit:
        raise ValueError(
            f"arm {', '.join(unfit)} cannot be fitted again: retraining between rounds needs a "
            "recommender with fit(dataset, log), which returns the fitted one; a server, a "
            "file or a function has none. Use another refresh, or give it that method"
        )


def _is_fittable(recommender: Recommender) -> bool:
    inner = getattr(recommender, "inner", None)
    return isinstance(recommender, Fittable) and (inner is None or _is_fittable(inner))


def ratings_of(events: Iterable[Event]) -> dict[str, dict[str, tuple[Interaction, ...]]]:
    """Return arm to user to what was rated, in the order of sessions and steps."""
    ratings: dict[str, dict[str, list[Interaction]]] = defaultdict(lambda: defaultdict(list))
    for event in sorted(events, key=lambda e: (e.arm, e.user_id, e.session, e.sequence)):
        if event.kind == "rate":
            rating = Interaction(event.item_id, event.value)
            ratings[event.arm][event.user_id].append(rating)
    return {
        arm: {user: tuple(rows) for user, rows in users.items()}
        for arm, users in ratings.items()
    }


def with_ratings(
    dataset: Dataset, log: Log, ratings: Mapping[str, Sequence[Interaction]]
) -> Log:
    """Return `log` with simulated ratings added as training interactions.

    Simulated ratings have no time of their own: the n-th of a user is placed n seconds after
    the last interaction of the whole log.

    Args:
        dataset: names the codes of users and items.
        log: a part of the dataset's log, sorted by user.
        ratings: user id to what the user rated, in order.
    """
    users = {user: code for code, user in enumerate(dataset.user_ids)}
    items = {item: code for code, item in enumerate(dataset.item_ids)}
    after = int(log.timestamp.max()) if len(log) else 0
    rows = [
        (users[user], items[rating.item_id], rating.rating, after + n)
        for user in sorted(ratings)
        for n, rating in enumerate(ratings[user], 1)
    ]
    if not rows:
        return log
    user, item, stars, timestamp = zip(*rows, strict=True)
    columns = {
        "user": np.concatenate([log.user, np.array(user, log.user.dtype)]),
        "item": np.concatenate([log.item, np.array(item, log.item.dtype)]),
        "rating": np.concatenate([log.rating, np.array(stars, log.rating.dtype)]),
        "timestamp": np.concatenate([log.timestamp, np.array(timestamp, np.int64)]),
        "split": np.concatenate([log.split, np.zeros(len(rows), log.split.dtype)]),
    }
    order = np.lexsort((columns["timestamp"], columns["user"]))
    return Log(
        **{name: column[order] for name, column in columns.items()},
        n_users=log.n_users,
        n_items=log.n_items,
    )


def snapshot(
    recommender: Recommender, dataset: Dataset, log: Log, folder: Path, arm: str, number: int
) -> Recommender:
    """Return an arm's recommender fitted on `log`, and keep it for a run that is resumed.

    It is saved in `folder/ARM/round-N` if it can be, and its version and the hash of its log in
    `round-N.json` beside it. When these exist the run is being resumed: the snapshot is loaded,
    or fitted again if it could not be saved.

    Args:
        recommender: the arm's recommender; it is copied before it is fitted.
        dataset: names the codes of users and items.
        log: what to fit on.
        folder: where snapshots are kept.
        arm: the arm's name.
        number: of the round; the first one that is fitted here is 1.

    Raises:
        RuntimeError: if a resumed run has another log, or ends up with another version.
    """
    place = folder / quote(arm, safe="@") / f"round-{number}"
    record = place.with_name(place.name + ".json")
    log_hash = digest(
        {"log": dataset.hash}, log.user, log.item, log.rating, log.timestamp, log.split
    )
    before = json.loads(record.read_text()) if record.is_file() else None
    if before and before["log_hash"] != log_hash:
        raise RuntimeError(
            f"{record} was fitted on another log ({before['log_hash']}, now {log_hash}): the "
            "rounds before it are not those of this run; use another output folder"
        )
    if before and before["saved"]:
        fitted = load_saved(place)
    else:
        fitted = refit(recommender, dataset, log)
    version = version_of(fitted)
    if before and before["version"] != version:
        raise RuntimeError(
            f"the recommender of arm {arm!r} was version {before['version']!r} in round "
            f"{number} and is {version!r} now: its fit is not deterministic or its code has "
            "changed; give it save(dir) and a seed, or use another output folder"
        )
    if before is None:
        place.parent.mkdir(parents=True, exist_ok=True)
        about = {
            "arm": arm,
            "round": number,
            "name": str(getattr(fitted, "name", "")),
            "version": version,
            "saved": _save(fitted, place),
            "log_hash": log_hash,
            "interactions": len(log),
        }
        write_whole(record, json.dumps(about, indent=1) + "\n")
    return fitted


def _save(recommender: Recommender, place: Path) -> bool:
    """Save a recommender and return whether it can be loaded again.

    One with a save format of its own is not loaded here: it is fitted again.
    """
    if not isinstance(recommender, Saveable):
        return False
    recommender.save(place)
    try:
        load_saved(place)
    except (ValueError, OSError, KeyError):
        return False
    return True
