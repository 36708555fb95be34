"""Adapt models of the library Cornac, which is not imported here."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np

from alignuser_jax.recommenders.base import ItemIndex, digest
from alignuser_jax.recommenders.foreign.scored import Score, ScoredRecommender
from alignuser_jax.records import RecommendationRequest


def from_cornac(model: Any, train_set: Any, *, name: str = "") -> ScoredRecommender:
    """Make a recommender of a fitted model of Cornac (versions 1 to 3).

    Cornac's models know users by id. The live session only changes what is excluded, and a user
    that the model was not fitted on gets the most popular items, where Cornac itself would
    raise. Next-item models are given the live history instead; those whose scores also depend
    on the user give unknown users the most popular items.

    Example:
        >>> import cornac
        >>> train_set = cornac.data.Dataset.from_uir(triples, seed=0)
        >>> model = cornac.models.BPR(k=8, seed=0).fit(train_set)
        >>> recommender = from_cornac(model, train_set)

    Args:
        model: a fitted model.
        train_set: the `cornac.data.Dataset` that it was fitted on.
        name: for tables; the model's name when it is not given.

    Raises:
        ValueError: if it is a next-basket model.
    """
    index = ItemIndex(
        str(item) for item in sorted(train_set.iid_map, key=train_set.iid_map.get)
    )
    users = train_set.uid_map
    codes = {str(user): code for user, code in users.items() if code < model.num_users}
    parameters = inspect.signature(model.score).parameters
    if "history_baskets" in parameters:
        raise ValueError(
            f"{type(model).__name__} is a next-basket model: sessions have no baskets; use "
            "from_callable with your own rule for them"
        )
    # the model's scores for a few users or items stand for the whole model in its version
    sample = np.linspace(0, len(codes) - 1, min(len(codes), 16)).astype(int)
    if "history_items" in parameters:
        starts = np.linspace(0, model.num_items - 1, min(model.num_items, 16)).astype(int)
        probes = [model.score(int(sample[0]), [item]) for item in starts.tolist()]
        score = _next_item_score(model, index, codes, (int(sample[0]), int(sample[-1])))
    else:
        probes = [model.score(code) for code in sample.tolist()]
        score = _user_score(model, index, codes)
    counts = np.bincount(train_set.uir_tuple[1], minlength=len(index))
    name = name or getattr(model, "name", type(model).__name__)
    version = digest(
        {"kind": "cornac", "name": name},
        index.item_ids,
        *train_set.uir_tuple[:2],
        *(np.asarray(probe, np.float32) for probe in probes),
    )
    return ScoredRecommender(name, version, index, score, counts)


def _user_score(model: Any, index: ItemIndex, codes: dict[str, int]) -> Score:
    def score(request: RecommendationRequest) -> np.ndarray | None:
        code = codes.get(request.user_id)
        return None if code is None else _all_items(model.score(code), len(index))

    return score


def _next_item_score(
    model: Any, index: ItemIndex, codes: dict[str, int], sample: tuple[int, int]
) -> Score:
    """Return the score function of a next-item model; `sample` holds two user codes."""
    one, other = (np.asarray(model.score(code, [0])) for code in sample)
    personal = not np.array_equal(one, other, equal_nan=True)

    def score(request: RecommendationRequest) -> np.ndarray | None:
        code = codes.get(request.user_id)
        items = (index.code_of.get(i.item_id) for i in request.history + request.session)
        history = [item for item in items if item is not None and item < model.num_items]
        if not history or (code is None and personal):
            return None
        return _all_items(model.score(0 if code is None else code, history), len(index))

    return score


def _all_items(values: Any, n_items: int) -> np.ndarray:
    """Return float32[n_items]: `values`, and -inf for items without a number."""
    values = np.ravel(values)  # EASE gives [1, items]
    scores = np.full(n_items, -np.inf, np.float32)
    scores[: len(values)] = np.asarray(values, np.float32)
    return np.where(np.isnan(scores), -np.inf, scores)
