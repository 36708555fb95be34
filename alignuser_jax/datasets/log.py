"""`Log`: interactions as NumPy columns, sorted by user, then time, ties in file order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, eq=False)
class Log:
    """Columns of equal length n. `user` and `item` are codes into `Dataset.user_ids` and
    `Dataset.item_ids`; `rating` is 0.5 to 5; `timestamp` in Unix seconds; `split` indexes
    `SPLITS`. `n_users` and `n_items` are the sizes of the code spaces, whatever is in the log.
    """

    user: np.ndarray  # int32[n]
    item: np.ndarray  # int32[n]
    rating: np.ndarray  # float32[n]
    timestamp: np.ndarray  # int64[n]
    split: np.ndarray  # int8[n]
    n_users: int
    n_items: int

    def __len__(self) -> int:
        return len(self.user)

    def where(self, mask: np.ndarray) -> Log:
        """The interactions at a boolean mask or at indices, in the order given."""
        columns = [f.name for f in fields(self) if not f.name.startswith("n_")]
        return replace(self, **{name: getattr(self, name)[mask] for name in columns})

    def of_split(self, *splits: str) -> Log:
        unknown = sorted(set(splits) - set(SPLITS))
        if unknown or not splits:
            raise ValueError(f"unknown splits {unknown or 'none'}: expected some of {SPLITS}")
        return self.where(np.isin(self.split, [SPLITS.index(name) for name in splits]))


def item_statistics(log: Log) -> tuple[np.ndarray, np.ndarray]:
    """`(mean float32[n_items], count int32[n_items])`; the mean is NaN where count is 0."""
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
