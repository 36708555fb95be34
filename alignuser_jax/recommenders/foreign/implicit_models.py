"""Adapt models of the library implicit."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from alignuser_jax.recommenders.base import Catalogue, digest
from alignuser_jax.recommenders.foreign.adapters import ScoredRequests
from alignuser_jax.recommenders.foreign.scores import distinct
from alignuser_jax.records import Interaction, RecommendationRequest


def from_implicit(
    model: Any,
    user_items: Any,
    user_ids: Iterable[str],
    item_ids: Iterable[str],
    *,
    weight: Callable[[Interaction], float] = lambda interaction: 1.0,
    name: str = "",
) -> ScoredRequests:
    """A fitted model of `implicit`; `user_items` is the [users, items] matrix it was fitted on.

    ALS and the item-item models see the live history and session (`weight`: what an
    interaction is in their matrix) and serve any user. Models that cannot recalculate a user
    (BPR, logistic) serve the users they were fitted on by their factors, others the most
    popular items. GPU models: pass `model.to_cpu()`.
    """
    import scipy.sparse

    catalogue = Catalogue(item_ids)
    users = {user: code for code, user in enumerate(distinct(user_ids))}
    matrix = scipy.sparse.csr_matrix(user_items)
    learned = (getattr(model, name, None) for name in ("similarity", "item_factors"))
    if all(found is None for found in learned):
        raise ValueError(
            f"{type(model).__name__} has neither item factors nor item similarities: expected "
            "a model of implicit, fitted"
        )
    if matrix.shape != (len(users), len(catalogue)):
        raise ValueError(
            f"user_items has shape {matrix.shape} for {len(users)} users and "
            f"{len(catalogue)} items: expected the matrix that the model was fitted on"
        )
    popularity = np.bincount(matrix.indices, minlength=len(catalogue))
    model = copy.copy(model)
    model.num_threads = 1  # one row at a time: threads would only wait for each other

    def live(request: RecommendationRequest) -> scipy.sparse.csr_matrix | None:
        weights = {}
        for interaction in (*request.history, *request.session):
            code = catalogue.index.get(interaction.item_id)
            if code is not None:
                weights[code] = weight(interaction)
        if not weights:
            return None
        codes = np.array(sorted(weights), np.int32)
        values = np.array([weights[code] for code in codes.tolist()], np.float32)
        return scipy.sparse.csr_matrix(
            (values, codes, [0, len(codes)]), shape=(1, len(catalogue))
        )

    if hasattr(model, "similarity"):  # item-item
        arrays = [model.similarity.indptr, model.similarity.indices, model.similarity.data]

        def score(request: RecommendationRequest) -> np.ndarray | None:
            row = live(request)
            if row is None:
                return None
            ids, values = model.recommend(
                0, row, N=len(catalogue), filter_already_liked_items=False
            )
            scores = np.full(len(catalogue), -np.inf, np.float32)
            scores[ids[ids >= 0]] = values[ids >= 0]
            return scores

    else:
        factors = np.asarray(model.item_factors, np.float32)
        if factors.shape[0] != len(catalogue):
            raise ValueError(
                f"the model has {factors.shape[0]} items, {len(catalogue)} ids were given"
            )
        arrays = [factors]
        empty = scipy.sparse.csr_matrix((1, len(catalogue)), dtype=np.float32)
        try:
            model.recalculate_user(np.zeros(1, np.int64), empty)
            recalculates = True
        except NotImplementedError:
            recalculates = False
            arrays.append(np.asarray(model.user_factors))

        def score(request: RecommendationRequest) -> np.ndarray | None:
            if not recalculates:
                code = users.get(request.user_id)
                return None if code is None else factors @ np.asarray(model.user_factors[code])
            row = live(request)
            if row is None:
                return None
            return factors @ model.recalculate_user(np.zeros(1, np.int64), row)[0]

    name = name or type(model).__name__
    version = digest({"kind": "implicit", "name": name}, catalogue.item_ids, *arrays)
    return ScoredRequests(name, version, catalogue, popularity, score)
