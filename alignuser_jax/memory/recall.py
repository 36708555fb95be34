"""What a user recalls about an item before a choice: numbers, retrieved from memory.

A DEFAULT of this project, off unless a config turns it on: the paper's plain agent has no
retrieved context (METHOD.md section 5), its rating prompt has "relevant history" (section 14).
Only past ratings, genres and rating counts go in, so nothing held out can come out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from alignuser_jax.records import Interaction, Item

LEVELS = 10
"""All that is recalled is told as levels 0 to 9: one digit, one token."""
FULL_MATCH = 0.5
"""The mean genre overlap from which on the match is 9; histories are rarely so narrow."""
MEANS_FROM, MEANS_STEP = 2.5, 0.2
"""Mean ratings below 2.7 are level 0, from 4.3 on 9: nearly all means lie between."""


def mean_level(mean: float) -> int:
    """The level of a mean rating."""
    return min(max(int((mean - MEANS_FROM) / MEANS_STEP + 1e-9), 0), LEVELS - 1)


class Recall(NamedTuple):
    """`similar`: the user's mean rating of past items, weighed by their squared genre overlap
    (Jaccard) with this one and shrunk to the user's mean rating as by one more rating; `match`:
    the mean overlap as a level; both `None` without a history. `popularity`: the level of the
    item's number of ratings among all items."""

    similar: float | None
    match: int | None
    popularity: int


class RecallIndex:
    """Genres and rating counts of a catalogue; one for all users."""

    def __init__(self, items: Mapping[str, Item], counts: Mapping[str, int]):
        names = sorted({genre for item in items.values() for genre in item.genres})
        column = {name: n for n, name in enumerate(names)}
        self._row = {item_id: n for n, item_id in enumerate(items)}
        self._genres = np.zeros((len(items), len(names)), np.float32)
        for row, item in enumerate(items.values()):
            self._genres[row, [column[genre] for genre in item.genres]] = 1
        self._size = self._genres.sum(1)
        count = np.array([counts.get(item_id, 0) for item_id in items])
        fewer = np.searchsorted(np.sort(count), count)
        self._popularity = fewer * LEVELS // max(len(count), 1)

    def of_user(self, history: Sequence[Interaction]) -> Recollection:
        known = [past for past in history if past.item_id in self._row]
        rows = np.array([self._row[past.item_id] for past in known], np.int64)
        return Recollection(self, rows, np.array([past.rating for past in known], np.float64))

    def popularity(self, item_id: str) -> int:
        return int(self._popularity[self._row[item_id]])

    def overlap(self, item_id: str, rows: np.ndarray) -> np.ndarray:
        """Jaccard overlap of the item's genres with those of the items at `rows`."""
        row = self._row[item_id]
        shared = self._genres[rows] @ self._genres[row]
        return shared / np.maximum(self._size[rows] + self._size[row] - shared, 1)


class Recollection:
    """One user's memory as far as recall goes: `about(item_id)`."""

    def __init__(self, index: RecallIndex, rows: np.ndarray, ratings: np.ndarray):
        self._index, self._rows, self._ratings = index, rows, ratings

    def about(self, item_id: str) -> Recall:
        """Raises KeyError for an item that the catalogue does not have."""
        popularity = self._index.popularity(item_id)
        if not len(self._rows):
            return Recall(None, None, popularity)
        overlap = self._index.overlap(item_id, self._rows)
        weight = overlap.astype(np.float64) ** 2
        similar = (weight @ self._ratings + self._ratings.mean()) / (weight.sum() + 1)
        match = min(int(overlap.mean() / FULL_MATCH * LEVELS), LEVELS - 1)
        return Recall(float(similar), match, popularity)
