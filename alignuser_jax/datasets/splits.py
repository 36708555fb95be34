"""Split a log by time, and check that no part holds anything later than the next part.

A model that is trained on interactions later than those it is tested on is told the future;
`check_leaks` refuses such a split.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, get_args

import numpy as np

from alignuser_jax.datasets.dataset import Dataset
from alignuser_jax.datasets.log import SPLITS, Log

SplitKind = Literal["per_user", "global"]
SPLIT_KINDS = get_args(SplitKind)
"""Each user's log cut for itself, or all users' logs at the same two moments."""
SHARES = (0.8, 0.1, 0.1)
"""Train, validation, test (the paper, App. A)."""
PROFILE_SHARE = 0.75
"""Share of a user's train part that a training prompt shows; the rest is trained on."""


def _check_shares(shares: Sequence[float]) -> None:
    if len(shares) != 3 or min(shares) < 0 or not abs(sum(shares) - 1) <= 1e-9:
        raise ValueError(f"split shares are {tuple(shares)}: expected three that add up to 1")


def _rank_in_user(log: Log) -> tuple[np.ndarray, np.ndarray]:
    """Return each interaction's rank among its user's, from 0, and how many the user has."""
    start = np.searchsorted(log.user, log.user, side="left")
    end = np.searchsorted(log.user, log.user, side="right")
    return np.arange(len(log)) - start, end - start


def chronological_split(log: Log, shares: Sequence[float] = SHARES) -> Log:
    """Split each user's log by time: by default 80 % train, 10 % validation, 10 % test.

    Counts are rounded down for train and for train + validation, so that a short log still has
    a test part.
    """
    _check_shares(shares)
    rank, count = _rank_in_user(log)
    first = np.floor(count * shares[0] + 1e-9)
    second = np.floor(count * (shares[0] + shares[1]) + 1e-9)
    split = (rank >= first).astype(np.int8) + (rank >= second).astype(np.int8)
    return replace(log, split=split)


def global_time_split(log: Log, shares: Sequence[float] = SHARES) -> Log:
    """Split all users' logs at the same two moments.

    Interactions at a moment belong to the later part, so that equal timestamps are never in
    two parts.
    """
    _check_shares(shares)
    times = np.sort(log.timestamp)
    if not len(times):
        return log
    ranks = [round(len(times) * s) for s in (shares[0], shares[0] + shares[1])]
    first, second = (times[min(rank, len(times) - 1)] for rank in ranks)
    split = (log.timestamp >= first).astype(np.int8) + (log.timestamp >= second).astype(np.int8)
    return replace(log, split=split)


def split_log(log: Log, kind: SplitKind, shares: Sequence[float] = SHARES) -> Log:
    """Return `log` split per user or at two moments for all users."""
    return (chronological_split if kind == "per_user" else global_time_split)(log, shares)


def profile_and_targets(log: Log, profile_share: float = PROFILE_SHARE) -> tuple[Log, Log]:
    """Cut each user's train part by time into a profile (the first share) and targets.

    What a training prompt shows comes from the profile, what it is trained on from the targets.
    """
    if not 0 < profile_share < 1:
        raise ValueError(f"profile_share is {profile_share}: expected a number between 0 and 1")
    train = log.of_split("train")
    rank, count = _rank_in_user(train)
    profile = rank < np.floor(count * profile_share + 1e-9)
    return train.where(profile), train.where(~profile)


def check_leaks(dataset: Dataset) -> list[str]:
    """Return a sentence for each fault of a dataset's split; an empty list means none.

    The faults are: an interaction of an earlier part that is later than one of a later part
    (per user, or over all users for a global split), the same user and item twice, and a log
    that is not sorted.
    """
    log = dataset.log
    problems: list[str] = []
    if not len(log):
        return ["the log is empty"]
    same_user = log.user[1:] == log.user[:-1]
    if (np.diff(log.user) < 0).any() or (np.diff(log.timestamp)[same_user] < 0).any():
        problems.append("the log is not sorted by user and time")
    backwards = same_user & (np.diff(log.split) < 0)
    if backwards.any():
        row = int(np.flatnonzero(backwards)[0]) + 1
        problems.append(
            f"{int(backwards.sum())} interactions of an earlier split come after a later one, "
            f"e.g. user {dataset.user_ids[log.user[row]]!r}, item "
            f"{dataset.item_ids[log.item[row]]!r} in {SPLITS[log.split[row]]}"
        )
    pairs = np.sort(log.user.astype(np.int64) * log.n_items + log.item)
    if (repeated := np.unique(pairs[1:][pairs[1:] == pairs[:-1]])).size:
        user, item = divmod(int(repeated[0]), log.n_items)
        row = int(np.flatnonzero((log.user == user) & (log.item == item))[0])
        problems.append(
            f"{len(repeated)} user-item pairs occur more than once, e.g. user "
            f"{dataset.user_ids[log.user[row]]!r}, item {dataset.item_ids[log.item[row]]!r}"
        )
    if dataset.manifest.get("split", {}).get("kind") == "global":
        for earlier, later in ((0, 1), (0, 2), (1, 2)):
            before, after = (
                log.timestamp[log.split == earlier],
                log.timestamp[log.split == later],
            )
            if len(before) and len(after) and before.max() >= after.min():
                problems.append(f"{SPLITS[earlier]} reaches past the start of {SPLITS[later]}")
    return problems
