"""Describe a dataset in numbers: counts per split, and the distributions that matter.

`report.log_pictures` draws them. What a log does not have (ratings, timestamps, genres,
sessions of steps) is left out of its description.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow.compute as pc

from alignuser_jax.datasets.dataset import Dataset
from alignuser_jax.datasets.log import SPLITS, Log

SESSION_GAP_SECONDS = 30 * 60
"""A user who does nothing for longer than this begins a new session."""
_QUANTILES = {"min": 0.0, "5 %": 0.05, "median": 0.5, "95 %": 0.95, "max": 1.0}
TRAIT_LEVELS = {
    "pickiness": ("not picky", "moderately", "extremely"),
    "engagement": ("low", "middle", "high"),
    "conformity": ("follower", "balanced", "maverick"),
    "variety": ("low", "middle", "high"),
}
"""Trait -> names of its levels 1, 2 and 3 (docs/method.md section 4.3)."""


def describe(
    dataset: Dataset, levels: Mapping[str, np.ndarray] | None = None
) -> dict[str, Any]:
    """Return a description of a dataset that JSON can hold.

    It has these keys, each only if the log has such data:

    - name, synthetic, hash, items_in_catalogue.
    - parts: a row of counts for the whole log and for each split.
    - ratings: the number of interactions by rating.
    - per_user, per_item: quantiles of the number of interactions; per_item also has the Gini
      coefficient and the share of the most popular tenth of the rated items.
    - time: first and last day, quantiles of the seconds between a user's interactions, the
      number of sessions (`SESSION_GAP_SECONDS`) and quantiles of their lengths.
    - genres: interactions by genre, most frequent first.
    - session_log: see `session_log`.
    - traits: users by level of each trait.

    Args:
        dataset: The dataset.
        levels: Trait -> level of each user, int[users], 0 for unknown
            (`personas.trait_levels`).
    """
    log = dataset.log
    described: dict[str, Any] = {
        "name": dataset.name,
        "synthetic": dataset.synthetic,
        "hash": dataset.hash,
        "parts": [_part("all", log), *(_part(name, log.of_split(name)) for name in SPLITS)],
        "items_in_catalogue": log.n_items,
    }
    if has_ratings(log):
        values, counts = np.unique(log.rating[np.isfinite(log.rating)], return_counts=True)
        described["ratings"] = {
            f"{value:g}": int(count) for value, count in zip(values, counts, strict=True)
        }
    if len(log):
        described["per_user"] = _quantiles(_counts(log.user))
        described["per_item"] = _popularity(log)
    if has_times(log):
        described["time"] = _times(log)
    if genres := genre_counts(dataset):
        described["genres"] = genres
    if "sessions" in dataset.extra_tables:
        described["session_log"] = session_log(dataset)
    if levels:
        described["traits"] = {
            trait: dict(
                zip(
                    (*TRAIT_LEVELS[trait], "unknown"),
                    [int((level == n).sum()) for n in (1, 2, 3, 0)],
                    strict=True,
                )
            )
            for trait, level in levels.items()
        }
    return described


def _popularity(log: Log) -> dict[str, float]:
    counts = np.sort(_counts(log.item))[::-1]
    top = counts[: max(len(counts) // 10, 1)]
    return _quantiles(counts) | {
        "gini": gini(counts),
        "share of the top tenth": float(top.sum() / counts.sum()),
    }


def _times(log: Log) -> dict[str, Any]:
    lengths = session_lengths(log)
    return {
        "first_day": _day(log.timestamp.min()),
        "last_day": _day(log.timestamp.max()),
        "gap_seconds": _quantiles(gaps(log)),
        "sessions": len(lengths),
        "interactions_per_session": _quantiles(lengths),
    }


def session_log(dataset: Dataset) -> dict[str, Any]:
    """Return a description of a log of sessions (`datasets.sessions`).

    It has these keys:

    - parts: a row of counts for the whole log and for each split.
    - lengths: sessions by their number of steps.
    - pages, actions, clicks: steps by kind of page, kind of action and type of click, most
      frequent first.
    - reasons: the share of steps with the person's reason.
    - shown: the share of targets that are on their page.
    """
    sessions = dataset.extra_tables["sessions"].to_pylist()
    steps = dataset.extra_tables["steps"]

    def part(name: str) -> dict[str, Any]:
        own = [row for row in sessions if name in ("all", row["split"])]
        return {
            "part": name,
            "sessions": len(own),
            "users": len({row["user_id"] for row in own}),
            "steps": sum(row["steps"] for row in own),
            "with a purchase": sum(row["outcome"] == "purchase" for row in own),
        }

    def counted(column: str) -> dict[str, int]:
        return _counted(value for value in steps[column].to_pylist() if value)

    lengths = Counter(row["steps"] for row in sessions)
    targeted = pc.not_equal(steps["target"], "").to_numpy()
    return {
        "parts": [part(name) for name in ("all", *SPLITS)],
        "lengths": {str(steps): lengths[steps] for steps in sorted(lengths)},
        "pages": counted("page_kind"),
        "actions": counted("action_kind"),
        "clicks": counted("click_type"),
        "reasons": float(pc.not_equal(steps["rationale"], "").to_numpy().mean()),
        "shown": float(steps["target_on_page"].to_numpy()[targeted].mean()),
    }


def _counted(values: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(values).items(), key=_by_count))


def has_ratings(log: Log) -> bool:
    """Whether ratings differ: a log of clicks has none, or the same everywhere."""
    ratings = log.rating[np.isfinite(log.rating)]
    return len(ratings) > 0 and bool((ratings != ratings[0]).any())


def has_times(log: Log) -> bool:
    """Whether timestamps differ."""
    return len(log) > 0 and bool((log.timestamp != log.timestamp[0]).any())


def gaps(log: Log) -> np.ndarray:
    """Return the seconds, int64, between each interaction of a user and the one before."""
    return np.diff(log.timestamp)[log.user[1:] == log.user[:-1]]


def session_lengths(log: Log) -> np.ndarray:
    """Return int64[sessions]: the interactions of each session, in the order of the log."""
    if not len(log):
        return np.zeros(0, np.int64)
    new = (np.diff(log.timestamp) > SESSION_GAP_SECONDS) | (np.diff(log.user) != 0)
    starts = np.concatenate([[0], np.flatnonzero(new) + 1, [len(log)]])
    return np.diff(starts)


def gini(counts: np.ndarray) -> float:
    """Return the Gini coefficient of counts that are sorted from high to low.

    It is 0 if all items have the same count, and comes close to 1 if one item has everything.
    With ranks i from 1 in ascending order it is (2 Σ i·c / Σ c - n - 1) / n.
    """
    n, rank = len(counts), np.arange(len(counts), 0, -1)
    return float((2 * (rank * counts.astype(float)).sum() / counts.sum() - n - 1) / n)


def genre_counts(dataset: Dataset) -> dict[str, int]:
    """Count interactions by genre, most frequent first; an item counts for all its genres."""
    column = dataset.item_table["genres"].combine_chunks()
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy()
    encoded = column.flatten().dictionary_encode()
    if not len(encoded):
        return {}
    of_item = np.bincount(dataset.log.item, minlength=len(lengths))
    counts = np.bincount(encoded.indices.to_numpy(), np.repeat(of_item, lengths))
    names = encoded.dictionary.to_pylist()
    ordered = sorted(zip(names, counts.astype(int).tolist(), strict=True), key=_by_count)
    return {name: count for name, count in ordered if count}


def _by_count(pair: tuple[str, int]) -> tuple[int, str]:
    return -pair[1], pair[0]


def _part(name: str, log: Log) -> dict[str, Any]:
    users, items = len(np.unique(log.user)), len(np.unique(log.item))
    part: dict[str, Any] = {
        "part": name,
        "interactions": len(log),
        "users": users,
        "rated items": items,
        "density": len(log) / (users * items) if len(log) else None,
        "mean rating": None,
    }
    if has_ratings(log):
        part["mean rating"] = float(np.nanmean(log.rating.astype(np.float64)))
    return part


def _counts(codes: np.ndarray) -> np.ndarray:
    counts = np.bincount(codes)
    return counts[counts > 0]


def _quantiles(values: np.ndarray) -> dict[str, float]:
    if not len(values):
        return {}
    quantiles = {name: float(np.quantile(values, q)) for name, q in _QUANTILES.items()}
    return quantiles | {"mean": float(values.mean())}


def _day(seconds: int) -> str:
    return datetime.fromtimestamp(int(seconds), UTC).date().isoformat()
