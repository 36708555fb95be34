"""What a user recalls about an item before a choice: a few numbers retrieved from memory.

This is a DEFAULT of this project, off unless a config turns it on: the paper's plain agent has
no retrieved context (docs/method.md section 5), while its rating prompt has "relevant history"
(section 14). Only past ratings, genres and rating counts go in, so no held-out rating can come
out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from alignuser_jax.records import Interaction, Item

LEVELS = 10
"""Prompts show recalled numbers as levels 0 to 9, because one digit is one token."""
FULL_MATCH = 0.5
"""The mean genre overlap from which the match is 9; few histories are that narrow."""
MEANS_FROM, MEANS_STEP = 2.5, 0.2
"""Mean ratings below 2.7 are level 0, those from 4.3 level 9: nearly all lie between."""


def mean_level(mean: float) -> int:
    """Return the level, 0 to 9, of a mean rating in stars."""
    return min(max(int((mean - MEANS_FROM) / MEANS_STEP + 1e-9), 0), LEVELS - 1)


class Recall(NamedTuple):
    """What one user recalls about one item.

    Attributes:
        similar: The user's mean rating of past items, each weighted by its squared genre
            overlap (Jaccard) with this one, and shrunk towards the user's mean rating as if by
            one more rating. `None` without a history.
        match: The mean genre overlap with past items as a level, 0 to 9; `None` without a
            history.
        popularity: The level, 0 to 9, of the item's number of ratings among all items.
    """

    similar: float | None
    match: int | None
    popularity: int


class RecallIndex:
    """The genres and rating counts of a catalogue, shared by all users.

    Args:
        items: The catalogue.
        counts: How many ratings each item has, by item id; items that are missing have none.

    Example:
        >>> from alignuser_jax.records import Interaction, Item
        >>> items = {"1": Item("1", "Heat", ("Crime",)), "2": Item("2", "Ronin", ("Crime",))}
        >>> index = RecallIndex(items, {"1": 7, "2": 3})
        >>> index.of_user([Interaction("1", 5.0)]).about("2")
        Recall(similar=5.0, match=9, popularity=0)
    """

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
        """Return what a user with this history can recall.

        Past items that are not in the catalogue are left out.
        """
        in_catalogue = [past for past in history if past.item_id in self._row]
        rows = np.array([self._row[past.item_id] for past in in_catalogue], np.int64)
        ratings = np.array([past.rating for past in in_catalogue], np.float64)
        return Recollection(self, rows, ratings)

    def popularity(self, item_id: str) -> int:
        """Return the level, 0 to 9, of the item's number of ratings among all items."""
        return int(self._popularity[self._row[item_id]])

    def overlap(self, item_id: str, rows: np.ndarray) -> np.ndarray:
        """Return the Jaccard overlap of the item's genres with those of other items.

        Args:
            item_id: The item.
            rows: int[n], the places of the other items in the catalogue.

        Returns:
            float32[n] in 0 to 1.
        """
        row = self._row[item_id]
        shared = self._genres[rows] @ self._genres[row]
        return shared / np.maximum(self._size[rows] + self._size[row] - shared, 1)


class Recollection:
    """One user's past ratings, ready to be asked about any item.

    Args:
        index: The catalogue.
        rows: int[n], the places of the user's past items in the catalogue.
        ratings: float[n], the user's rating of each.
    """

    def __init__(self, index: RecallIndex, rows: np.ndarray, ratings: np.ndarray):
        self._index, self._rows, self._ratings = index, rows, ratings

    def about(self, item_id: str) -> Recall:
        """Return what the user recalls about an item.

        Raises `KeyError` if the catalogue does not have the item.
        """
        popularity = self._index.popularity(item_id)
        if not len(self._rows):
            return Recall(None, None, popularity)
        overlap = self._index.overlap(item_id, self._rows)
        weight = overlap.astype(np.float64) ** 2
        similar = (weight @ self._ratings + self._ratings.mean()) / (weight.sum() + 1)
        match = min(int(overlap.mean() / FULL_MATCH * LEVELS), LEVELS - 1)
        return Recall(float(similar), match, popularity)
