"""Adapt models of the library Cornac."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np

from alignuser_jax.recommenders.base import Catalogue, digest
from alignuser_jax.recommenders.foreign.adapters import ScoredRequests
from alignuser_jax.records import RecommendationRequest


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
