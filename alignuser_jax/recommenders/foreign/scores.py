"""Recommenders from scores that were computed elsewhere: a matrix, or factors and biases.

They know users by id. The live session changes what is excluded, not the scores. An unknown
user gets what the mean user would, and where a user's own items are used up, the mean user's
best ones follow (a warning says so once).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from alignuser_jax.recommenders.base import ItemIndex, digest
from alignuser_jax.recommenders.foreign.scored import (
    ScoredRecommender,
    distinct_users,
    score_by_user,
)

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from scipy.sparse import csr_matrix

Row = Callable[[int], np.ndarray]
"""From a user's code to float[n_items]."""


def from_scores(
    matrix: Any, user_ids: Iterable[str], item_ids: Iterable[str], *, name: str = "scores"
) -> ScoredRecommender:
    """Make a recommender of a matrix of scores.

    Example:
        >>> matrix = np.array([[0.1, 0.9], [0.5, 0.2]])
        >>> recommender = from_scores(matrix, ["ann", "bob"], ["heat", "alien"])
        >>> recommender.recommend([RecommendationRequest("ann", (), k=1)])[0].item_ids
        ('alien',)

    Args:
        matrix: [users, items], an array or a scipy sparse matrix. An entry of -inf, or one that
            a sparse matrix does not store, is an item that must not be recommended.
        user_ids: the rows.
        item_ids: the columns.
        name: for tables.

    Raises:
        ValueError: if the shape does not fit the ids, or a score is NaN or +inf.
    """
    index, users = ItemIndex(item_ids), distinct_users(user_ids)
    sparse = hasattr(matrix, "tocsr")
    matrix = _stored_scores(matrix) if sparse else np.asarray(matrix)
    values = matrix.data if sparse else matrix
    if matrix.shape != (len(users), len(index)):
        raise ValueError(
            f"the scores have shape {tuple(matrix.shape)} for {len(users)} users and "
            f"{len(index)} items: expected [users, items]"
        )
    if np.isnan(values).any() or (values == np.inf).any():
        raise ValueError("the scores hold NaN or +inf: expected numbers (or -inf: never)")
    row, mean, arrays = (_sparse_rows if sparse else _dense_rows)(matrix)
    version = digest({"kind": "scores"}, index.item_ids, users, *arrays)
    return ScoredRecommender(name, version, index, score_by_user(users, row), mean)


def _stored_scores(matrix: Any) -> csr_matrix:
    """Return a sparse matrix in CSR form, without its entries of -inf."""
    matrix = matrix.tocsr()
    matrix.sum_duplicates()
    if np.isneginf(matrix.data).any():
        matrix = matrix.tocoo()
        stored = ~np.isneginf(matrix.data)
        place = matrix.row[stored], matrix.col[stored]
        matrix = type(matrix)((matrix.data[stored], place), matrix.shape).tocsr()
    return matrix


def _sparse_rows(matrix: csr_matrix) -> tuple[Row, np.ndarray, list[np.ndarray]]:
    """Return the rows, the mean user's scores, and the arrays that name the matrix."""
    n_items = matrix.shape[1]
    mean = np.asarray(matrix.mean(axis=0), np.float64).ravel()
    count = np.bincount(matrix.indices, minlength=n_items)
    mean[count == 0] = mean.min(initial=0) - 1  # items that nobody may get: last

    def row(code: int) -> np.ndarray:
        scores = np.full(n_items, -np.inf)
        own = slice(matrix.indptr[code], matrix.indptr[code + 1])
        scores[matrix.indices[own]] = matrix.data[own]
        return scores

    return row, mean, [matrix.indptr, matrix.indices, matrix.data]


