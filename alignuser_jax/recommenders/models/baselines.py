"""The two baselines that every comparison needs: a random slate and the most popular items."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from alignuser_jax.datasets import Dataset, Log
from alignuser_jax.randomness import named_generator
from alignuser_jax.recommenders.base import (
    ItemIndex,
    digest,
    not_fitted,
    read_folder,
    write_folder,
)
from alignuser_jax.records import RecommendationRequest, Slate


class Random:
    """Items in a random order, one order for each pair of user and request seed.

    A page shows the first k of that order that are not excluded. So the pages of one session do
    not repeat, and excluding one more item leaves the others where they were. The order depends
    on the set of ids, not on how they are sorted.

    Example:
        >>> recommender = Random(dataset.item_ids)
        >>> [slate] = recommender.recommend([RecommendationRequest("u1", (), k=4)])
        >>> len(slate.item_ids)
        4
    """

    name = "random"
    stateful = False

    def __init__(self, item_ids: Iterable[str]):
        self.index = ItemIndex(sorted(item_ids))
        self.version = digest({"kind": "random"}, self.index.item_ids)

    @property
    def item_ids(self) -> tuple[str, ...]:
        """The items that it may show, sorted."""
        return self.index.item_ids

    def fit(self, dataset: Dataset, log: Log) -> Random:
        """Return one over the dataset's items; nothing is learned from the log."""
        return Random(dataset.item_ids)

    def recommend(self, requests: Sequence[RecommendationRequest]) -> list[Slate]:
        """Return one slate without scores for each request."""
        size = len(self.index)
        return [
            self.index.slate(
                named_generator("random", request.user_id, request.seed).random(
                    size, np.float32
                ),
                request.k,
                request.exclude,
                scored=False,
            )
            for request in requests
        ]

    def save(self, directory: str | Path) -> None:
        """Write a folder that `load` and `load_recommender` read."""
        about = {"version": self.version}
        write_folder(directory, "random", about, item_ids=np.array(self.item_ids))

    @classmethod
    def load(cls, directory: str | Path) -> Random:
        """Read what `save` wrote."""
        _, arrays = read_folder(directory, "random")
        return cls(arrays["item_ids"].tolist())


class Popularity:
    """The items with most interactions in the log that it was fitted on, for every user.

    Equal counts are ordered as the dataset orders its items. A slate's scores are the counts.

    Example:
        >>> recommender = Popularity().fit(dataset, dataset.log.of_split("train"))

    Attributes:
        index: the index of its items, `None` before `fit`.
        counts: float32[n_items], interactions in the log; set by `fit` and `load`.
    """

    name = "popularity"
    stateful = False
    version = ""
    index: ItemIndex | None = None
    counts: np.ndarray

    @property
    def item_ids(self) -> tuple[str, ...]:
        """The items that it may show; empty before `fit`."""
        return self.index.item_ids if self.index else ()

    def fit(self, dataset: Dataset, log: Log) -> Popularity:
        """Count the interactions of `log` and return this recommender."""
        counts = np.bincount(log.item, minlength=len(dataset.item_ids))
        return self._set(dataset.item_ids, counts)

    def _set(self, item_ids: Sequence[str], counts: np.ndarray) -> Popularity:
        self.index = ItemIndex(item_ids)
        self.counts = counts.astype(np.float32)
        self.version = digest({"kind": "popularity"}, self.item_ids, self.counts)
        return self

    def recommend(self, requests: Sequence[RecommendationRequest]) -> list[Slate]:
        """Return the most popular items that each request does not exclude."""
        if self.index is None:
            raise not_fitted(self)
        return [self.index.slate(self.counts, r.k, r.exclude) for r in requests]

    def save(self, directory: str | Path) -> None:
        """Write a folder that `load` and `load_recommender` read."""
        if self.index is None:
            raise not_fitted(self)
        about, ids = {"version": self.version}, np.array(self.item_ids)
        write_folder(directory, "popularity", about, item_ids=ids, counts=self.counts)

    @classmethod
    def load(cls, directory: str | Path) -> Popularity:
        """Read what `save` wrote."""
        _, arrays = read_folder(directory, "popularity")
        return cls()._set(arrays["item_ids"].tolist(), arrays["counts"])
