"""`Log`: interactions as NumPy columns, sorted by user, then time, ties in file order."""

from __future__ import annotations

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
