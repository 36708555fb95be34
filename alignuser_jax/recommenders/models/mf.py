"""Matrix factorization of implicit feedback, trained by Bayesian personalized ranking.

A live history is folded in by a linear rule (DEFAULT): the ridge regression of the trained user
vectors on the sums of their items' vectors. What the regression does not explain stays with a
known user (`factors.Factors`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from alignuser_jax.recommenders.models.factors import Factors
from alignuser_jax.recommenders.models.settings import MFSettings
from alignuser_jax.recommenders.models.trained import (
    FitPlan,
    Summary,
    TrainedRecommender,
    TrainingData,
)

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix


class MF(TrainedRecommender[MFSettings, Factors]):
    """Matrix factorization: a vector for each user and item, trained by BPR.

    Example:
        >>> train, validation = (dataset.log.of_split(s) for s in ("train", "validation"))
        >>> recommender = MF(factors=8, l2=0.01, epochs=3).fit(dataset, train, validation)
        >>> recommender.summary["epochs"]
        3
        >>> recommender.save("runs/mf")

    Args:
        settings: an `MFSettings`; the defaults when it is not given.
        **changes: fields of the settings to change, by name.
    """

    name = "mf"
    settings_class = MFSettings
    model_class = Factors

    def _train(self, data: TrainingData, plan: FitPlan) -> tuple[Factors, Summary]:
        from alignuser_jax.recommenders.models import bpr

        result = bpr.train_embedding(self.settings, data, plan)
        users, items = result.params["users"], result.params["items"]
        base, fold = fold_rule(data.positives, users, items)
        factors = Factors(data.user_ids, data.item_ids, base, fold, items, data.counts())
        return factors, result.summary()


def fold_rule(
    positives: csr_matrix, users: np.ndarray, items: np.ndarray, ridge: float = 1e-3
) -> tuple[np.ndarray, np.ndarray]:
    """Return the `base` and `fold` of `Factors` for trained vectors.

    With S the rows Σ_{i in history} items_i / √|history|, W minimizes
    ‖S W - users‖² + ridge · tr(S'S)/d · ‖W‖²; then fold = items W and base = users - S W.

    Args:
        positives: float32[n_users, n_items], 1 for each pair of the training log.
        users: float[n_users, d], the trained vectors.
        items: float[n_items, d], the trained vectors.
        ridge: weight of the penalty.

    Returns:
        float32[n_users, d] and float32[n_items, d].
    """
    counts = np.maximum(np.diff(positives.indptr), 1)
    sums = np.asarray(positives @ items, np.float64) / np.sqrt(counts)[:, None]
    gram = sums.T @ sums
    d = len(gram)
    gram += max(ridge * np.trace(gram) / d, 1e-12) * np.eye(d)
    rule = np.linalg.solve(gram, sums.T @ users.astype(np.float64))
    base = (users - sums @ rule).astype(np.float32)
    return base, (items.astype(np.float64) @ rule).astype(np.float32)
