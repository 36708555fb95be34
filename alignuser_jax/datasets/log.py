"""Interactions as NumPy columns, sorted by user, then time; ties stay in file order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

SPLITS = ("train", "validation", "test")
"""The parts of a split; `Log.split` indexes them."""


@dataclass(frozen=True, eq=False)
class Log:
    """The interactions of a dataset or of a part of it: one entry of each column for each.

    Attributes:
        user: int32[n], codes of users: indices into `Dataset.user_ids`.
        item: int32[n], codes of items: indices into `Dataset.item_ids`.
        rating: float32[n], from 0.5 to 5.
        timestamp: int64[n], Unix seconds.
        split: int8[n], indices into `SPLITS`.
        n_users: Users of the dataset, whether or not they are in this part.
        n_items: Items of the dataset, whether or not they are in this part.

    Example:
        >>> zeros = np.zeros(2, np.int32)
        >>> log = Log(zeros, np.array([0, 1]), zeros + 4.0, zeros, np.array([0, 2]), 1, 2)
        >>> len(log.of_split("train"))
        1
    """

    user: np.ndarray
    item: np.ndarray
    rating: np.ndarray
    timestamp: np.ndarray
    split: np.ndarray
    n_users: int
    n_items: int

    def __len__(self) -> int:
        return len(self.user)

    def where(self, mask: np.ndarray) -> Log:
        """Return the interactions at a boolean mask, or at indices in their order."""
        columns = [f.name for f in fields(self) if not f.name.startswith("n_")]
        return replace(self, **{name: getattr(self, name)[mask] for name in columns})

    def of_split(self, *splits: str) -> Log:
        """Return the interactions of one or more of `SPLITS`.

        Raises:
            ValueError: If a name is not one of `SPLITS`, or none is named.
        """
        unknown = sorted(set(splits) - set(SPLITS))
        if unknown or not splits:
            raise ValueError(f"unknown splits {unknown or 'none'}: expected some of {SPLITS}")
        return self.where(np.isin(self.split, [SPLITS.index(name) for name in splits]))


def item_statistics(log: Log) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean rating float32[n_items] and the number of ratings int32[n_items].

    The mean is NaN for an item without ratings.
    """
    count = np.bincount(log.item, minlength=log.n_items)
    total = np.bincount(log.item, log.rating, minlength=log.n_items)
    with np.errstate(invalid="ignore"):
        return (total / count).astype(np.float32), count.astype(np.int32)


def mean_ratings(log: Log, item_ids: Sequence[str]) -> dict[str, float]:
    """Return the mean rating of every item that `log` rates, by item id.

    What a page or a prompt says of an item's rating comes from here, so that worlds and views
    show the same number. Items without a rating are left out.

    Args:
        log: The interactions that may be known.
        item_ids: The id of each item code, `Dataset.item_ids`.
    """
    means, counts = item_statistics(log)
    return {item_ids[code]: float(means[code]) for code in np.flatnonzero(counts).tolist()}
