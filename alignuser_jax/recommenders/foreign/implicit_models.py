"""Adapt models of the library implicit, which is not imported here."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from alignuser_jax.recommenders.base import ItemIndex, digest
from alignuser_jax.recommenders.foreign.scored import (
    Score,
    ScoredRecommender,
    distinct_users,
    score_by_user,
)
from alignuser_jax.records import Interaction, RecommendationRequest

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

LiveRow = Callable[[RecommendationRequest], "csr_matrix | None"]
"""From a request to the user's row of the matrix, [1, n_items], or `None` if it is empty."""


def from_implicit(
    model: Any,
    user_items: Any,
    user_ids: Iterable[str],
    item_ids: Iterable[str],
    *,
    weight: Callable[[Interaction], float] = lambda interaction: 1.0,
    name: str = "",
) -> ScoredRecommender:
    """Make a recommender of a fitted model of implicit.

    ALS and the item-item models see the live history and session, and serve any user. Models
    that cannot recalculate a user (BPR, logistic) serve the users that they were fitted on by
    their factors, and other users the most popular items.

    Example:
        >>> from implicit.als import AlternatingLeastSquares
        >>> model = AlternatingLeastSquares(factors=8)
        >>> model.fit(user_items, show_progress=False)
        >>> recommender = from_implicit(model, user_items, user_ids, item_ids)

    Args:
        model: a fitted CPU model; of a GPU model, pass `model.to_cpu()`.
        user_items: the sparse [users, items] matrix that it was fitted on.
        user_ids: the matrix's rows.
        item_ids: the matrix's columns.
        weight: the value of an interaction in that matrix.
        name: for tables; the model's class when it is not given.

    Raises:
        ValueError: if the model is not a fitted one, or the shapes do not fit.
    """
    import scipy.sparse

    index, users = ItemIndex(item_ids), distinct_users(user_ids)
    matrix = scipy.sparse.csr_matrix(user_items)
    if all(getattr(model, learned, None) is None for learned in ("similarity", "item_factors")):
        raise ValueError(
            f"{type(model).__name__} has neither item factors nor item similarities: expected "
            "a model of implicit, fitted"
        )
    if matrix.shape != (len(users), len(index)):
        raise ValueError(
            f"user_items has shape {matrix.shape} for {len(users)} users and "
            f"{len(index)} items: expected the matrix that the model was fitted on"
        )
    model = copy.copy(model)
    model.num_threads = 1  # one row at a time: threads would only wait for each other
    live = _live_row(index, weight)
    if hasattr(model, "similarity"):
        arrays = [model.similarity.indptr, model.similarity.indices, model.similarity.data]
        score = _item_item_score(model, len(index), live)
    else:
        score, arrays = _factor_score(model, users, len(index), live)
    name = name or type(model).__name__
    version = digest({"kind": "implicit", "name": name}, index.item_ids, *arrays)
    popularity = np.bincount(matrix.indices, minlength=len(index))
    return ScoredRecommender(name, version, index, score, popularity)


def _live_row(index: ItemIndex, weight: Callable[[Interaction], float]) -> LiveRow:
    import scipy.sparse

    def live(request: RecommendationRequest) -> csr_matrix | None:
        weights: dict[int, float] = {}
        for interaction in (*request.history, *request.session):
            code = index.code_of.get(interaction.item_id)
            if code is not None:
                weights[code] = weight(interaction)
        if not weights:
            return None
        codes = np.array(sorted(weights), np.int32)
        values = np.array([weights[code] for code in codes.tolist()], np.float32)
        return scipy.sparse.csr_matrix((values, codes, [0, len(codes)]), shape=(1, len(index)))

    return live


def _item_item_score(model: Any, n_items: int, live: LiveRow) -> Score:
    def score(request: RecommendationRequest) -> np.ndarray | None:
        row = live(request)
        if row is None:
            return None
        ids, values = model.recommend(0, row, N=n_items, filter_already_liked_items=False)
        scores = np.full(n_items, -np.inf, np.float32)
        scores[ids[ids >= 0]] = values[ids >= 0]
        return scores

    return score


def _factor_score(
    model: Any, users: Sequence[str], n_items: int, live: LiveRow
) -> tuple[Score, list[np.ndarray]]:
    """Return the score function of a model with factors, and the arrays that name the model."""
    import scipy.sparse

    factors = np.asarray(model.item_factors, np.float32)
    if factors.shape[0] != n_items:
        raise ValueError(f"the model has {factors.shape[0]} items, {n_items} ids were given")
    user = np.zeros(1, np.int64)
    try:
        model.recalculate_user(user, scipy.sparse.csr_matrix((1, n_items), dtype=np.float32))
    except NotImplementedError:
        user_factors = np.asarray(model.user_factors)
        by_user = score_by_user(users, lambda code: factors @ user_factors[code])
        return by_user, [factors, user_factors]

    def score(request: RecommendationRequest) -> np.ndarray | None:
        row = live(request)
        return None if row is None else factors @ model.recalculate_user(user, row)[0]

    return score, [factors]
