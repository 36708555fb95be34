"""LightGCN (He et al., 2020): vectors propagated over the graph of interactions.

The vector of a user or an item is the mean of what 0 to L steps over the normalized graph make
of the initial vectors, which are trained by Bayesian personalized ranking. A live history is
folded in by the graph's own rule (DEFAULT): its items are the user's neighbours, with their
vectors as trained. An unknown user starts from the mean of the users' initial vectors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from alignuser_jax.recommenders.models.factors import Factors
from alignuser_jax.recommenders.models.settings import LightGCNSettings
from alignuser_jax.recommenders.models.trained import (
    FitPlan,
    Summary,
    TrainedRecommender,
    TrainingData,
)

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix


class LightGCN(TrainedRecommender[LightGCNSettings, Factors]):
    """LightGCN: every rating is an edge of the graph, however many stars it has.

    Example:
        >>> settings = LightGCNSettings(layers=3, factors=8, epochs=2)
        >>> recommender = LightGCN(settings).fit(dataset, dataset.log.of_split("train"))

    Args:
        settings: a `LightGCNSettings`; the defaults when it is not given.
        **changes: fields of the settings to change, by name.
    """

    name = "lightgcn"
    settings_class = LightGCNSettings
    model_class = Factors

    def _train(self, data: TrainingData, plan: FitPlan) -> tuple[Factors, Summary]:
        from alignuser_jax.recommenders.models import bpr
        from alignuser_jax.recommenders.models.propagation import propagation

        layers = self.settings.layers
        propagate = propagation(data.positives, layers)
        result = bpr.train_embedding(self.settings, data, plan, propagate)
        factors = Factors(
            data.user_ids,
            data.item_ids,
            *live_vectors(data.positives, result.params, layers),
            data.counts(),
        )
        return factors, result.summary()


def live_vectors(
    positives: csr_matrix, initial: Mapping[str, np.ndarray], layers: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return `base`, `fold` and `items` of `Factors`, so that user vectors are LightGCN's.

    The user part of the mean is (u⁰ + Σ_{i in history} (Σ_{l<L} i^l) / √(|history| d_i)) /
    (L + 1), where d_i is the number of the item's users. `base` is its first term, `fold` an
    item's share in the second.

    Args:
        positives: float32[n_users, n_items], 1 for each pair of the training log.
        initial: `users` float[n_users, d] and `items` float[n_items, d], as trained.
        layers: L, the steps of propagation.

    Returns:
        float32[n_users, d], float32[n_items, d] and float32[n_items, d].
    """
    from scipy.sparse import diags

    user_degree = np.maximum(np.diff(positives.indptr), 1)
    item_degree = np.maximum(np.asarray(positives.sum(0), np.float64).ravel(), 1)
    normal = diags(user_degree**-0.5) @ positives.astype(np.float64) @ diags(item_degree**-0.5)
    users = [initial["users"].astype(np.float64)]
    items = [initial["items"].astype(np.float64)]
    for _ in range(layers):
        users, items = [*users, normal @ items[-1]], [*items, normal.T @ users[-1]]
    share = 1 / (layers + 1)
    before_last = np.sum(items[:layers], axis=0)
    return (
        (share * users[0]).astype(np.float32),
        (share * before_last / np.sqrt(item_degree)[:, None]).astype(np.float32),
        (share * np.sum(items, axis=0)).astype(np.float32),
    )
