"""Implicit-feedback matrix factorization (Hu, Koren and Volinsky, 2008), trained by `implicit`.

Every rating is a positive interaction, however many stars it has. Only the item factors are
kept: a user's vector is solved again for each request from the history that travels with it, so
the recommender holds no users, keeps no state and follows a session as it goes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from alignuser_jax.datasets import Dataset, Log
from alignuser_jax.recommenders.base import (
    ItemIndex,
    digest,
    not_fitted,
    read_folder,
    write_folder,
)
from alignuser_jax.recommenders.models.factors import live_codes
from alignuser_jax.records import RecommendationRequest, Slate


class ALS:
    """Alternating least squares on implicit feedback.

    A request whose history and session hold no item of its own gets the most popular items.

    Example:
        >>> recommender = ALS(factors=64).fit(dataset, dataset.log.of_split("train"))
        >>> recommender.save("runs/als")

    Args:
        factors: dimension of the vectors.
        regularization: L2 weight λ.
        alpha: confidence of an interaction; a missing one has 1.
        iterations: sweeps over users and items.
        seed: of the initial factors, 0 to 2³² - 1.
        threads: threads to fit with, 0 for all cores. It changes speed only: rows are solved
            independently, so the factors have the same bits for any number.

    Attributes:
        settings: the arguments except `threads`, by name.
        index: the index of its items, `None` before `fit`.
        item_factors: float32[n_items, factors]; set by `fit` and `load`.
        counts: float32[n_items], interactions in the log; set by `fit` and `load`.
    """

    name = "als"
    stateful = False
    version = ""
    index: ItemIndex | None = None
    item_factors: np.ndarray
    counts: np.ndarray

    def __init__(
        self,
        factors: int = 64,
        regularization: float = 0.05,
        alpha: float = 1.0,
        iterations: int = 15,
        seed: int = 0,
        threads: int = 0,
    ):
        if not (factors >= 1 and iterations >= 1 and alpha > 0 and regularization > 0):
            raise ValueError(
                "ALS needs factors >= 1, iterations >= 1, alpha > 0 and regularization > 0; "
                f"got {factors}, {iterations}, {alpha} and {regularization}"
            )
        if not 0 <= seed < 1 << 32:
            raise ValueError(f"ALS needs a seed from 0 to {(1 << 32) - 1}, got {seed}")
        self.settings = {
            "factors": factors,
            "regularization": regularization,
            "alpha": alpha,
            "iterations": iterations,
            "seed": seed,
        }
        self.threads = threads

    @property
    def item_ids(self) -> tuple[str, ...]:
        """The items that it may show; empty before `fit`."""
        return self.index.item_ids if self.index else ()

    def fit(self, dataset: Dataset, log: Log) -> ALS:
        """Learn item factors from `log` and return this recommender.

        Raises:
            ValueError: if `log` is empty.
        """
        if not len(log):
            raise ValueError("ALS was given an empty log: fit it on a log with interactions")
        # imported here: both start thread pools, which nothing but fitting needs
        from implicit.cpu.als import AlternatingLeastSquares
        from scipy.sparse import csr_matrix
        from threadpoolctl import threadpool_limits

        shape = (len(dataset.user_ids), len(dataset.item_ids))
        pairs = csr_matrix((np.ones(len(log), np.float32), (log.user, log.item)), shape=shape)
        pairs.data[:] = 1.0  # a pair that occurs twice counts once
        with threadpool_limits(limits=1, user_api="blas"):
            model = AlternatingLeastSquares(
                factors=self.settings["factors"],
                regularization=self.settings["regularization"],
                alpha=self.settings["alpha"],
                iterations=self.settings["iterations"],
                random_state=self.settings["seed"],
                num_threads=self.threads,
            )
            model.fit(pairs, show_progress=False)
        counts = np.bincount(log.item, minlength=shape[1])
        self.version = digest(
            {"kind": "als", **self.settings}, dataset.item_ids, pairs.indptr, pairs.indices
        )
        return self._set(dataset.item_ids, model.item_factors, counts)

    def _set(self, item_ids: Sequence[str], factors: np.ndarray, counts: np.ndarray) -> ALS:
        self.index = ItemIndex(item_ids)
        self.item_factors = np.asarray(factors, np.float32)
        self.counts = counts.astype(np.float32)
        self._factors64 = self.item_factors.astype(np.float64)
        self._gram = self._factors64.T @ self._factors64 + self.settings[
            "regularization"
        ] * np.eye(self.item_factors.shape[1])
        return self

    def user_vectors(self, codes: Sequence[np.ndarray]) -> np.ndarray:
        """Return the vectors of users, float64[users, factors], from their items' codes.

        A vector is the x that solves (Y'Y + λI + (alpha - 1) Y_u'Y_u) x = alpha Y_u'1, as
        `implicit.recalculate_user` does. It is solved in float64 and one row at a time, so that
        it does not depend on who else is in the batch.

        Args:
            codes: for each user, int64[m] codes of their items.
        """
        alpha = self.settings["alpha"]
        left = np.empty((len(codes), *self._gram.shape))
        right = np.empty((len(codes), len(self._gram), 1))
        for row, items in enumerate(codes):
            own = self._factors64[items]
            left[row] = self._gram if alpha == 1 else self._gram + (alpha - 1) * (own.T @ own)
            right[row, :, 0] = alpha * own.sum(0)
        return np.linalg.solve(left, right)[:, :, 0]

    def scores(self, requests: Sequence[RecommendationRequest]) -> np.ndarray:
        """Return the predicted preferences of each request's user, float32[requests, n_items].

        A request without a known item gets the counts of all users instead.
        """
        if self.index is None:
            raise not_fitted(self)
        codes = [live_codes(self.index, request) for request in requests]
        scores = np.empty((len(requests), len(self.index)), np.float32)
        for row, vector in enumerate(self.user_vectors(codes)):
            scores[row] = self._factors64 @ vector if len(codes[row]) else self.counts
        return scores

    def recommend(self, requests: Sequence[RecommendationRequest]) -> list[Slate]:
        """Return the items with the largest predicted preference for each request."""
        if self.index is None:
            raise not_fitted(self)
        return [
            self.index.slate(row, request.k, request.exclude)
            for row, request in zip(self.scores(requests), requests, strict=True)
        ]

    def save(self, directory: str | Path) -> None:
        """Write a folder that `load` and `load_recommender` read."""
        if self.index is None:
            raise not_fitted(self)
        write_folder(
            directory,
            "als",
            {"version": self.version, "settings": self.settings},
            item_ids=np.array(self.item_ids),
            item_factors=self.item_factors,
            counts=self.counts,
        )

    @classmethod
    def load(cls, directory: str | Path) -> ALS:
        """Read what `save` wrote."""
        about, arrays = read_folder(directory, "als")
        als = cls(**about["settings"])
        als.version = about["version"]
        return als._set(arrays["item_ids"].tolist(), arrays["item_factors"], arrays["counts"])
