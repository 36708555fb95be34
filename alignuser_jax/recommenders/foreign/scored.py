"""A recommender of scores that come from elsewhere, one row of them for each request.

Where a row has too few items, or there is no row for a user, the items that most users would
get follow, so that a slate is as full as the catalogue allows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from absl import logging

from alignuser_jax.recommenders.base import ItemIndex
from alignuser_jax.records import RecommendationRequest, Slate

Score = Callable[[RecommendationRequest], np.ndarray | None]
"""From a request to float[n_items], -inf for an item that must not be recommended, or to `None`
when nothing is known of the user."""


class ScoredRecommender:
    """The best items by `score`, and then by `fallback`.

    Attributes:
        name: for tables.
        version: names the scores, or the model that computes them.
        index: the items.
        score: the scores of a request, or `None`.
        fallback: float32[n_items], finite: the scores of a user that `score` does not know, and
            the order of what follows when a user's own items are used up.
    """

    stateful = False

    def __init__(
        self, name: str, version: str, index: ItemIndex, score: Score, fallback: np.ndarray
    ):
        self.name, self.version, self.index = name, version, index
        self.score, self.fallback = score, np.asarray(fallback, np.float32)

    @property
    def item_ids(self) -> tuple[str, ...]:
        """The items that it may show."""
        return self.index.item_ids

    def recommend(self, requests: Sequence[RecommendationRequest]) -> list[Slate]:
        """Return one slate for each request."""
        return [self._slate(request) for request in requests]

    def _slate(self, request: RecommendationRequest) -> Slate:
        scores = self.score(request)
        scores = self.fallback if scores is None else np.asarray(scores)
        codes = np.flatnonzero(np.isfinite(scores))
        if len(codes) == len(self.index):
            return self.index.slate(scores, request.k, request.exclude)
        codes = np.setdiff1d(codes, self.index.codes(request.exclude), assume_unique=True)
        best = codes[np.argsort(-scores[codes], kind="stable")][: request.k]
        ids = tuple(self.item_ids[code] for code in best)
        if len(ids) == request.k:
            return Slate(ids, tuple(scores[best].tolist()))
        missing, exclude = request.k - len(ids), request.exclude.union(ids)
        more = self.index.slate(self.fallback, missing, exclude)
        if more.item_ids:
            logging.log_first_n(
                logging.WARNING,
                "%s has only %d more items for user %r; what most users get follows",
                1, self.name, len(ids), request.user_id,
            )  # fmt: skip
        return Slate(ids + more.item_ids)  # without scores: the two kinds do not compare


def score_by_user(user_ids: Sequence[str], row: Callable[[int], np.ndarray]) -> Score:
    """Return the score function of users that are known by id alone.

    Args:
        user_ids: a user's place in it is the user's code.
        row: from a user's code to the user's scores.
    """
    code_of = {user: code for code, user in enumerate(user_ids)}

    def score(request: RecommendationRequest) -> np.ndarray | None:
        code = code_of.get(request.user_id)
        return None if code is None else row(code)

    return score


def distinct_users(user_ids: Iterable[str]) -> tuple[str, ...]:
    """Return the ids as a tuple.

    Raises:
        ValueError: if an id occurs twice or is no string.
    """
    users = tuple(user_ids)
    if len(set(users)) != len(users):
        raise ValueError(f"{len(users)} user ids were given, {len(set(users))} different ones")
    wrong = next((user for user in users if not isinstance(user, str)), None)
    if wrong is not None:
        raise ValueError(
            f"user id {wrong!r} is a {type(wrong).__name__}: ids are strings, so convert them "
            "with str"
        )
    return users