def _dense_rows(matrix: np.ndarray) -> tuple[Row, np.ndarray, list[np.ndarray]]:
    """Return the rows, the mean user's scores, and the arrays that name the matrix."""
    finite = np.isfinite(matrix)
    count = np.maximum(finite.sum(axis=0), 1)
    mean = np.where(finite, matrix, 0).sum(axis=0, dtype=np.float64) / count
    mean[~finite.any(axis=0)] = mean.min(initial=0) - 1  # items that nobody may get: last
    return lambda code: matrix[code].astype(np.float64), mean, [matrix]


def from_factors(
    user_factors: ArrayLike,
    item_factors: ArrayLike,
    user_ids: Iterable[str],
    item_ids: Iterable[str],
    *,
    user_biases: ArrayLike | None = None,
    item_biases: ArrayLike | None = None,
    name: str = "factors",
) -> ScoredRecommender:
    """Make a recommender whose score of user u for item i is x_u·y_i + b_u + b_i.

    Example:
        >>> x, y = np.eye(2), np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
        >>> recommender = from_factors(x, y, ["ann", "bob"], ["heat", "alien", "fargo"])
        >>> recommender.recommend([RecommendationRequest("bob", (), k=2)])[0].item_ids
        ('alien', 'fargo')

    Args:
        user_factors: x, [users, d].
        item_factors: y, [items, d].
        user_ids: the rows of x.
        item_ids: the rows of y.
        user_biases: b_u, [users]; 0 when not given.
        item_biases: b_i, [items]; 0 when not given.
        name: for tables.

    Raises:
        ValueError: if the shapes do not fit, or a number is not finite.
    """
    index, users = ItemIndex(item_ids), distinct_users(user_ids)
    x, y = np.asarray(user_factors, np.float32), np.asarray(item_factors, np.float32)
    b_u, b_i = _biases(user_biases, len(users)), _biases(item_biases, len(index))
    expected = {
        "user_factors": (x.shape, (len(users), *x.shape[1:])),
        "item_factors": (y.shape, (len(index), *x.shape[1:])),
        "user_biases": (b_u.shape, (len(users),)),
        "item_biases": (b_i.shape, (len(index),)),
    }
    wrong = [f"{n} {g}, expected {e}" for n, (g, e) in expected.items() if g != e]
    if wrong or x.ndim != 2:
        raise ValueError(f"shapes do not fit: {'; '.join(wrong) or f'factors {x.shape}'}")
    for label, array in (("factors", x), ("factors", y), ("biases", b_u), ("biases", b_i)):
        if not np.isfinite(array).all():
            raise ValueError(f"the {label} hold NaN or infinite numbers")

    def row(code: int) -> np.ndarray:
        return y @ x[code] + b_i + b_u[code]

    mean = y @ x.mean(axis=0) + b_i if len(users) else b_i
    version = digest({"kind": "factors"}, index.item_ids, users, x, y, b_u, b_i)
    return ScoredRecommender(name, version, index, score_by_user(users, row), mean)


def _biases(biases: ArrayLike | None, size: int) -> np.ndarray:
    if biases is None:
        return np.zeros(size, np.float32)
    return np.asarray(biases, np.float32).ravel()


def from_lightfm(
    model: Any,
    user_ids: Iterable[str],
    item_ids: Iterable[str],
    *,
    user_features: Any = None,
    item_features: Any = None,
    name: str = "lightfm",
) -> ScoredRecommender:
    """Make a recommender of a fitted LightFM model.

    Example:
        >>> recommender = from_lightfm(model, user_ids, item_ids)  # doctest: +SKIP

    Args:
        model: anything with LightFM's `get_user_representations` and
            `get_item_representations`, which return biases and embeddings.
        user_ids: in the order of the model's users.
        item_ids: in the order of the model's items.
        user_features: the features that the model was fitted with.
        item_features: the features that the model was fitted with.
        name: for tables.
    """
    user_biases, user_factors = model.get_user_representations(user_features)
    item_biases, item_factors = model.get_item_representations(item_features)
    return from_factors(
        user_factors,
        item_factors,
        user_ids,
        item_ids,
        user_biases=user_biases,
        item_biases=item_biases,
        name=name,
    )
