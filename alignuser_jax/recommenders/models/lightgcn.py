"""LightGCN (He et al., 2020): user and item vectors are the mean of what 0 to L steps over the
normalized graph of interactions make of them, trained by Bayesian personalized ranking.

Hyper-parameters are Agent4Rec's (METHOD.md section 2.1). A live history is folded in by the
graph's own rule (DEFAULT): its items are the user's neighbours, with the items' vectors as
trained. An unknown user starts from the mean of the users' first vectors.
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


class LightGCN:
    """Every rating is an edge, whatever its stars. A request whose history and session hold no
    item of the catalogue gets the most popular items."""

    name = "lightgcn"
    stateful = False
    version = ""
    factors: Factors | None = None
    fitted: dict[str, Any]  # best epoch, epochs run, validation recall@20 and ndcg@20

    def __init__(
        self,
        layers: int = 2,
        factors: int = 64,
        batch_size: int = 2048,
        learning_rate: float = 5e-4,
        l2: float = 1e-5,
        epochs: int = 500,
        patience: int = 20,
        seed: int = 101,
    ):
        self.settings = check_settings(
            "LightGCN",
            layers=layers,
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
    ) -> LightGCN:
        """Train on `log`, stop where `validation` says so; without it, after all epochs,
        or after those that were best when it was fitted before.
        `checkpoint`: a file to take an interrupted fit up from."""
        from alignuser_jax.recommenders.models import bpr
        from alignuser_jax.recommenders.models.propagation import propagation

        positives, held_out, self.version = training_pairs(self, dataset, log, validation)
        found = bpr.train(
            self.name,
            positives,
            held_out,
            propagation(positives, self.settings["layers"]),
            self.settings,
            checkpoint,
            self.version,
            progress,
        )
        self.factors = live_factors(
            dataset.user_ids, dataset.item_ids, positives, found.params, self.settings["layers"]
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
    def load(cls, directory: str | Path) -> LightGCN:
        stored, arrays = read(directory, cls.name)
        made = cls(**stored["settings"])
        made.version, made.fitted = stored["version"], stored["fitted"]
        made.factors = Factors.of(arrays)
        return made


def live_factors(
    user_ids: Sequence[str], item_ids: Sequence[str], positives, initial, layers: int
) -> Factors:
    """`Factors` whose user vectors for the training history are LightGCN's.

    The user part of the mean is (u⁰ + Σ_{i in history} (Σ_{l<L} i^l) / √(|history| d_i)) /
    (L + 1): `base` is its first term, `fold` an item's share in the second.
    """
    from scipy.sparse import diags

    user_degree = np.maximum(np.diff(positives.indptr), 1)
    counts = np.asarray(positives.sum(0), np.float64).ravel()
    item_degree = np.maximum(counts, 1)
    normal = diags(user_degree**-0.5) @ positives.astype(np.float64) @ diags(item_degree**-0.5)
    users = [initial["users"].astype(np.float64)]
    items = [initial["items"].astype(np.float64)]
    for _ in range(layers):
        users, items = [*users, normal @ items[-1]], [*items, normal.T @ users[-1]]
    share = 1 / (layers + 1)
    return Factors(
        tuple(user_ids),
        tuple(item_ids),
        (share * users[0]).astype(np.float32),
        (share * sum(items[:layers]) / np.sqrt(item_degree)[:, None]).astype(np.float32),
        (share * sum(items)).astype(np.float32),
        counts.astype(np.float32),
    )
