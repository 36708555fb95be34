"""Recommenders from scores that were computed elsewhere: a matrix, factors and biases, a file.

They know users by id and the catalogue by its ids; the live session changes what is excluded,
not the scores. A user that they do not know gets what the mean user would; where a user's own
items are used up, the mean user's best ones follow (a warning says so once).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from absl import logging

from alignuser_jax.recommenders.base import Catalogue, digest
from alignuser_jax.records import RecommendationRequest, Slate


class ScoredUsers:
    """`row(code)` is float32[n_items] or float64, the scores of user number `code`, -inf for an
    item that is no recommendation of theirs; `mean` are the finite scores of the mean user."""

    stateful = False

    def __init__(
        self,
        name: str,
        version: str,
        catalogue: Catalogue,
        user_ids: Iterable[str],
        row: Callable[[int], np.ndarray],
        mean: np.ndarray,
    ):
        self.name, self.version, self.catalogue = name, version, catalogue
        self.users = {user: code for code, user in enumerate(user_ids)}
        self.row, self.mean = row, np.asarray(mean, np.float32)

    @property
    def item_ids(self) -> tuple[str, ...]:
        return self.catalogue.item_ids

    def recommend(self, requests: Sequence[RecommendationRequest]) -> list[Slate]:
        return [self._slate(request) for request in requests]

    def _slate(self, request: RecommendationRequest) -> Slate:
        code = self.users.get(request.user_id)
        scores = self.mean if code is None else self.row(code)
        return filled_slate(self.catalogue, scores, self.mean, request, self.name)


def filled_slate(
    catalogue: Catalogue,
    scores: np.ndarray,
    otherwise: np.ndarray,
    request: RecommendationRequest,
    name: str,
) -> Slate:
    """The k best of the finite `scores`; where these are too few, the best by `otherwise`
    follow, and the slate has no scores. Both are float32[n_items]."""
    codes = np.flatnonzero(np.isfinite(scores))
    if len(codes) == len(catalogue):
        return catalogue.slate(scores, request.k, request.exclude)
    codes = np.setdiff1d(codes, catalogue.codes(request.exclude), assume_unique=True)
    best = codes[np.argsort(-scores[codes], kind="stable")][: request.k]
    ids = tuple(catalogue.item_ids[code] for code in best)
    if len(ids) == request.k:
        return Slate(ids, tuple(scores[best].tolist()))
    more = catalogue.slate(otherwise, request.k - len(ids), request.exclude.union(ids))
    if more.item_ids:
        logging.log_first_n(
            logging.WARNING,
            "%s has only %d more items for user %r; what most users get follows",
            1, name, len(ids), request.user_id,
        )  # fmt: skip
    return Slate(ids + more.item_ids)


def from_scores(
    matrix: Any,
    user_ids: Iterable[str],
    item_ids: Iterable[str],
    *,
    name: str = "scores",
) -> ScoredUsers:
    """From a [users, items] array, or a scipy sparse one whose missing entries are items not to
    recommend. In a dense one -inf says the same; NaN and +inf are refused."""
    catalogue, users = Catalogue(item_ids), distinct(user_ids)
    sparse = hasattr(matrix, "tocsr")
    if sparse:
        matrix = matrix.tocsr()
        matrix.sum_duplicates()
        if np.isneginf(matrix.data).any():
            matrix = matrix.tocoo()
            told = ~np.isneginf(matrix.data)
            where = matrix.row[told], matrix.col[told]
            matrix = type(matrix)((matrix.data[told], where), matrix.shape).tocsr()
        values = matrix.data
    else:
        matrix = values = np.asarray(matrix)
    if matrix.shape != (len(users), len(catalogue)):
        raise ValueError(
            f"the scores have shape {tuple(matrix.shape)} for {len(users)} users and "
            f"{len(catalogue)} items: expected [users, items]"
        )
    if np.isnan(values).any() or (values == np.inf).any():
        raise ValueError("the scores hold NaN or +inf: expected numbers (or -inf: never)")
    if sparse:
        mean = np.asarray(matrix.mean(axis=0), np.float64).ravel()
        count = np.bincount(matrix.indices, minlength=len(catalogue))
        mean[count == 0] = mean.min(initial=0) - 1  # items that nobody is to get: last
        arrays = [matrix.indptr, matrix.indices, matrix.data]

        def row(code: int) -> np.ndarray:
            scores = np.full(len(catalogue), -np.inf)
            own = slice(matrix.indptr[code], matrix.indptr[code + 1])
            scores[matrix.indices[own]] = matrix.data[own]
            return scores

    else:
        finite = np.isfinite(matrix)
        count = np.maximum(finite.sum(axis=0), 1)
        mean = np.where(finite, matrix, 0).sum(axis=0, dtype=np.float64) / count
        mean[~finite.any(axis=0)] = mean.min(initial=0) - 1  # items that nobody is to get: last
        arrays = [matrix]

        def row(code: int) -> np.ndarray:
            return matrix[code].astype(np.float64)

    version = digest({"kind": "scores"}, catalogue.item_ids, users, *arrays)
    return ScoredUsers(name, version, catalogue, users, row, mean)


def from_factors(
    user_factors: Any,
    item_factors: Any,
    user_ids: Iterable[str],
    item_ids: Iterable[str],
    *,
    user_biases: Any = None,
    item_biases: Any = None,
    name: str = "factors",
) -> ScoredUsers:
    """The score of user u for item i is x_u·y_i + b_u + b_i; factors are [users, d] and
    [items, d], biases (0 where not given) [users] and [items]."""
    catalogue, users = Catalogue(item_ids), distinct(user_ids)
    x, y = np.asarray(user_factors, np.float32), np.asarray(item_factors, np.float32)
    b_u = np.zeros(len(users), np.float32) if user_biases is None else user_biases
    b_i = np.zeros(len(catalogue), np.float32) if item_biases is None else item_biases
    b_u, b_i = np.asarray(b_u, np.float32).ravel(), np.asarray(b_i, np.float32).ravel()
    expected = {
        "user_factors": (x.shape, (len(users), *x.shape[1:])),
        "item_factors": (y.shape, (len(catalogue), *x.shape[1:])),
        "user_biases": (b_u.shape, (len(users),)),
        "item_biases": (b_i.shape, (len(catalogue),)),
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
    version = digest({"kind": "factors"}, catalogue.item_ids, users, x, y, b_u, b_i)
    return ScoredUsers(name, version, catalogue, users, row, mean)


def from_lightfm(
    model: Any,
    user_ids: Iterable[str],
    item_ids: Iterable[str],
    *,
    user_features: Any = None,
    item_features: Any = None,
    name: str = "lightfm",
) -> ScoredUsers:
    """A fitted LightFM model (anything with its `get_user_representations` and
    `get_item_representations`, which return biases and embeddings); ids in the order of its
    rows, features those that it was fitted with."""
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


# --- a file of recommendations ------------------------------------------------------------


def distinct(user_ids: Iterable[str]) -> tuple[str, ...]:
    users = tuple(user_ids)
    if len(set(users)) != len(users):
        raise ValueError(f"{len(users)} user ids were given, {len(set(users))} different ones")
    wrong = next((user for user in users if not isinstance(user, str)), None)
    if wrong is not None:
        raise ValueError(f"user id {wrong!r} is a {type(wrong).__name__}: ids are strings")
    return users
