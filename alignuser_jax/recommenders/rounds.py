"""Between two rounds of sessions: what was simulated joins the log, and recommenders are fitted
again, one snapshot per arm and round.

Within a round nothing is fitted, so the order of its sessions changes nothing; a run that is
killed and resumed finds the snapshots that it had made.
"""

from __future__ import annotations

import copy
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np

from alignuser_jax.datasets import Dataset, Log
from alignuser_jax.durable.whole import write_whole
from alignuser_jax.recommenders.base import digest
from alignuser_jax.recommenders.loading import load_saved
from alignuser_jax.records import Event, Interaction, Recommender


def check_fittable(arms: Mapping[str, Recommender]) -> None:
    """Raises `ValueError` naming the arms whose recommenders cannot be fitted here."""
    unfit = sorted(arm for arm, recommender in arms.items() if not _fits(recommender))
    if unfit:
        raise ValueError(
            f"arm {', '.join(unfit)} cannot be fitted again: retraining between rounds needs a "
            "recommender with fit(dataset, log), which returns the fitted one; a server, a "
            "file or a function has none. Use another refresh, or give it that method"
        )


def _fits(recommender: object) -> bool:
    inner = getattr(recommender, "inner", None)
    return hasattr(recommender, "fit") and (inner is None or _fits(inner))


def ratings_of(events: Iterable[Event]) -> dict[str, dict[str, tuple[Interaction, ...]]]:
    """arm -> user -> what was rated, in the order of sessions and steps."""
    found: dict[str, dict[str, list[Interaction]]] = defaultdict(lambda: defaultdict(list))
    for event in sorted(events, key=lambda e: (e.arm, e.user_id, e.session, e.sequence)):
        if event.kind == "rate":
            rated = Interaction(event.item_id, event.value)
            found[event.arm][event.user_id].append(rated)
    return {
        arm: {user: tuple(rated) for user, rated in users.items()}
        for arm, users in found.items()
    }


def with_ratings(
    dataset: Dataset, log: Log, ratings: Mapping[str, Sequence[Interaction]]
) -> Log:
    """`log` (a part of `dataset`'s) and after it, as training interactions, `ratings` by user.

    They have no time of their own: the n-th of a user happens n seconds after the last
    interaction of the whole log.
    """
    users = {user: code for code, user in enumerate(dataset.user_ids)}
    items = {item: code for code, item in enumerate(dataset.item_ids)}
    after = int(log.timestamp.max()) if len(log) else 0
    rows = [
        (users[user], items[rated.item_id], rated.rating, after + n)
        for user in sorted(ratings)
        for n, rated in enumerate(ratings[user], 1)
    ]
    if not rows:
        return log
    user, item, rating, timestamp = zip(*rows, strict=True)
    columns = {
        "user": np.concatenate([log.user, np.array(user, log.user.dtype)]),
        "item": np.concatenate([log.item, np.array(item, log.item.dtype)]),
        "rating": np.concatenate([log.rating, np.array(rating, log.rating.dtype)]),
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
    """The arm's recommender of round `number` (the first fitted here is 1), fitted on `log`.

    It is kept in `folder/ARM/round-N` where it can be saved, and its version and the hash of
    its log in `round-N.json`. Where these are there already the run is being resumed: the
    snapshot is loaded, or fitted again. Raises `RuntimeError` where that gives another one.
    """
    place = folder / quote(arm, safe="@") / f"round-{number}"
    record = place.with_name(place.name + ".json")
    trained_on = digest(
        {"log": dataset.hash}, log.user, log.item, log.rating, log.timestamp, log.split
    )
    before = json.loads(record.read_text()) if record.is_file() else None
    if before and before["log_hash"] != trained_on:
        raise RuntimeError(
            f"{record} was fitted on another log ({before['log_hash']}, now {trained_on}): the "
            "rounds before it are not those of this run; use another output folder"
        )
    if before and before["saved"]:
        made = load_saved(place)
    else:
        made = copy.copy(recommender).fit(dataset, log)
    version = str(getattr(made, "version", ""))
    if before and before["version"] != version:
        raise RuntimeError(
            f"the recommender of arm {arm!r} was version {before['version']!r} in round "
            f"{number} and is {version!r} now: its fit is not deterministic or its code has "
            "changed; give it save(dir) and a seed, or use another output folder"
        )
    if before is None:
        saved = hasattr(made, "save")
        place.parent.mkdir(parents=True, exist_ok=True)
        if saved:
            made.save(place)
            saved = _loads(place)
        about = {
            "arm": arm,
            "round": number,
            "name": str(getattr(made, "name", "")),
            "version": version,
            "saved": saved,
            "log_hash": trained_on,
            "interactions": len(log),
        }
        write_whole(record, json.dumps(about, indent=1) + "\n")
    return made


def _loads(place: Path) -> bool:
    """Whether what was saved is one of ours; another's own save format is left to its fit."""
    try:
        load_saved(place)
    except (ValueError, OSError, KeyError):
        return False
    return True
