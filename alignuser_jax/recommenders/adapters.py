"""Recommenders of other libraries, and functions, behind `recommend(requests)`.

Each takes the fitted object and its ids, and puts the live history of each request where the
library can use it; no library is imported here.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from alignuser_jax.recommenders.base import Catalogue, digest
from alignuser_jax.recommenders.remote import HttpRecommender, from_http
from alignuser_jax.recommenders.scores import (
    ScoredUsers,
    distinct,
    filled_slate,
    from_recs_file,
)
from alignuser_jax.records import Interaction, RecommendationRequest, Slate


class ScoredRequests:
    """`score(request)` is float32[n_items], -inf for no recommendation, or `None` where the
    model cannot tell; then, and where there are too few, the most popular items follow."""

    stateful = False

    def __init__(
        self,
        name: str,
        version: str,
        catalogue: Catalogue,
        popularity: np.ndarray,
        score: Callable[[RecommendationRequest], np.ndarray | None],
    ):
        self.name, self.version, self.catalogue = name, version, catalogue
        self.popularity, self.score = np.asarray(popularity, np.float32), score

    @property
    def item_ids(self) -> tuple[str, ...]:
        return self.catalogue.item_ids

    def recommend(self, requests: Sequence[RecommendationRequest]) -> list[Slate]:
        slates = []
        for request in requests:
            scores = self.score(request)
            scores = self.popularity if scores is None else np.asarray(scores)
            slates.append(
                filled_slate(self.catalogue, scores, self.popularity, request, self.name)
            )
        return slates


# --- implicit -----------------------------------------------------------------------------


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


# --- Cornac -------------------------------------------------------------------------------


def from_cornac(model: Any, train_set: Any, *, name: str = "") -> ScoredRequests:
    """A fitted model of Cornac (1, 2 or 3) and the `train_set` that it was fitted on.

    Cornac's models know users by id: the live session changes what is excluded, and a user
    that was not there gets the most popular items, where Cornac itself would raise. Its
    next-item models are given the live history instead; those whose scores also hang on the
    user give users that were not there the most popular items. Next-basket models are refused.
    """
    items = train_set.iid_map
    users = train_set.uid_map
    order = sorted(items, key=items.get)
    catalogue = Catalogue(str(item) for item in order)
    codes = {str(user): code for user, code in users.items() if code < model.num_users}
    kinds = inspect.signature(model.score).parameters
    if "history_baskets" in kinds:
        raise ValueError(
            f"{type(model).__name__} is a next-basket model: sessions have no baskets; use "
            "from_callable with your own rule for them"
        )
    sequential = "history_items" in kinds
    sample = np.linspace(0, len(codes) - 1, min(len(codes), 16)).astype(int)
    if sequential:
        first = [model.score(int(code), [0]) for code in (sample[0], sample[-1])]
        personal = not np.array_equal(*first, equal_nan=True)
        starts = np.linspace(0, model.num_items - 1, min(model.num_items, 16)).astype(int)
        probes = [model.score(int(sample[0]), [item]) for item in starts.tolist()]
    else:
        probes = [model.score(code) for code in sample.tolist()]
    probes = [np.asarray(probe, np.float32) for probe in probes]
    counts = np.bincount(train_set.uir_tuple[1], minlength=len(catalogue))

    def score(request: RecommendationRequest) -> np.ndarray | None:
        code = codes.get(request.user_id)
        if sequential:
            seen = (catalogue.index.get(i.item_id) for i in request.history + request.session)
            history = [item for item in seen if item is not None and item < model.num_items]
            if not history or (code is None and personal):
                return None
            found = model.score(0 if code is None else code, history)
        else:
            if code is None:
                return None
            found = model.score(code)
        found = np.ravel(found)  # EASE gives [1, items]
        scores = np.full(len(catalogue), -np.inf, np.float32)
        scores[: len(found)] = np.asarray(found, np.float32)
        return np.where(np.isnan(scores), -np.inf, scores)

    name = name or getattr(model, "name", type(model).__name__)
    version = digest(
        {"kind": "cornac", "name": name}, catalogue.item_ids, *train_set.uir_tuple[:2], *probes
    )
    return ScoredRequests(name, version, catalogue, counts, score)


# --- RecBole ------------------------------------------------------------------------------


def from_recbole(where: str | Path) -> HttpRecommender | ScoredUsers:
    """A RecBole model that lives in its own environment: the URL at which `recbole_side.py`
    serves it there (sequential models then see the live session), or the file it exported."""
    text = str(where)
    return from_http(text) if text.startswith(("http://", "https://")) else from_recs_file(text)


# --- a function ---------------------------------------------------------------------------


class FunctionRecommender:
    stateful = False

    def __init__(self, function: Callable, name: str, version: str):
        self.function, self.name, self.version = function, name, version

    def recommend(self, requests: Sequence[RecommendationRequest]) -> list[Slate]:
        return [self._slate(request) for request in requests]

    def _slate(self, request: RecommendationRequest) -> Slate:
        found = self.function(request)
        if isinstance(found, Slate):
            return found
        if isinstance(found, str) or not isinstance(found, Iterable):
            raise TypeError(
                f"{self.name} gave {found!r} for user {request.user_id!r}: expected item ids, "
                "best first, or a Slate"
            )
        ids = (i for i in found if i not in request.exclude)
        return Slate(tuple(islice(ids, request.k)))


def from_callable(
    function: Callable[[RecommendationRequest], Iterable[str] | Slate],
    *,
    name: str = "",
    version: str = "",
) -> FunctionRecommender:
    """`function(request)` returns item ids, best first: as many as it likes, for what is
    excluded is left out and the first k are shown. A `Slate` is taken as it is.

    Change `version` when the function changes, so that no run mixes the two.
    """
    if not callable(function):
        raise TypeError(f"{function!r} is no function of a request")
    name = name or getattr(function, "__name__", type(function).__name__)
    return FunctionRecommender(function, name, version)
