"""Matrix factorization of implicit feedback, trained by Bayesian personalized ranking.

Hyper-parameters are Agent4Rec's (METHOD.md section 2.1). A live history is folded in by a
linear rule (DEFAULT): the ridge regression of the trained user vectors on the sums of their
items' vectors; what the regression leaves over stays with a known user (`factors.Factors`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alignuser_jax.datasets import Dataset, Log
from alignuser_jax.recommenders.base import not_fitted, read, write
from alignuser_jax.recommenders.models.factors import Factors
from alignuser_jax.recommenders.models.settings import check_settings, training_pairs
from alignuser_jax.records import RecommendationRequest, Slate


class MF:
    """Every rating is a positive interaction, whatever its stars. A request whose history and
    session hold no item of the catalogue gets the most popular items."""

    name = "mf"
    stateful = False
    version = ""
    factors: Factors | None = None
    fitted: dict[str, Any]  # best epoch, epochs run, validation recall@20 and ndcg@20

    def __init__(
        self,
        factors: int = 64,
        batch_size: int = 2048,
        learning_rate: float = 5e-4,
        l2: float = 1e-5,
        epochs: int = 500,
        patience: int = 20,
        seed: int = 101,
    ):
        self.settings = check_settings(
            "MF",
            factors=factors,
            batch_size=batch_size,
            learning_rate=learning_rate,
            l2=l2,
            epochs=epochs,
            patience=patience,
            seed=seed,
        )

    @property
    def item_ids(self) -> tuple[str, ...]:
        return self.factors.item_ids if self.factors else ()

    def fit(
        self,
        dataset: Dataset,
        log: Log,
        validation: Log | None = None,
        *,
        checkpoint: str | Path | None = None,
        progress: bool = True,
    ) -> MF:
        """Train on `log`, stop where `validation` says so; without it, after all epochs,
        or after those that were best when it was fitted before.
        `checkpoint`: a file to take an interrupted fit up from."""
        from alignuser_jax.recommenders.models import bpr

        positives, held_out, self.version = training_pairs(self, dataset, log, validation)
        found = bpr.train(
            self.name,
            positives,
            held_out,
            None,
            self.settings,
            checkpoint,
            self.version,
            progress,
        )
        users, items = found.params["users"], found.params["items"]
        base, fold = fold_rule(positives, users, items)
        counts = np.asarray(positives.sum(0), np.float32).ravel()
        self.factors = Factors(
            tuple(dataset.user_ids), tuple(dataset.item_ids), base, fold, items, counts
        )
        self.fitted = found.summary()
        return self

    def recommend(self, requests: Sequence[RecommendationRequest]) -> list[Slate]:
        if self.factors is None:
            raise not_fitted(self)
        return self.factors.recommend(requests)

    def save(self, directory: str | Path) -> None:
        if self.factors is None:
            raise not_fitted(self)
        about = {"version": self.version, "settings": self.settings, "fitted": self.fitted}
        write(directory, self.name, about, **self.factors.arrays())

    @classmethod
    def load(cls, directory: str | Path) -> MF:
        stored, arrays = read(directory, cls.name)
        made = cls(**stored["settings"])
        made.version, made.fitted = stored["version"], stored["fitted"]
        made.factors = Factors.of(arrays)
        return made


def fold_rule(positives, users: np.ndarray, items: np.ndarray, ridge: float = 1e-3):
    """`(base, fold)` of `Factors`: with S the rows Σ_{i in history} items_i / √|history|, W
    minimizes ‖S W - users‖² + ridge · tr(S'S)/d · ‖W‖²; fold = items W, base = users - S W."""
    counts = np.maximum(np.diff(positives.indptr), 1)
    sums = np.asarray(positives @ items, np.float64) / np.sqrt(counts)[:, None]
    gram = sums.T @ sums
    d = len(gram)
    gram += max(ridge * np.trace(gram) / d, 1e-12) * np.eye(d)
    rule = np.linalg.solve(gram, sums.T @ users.astype(np.float64))
    base = (users - sums @ rule).astype(np.float32)
    return base, (items.astype(np.float64) @ rule).astype(np.float32)
