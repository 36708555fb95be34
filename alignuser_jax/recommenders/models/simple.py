"""The two controls every comparison needs: a random slate and the most popular items."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from alignuser_jax.datasets import Dataset, Log
from alignuser_jax.recommenders.base import (
    Catalogue,
    digest,
    generator,
    not_fitted,
    read,
    write,
)
from alignuser_jax.records import RecommendationRequest, Slate


class Random:
    """Items in a random order, one order per (user, seed).

    A page shows the first k of that order that are not excluded, so that pages of one session
    do not repeat, and excluding one more item leaves the others where they were. The order
    depends on the ids alone, not on how the catalogue is sorted.
    """

    name = "random"
    stateful = False

    def __init__(self, item_ids: Iterable[str]):
        self.catalogue = Catalogue(sorted(item_ids))
        self.version = digest({"kind": "random"}, self.catalogue.item_ids)

    @property
    def item_ids(self) -> tuple[str, ...]:
        return self.catalogue.item_ids

    def fit(self, dataset: Dataset, log: Log) -> Random:
        """Nothing is learned; here so that any recommender can be fitted the same way."""
        return Random(dataset.item_ids)

    def recommend(self, requests: Sequence[RecommendationRequest]) -> list[Slate]:
        size = len(self.catalogue)
        return [
            self.catalogue.slate(
                generator("random", request.user_id, request.seed).random(size, np.float32),
                request.k,
                request.exclude,
                scored=False,
            )
            for request in requests
        ]

    def save(self, directory: str | Path) -> None:
        write(directory, "random", {"version": self.version}, item_ids=np.array(self.item_ids))

    @classmethod
    def load(cls, directory: str | Path) -> Random:
        _, arrays = read(directory, "random")
        return cls(arrays["item_ids"].tolist())


class Popularity:
    """The items with most interactions in the log it was fitted on, whoever asks.

    Ties go to the item that comes first in the catalogue. `scores` are the counts.
    """

    name = "popularity"
    stateful = False
    version = ""
    catalogue: Catalogue | None = None
    counts: np.ndarray  # float32[n_items]

    @property
    def item_ids(self) -> tuple[str, ...]:
        return self.catalogue.item_ids if self.catalogue else ()

    def fit(self, dataset: Dataset, log: Log) -> Popularity:
        counts = np.bincount(log.item, minlength=len(dataset.item_ids))
        return self._set(dataset.item_ids, counts)

    def _set(self, item_ids: Sequence[str], counts: np.ndarray) -> Popularity:
        self.catalogue = Catalogue(item_ids)
        self.counts = counts.astype(np.float32)
        self.version = digest({"kind": "popularity"}, self.item_ids, self.counts)
        return self

    def recommend(self, requests: Sequence[RecommendationRequest]) -> list[Slate]:
        if self.catalogue is None:
            raise not_fitted(self)
        return [self.catalogue.slate(self.counts, r.k, r.exclude) for r in requests]

    def save(self, directory: str | Path) -> None:
        if self.catalogue is None:
            raise not_fitted(self)
        write(
            directory,
            "popularity",
            {"version": self.version},
            item_ids=np.array(self.item_ids),
            counts=self.counts,
        )

    @classmethod
    def load(cls, directory: str | Path) -> Popularity:
        _, arrays = read(directory, "popularity")
        return cls()._set(arrays["item_ids"].tolist(), arrays["counts"])
