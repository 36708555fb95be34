"""Fit rating predictors that need no language model, on one part of a log.

The table to reproduce is that of docs/evidence.md, "Ratings": global mean, user mean, item
mean, user + item bias, biased matrix factorization. Predictions are not clipped to [1, 5] here:
`ratings.score` does it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from alignuser_jax.datasets import Log
from alignuser_jax.randomness import generator_of

Predictor = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Predict ratings, float[n], from user codes, int[n], and item codes, int[n]."""


def _group_mean(
    codes: np.ndarray, values: np.ndarray, size: int, damping: float = 0.0
) -> np.ndarray:
    """Means of `values` by code, float64[size]; NaN for a code without values."""
    counts = np.bincount(codes, minlength=size)
    sums = np.bincount(codes, values, minlength=size)
    with np.errstate(invalid="ignore"):
        return sums / (counts + damping)


def global_mean(log: Log) -> Predictor:
    """Predict the mean of all ratings."""
    mean = float(log.rating.mean(dtype=np.float64))
    return lambda user, item: np.full(len(user), mean)


def user_mean(log: Log) -> Predictor:
    """Predict the user's mean rating, or the mean of all for a user without ratings."""
    mean = _group_mean(log.user, log.rating, log.n_users)
    mean = np.where(np.isfinite(mean), mean, log.rating.mean(dtype=np.float64))
    return lambda user, item: mean[user]


def item_mean(log: Log) -> Predictor:
    """Predict the item's mean rating, or the mean of all for an item without ratings."""
    mean = _group_mean(log.item, log.rating, log.n_items)
    mean = np.where(np.isfinite(mean), mean, log.rating.mean(dtype=np.float64))
    return lambda user, item: mean[item]


def _biases(log: Log, damping: float, sweeps: int = 10) -> tuple[float, np.ndarray, np.ndarray]:
    mean = float(log.rating.mean(dtype=np.float64))
    residual = log.rating.astype(np.float64) - mean
    user_bias, item_bias = np.zeros(log.n_users), np.zeros(log.n_items)
    for _ in range(sweeps):
        item_bias = _group_mean(log.item, residual - user_bias[log.user], log.n_items, damping)
        user_bias = _group_mean(log.user, residual - item_bias[log.item], log.n_users, damping)
    return mean, np.nan_to_num(user_bias), np.nan_to_num(item_bias)


def bias_model(log: Log, damping: float = 5.0) -> Predictor:
    """Predict mu + b_u + b_i, fitted by damped alternating means.

    Source: the baseline predictors of Koren, Bell and Volinsky (2009), Computer 42.
    """
    mean, user_bias, item_bias = _biases(log, damping)
    return lambda user, item: mean + user_bias[user] + item_bias[item]


def biased_mf(
    log: Log, *, factors: int = 16, regularization: float = 6.0, sweeps: int = 12, seed: int = 0
) -> Predictor:
    """Predict mu + b_u + b_i + p_u . q_i, fitted by alternating ridge regressions.

    Each side solves for its factors and its bias together, one ridge system per row; rows
    without ratings keep zeros. Source: Koren, Bell and Volinsky (2009), Computer 42.

    Args:
        log: The ratings to fit.
        factors: Length of p_u and q_i.
        regularization: Ridge weight on a row's vector.
        sweeps: Alternations between users and items.
        seed: Key of the initial item factors.
    """
    mean, user_bias, item_bias = _biases(log, 5.0)
    rng = generator_of(seed)
    user_vectors = np.zeros((log.n_users, factors))
    item_vectors = rng.normal(0, 0.1, (log.n_items, factors))
    rating = log.rating.astype(np.float64)

    def solve(
        rows: np.ndarray,
        columns: np.ndarray,
        other: np.ndarray,
        other_bias: np.ndarray,
        n_rows: int,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The factors and biases of one side, given those of the other."""
        order = np.argsort(rows, kind="stable")
        row, column = rows[order], columns[order]
        features = np.concatenate([other[column], np.ones((len(row), 1))], axis=1)
        target = rating[order] - mean - other_bias[column]
        present, start = np.unique(row, return_index=True)
        width = factors + 1
        gram = np.empty((len(present), width, width))
        for i in range(width):  # one feature at a time keeps memory at [ratings, width]
            gram[:, i] = np.add.reduceat(features * features[:, i : i + 1], start)
        gram += regularization * np.eye(width)
        right = np.add.reduceat(features * target[:, None], start)
        solution = np.zeros((n_rows, width))
        solution[present] = np.linalg.solve(gram, right[..., None])[..., 0]
        return solution[:, :factors], solution[:, factors]

    for _ in range(sweeps):
        user_vectors, user_bias = solve(
            log.user, log.item, item_vectors, item_bias, log.n_users
        )
        item_vectors, item_bias = solve(
            log.item, log.user, user_vectors, user_bias, log.n_items
        )
    return lambda user, item: (
        mean
        + user_bias[user]
        + item_bias[item]
        + np.einsum("nk,nk->n", user_vectors[user], item_vectors[item])
    )


BASELINES: dict[str, Callable[[Log], Predictor]] = {
    "global mean": global_mean,
    "user mean": user_mean,
    "item mean": item_mean,
    "user + item bias": bias_model,
    "biased MF (16)": biased_mf,
}
"""Every baseline of the rating test, in the order of its table."""
