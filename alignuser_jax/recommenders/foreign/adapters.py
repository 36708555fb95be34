"""Recommenders of other libraries, and functions, behind `recommend(requests)`.

Each takes the fitted object and its ids, and puts the live history of each request where the
library can use it; no library is imported here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from alignuser_jax.recommenders.base import Catalogue
from alignuser_jax.recommenders.foreign.recs_file import from_recs_file
from alignuser_jax.recommenders.foreign.scores import ScoredUsers, filled_slate
from alignuser_jax.recommenders.http.remote import HttpRecommender, from_http
from alignuser_jax.records import RecommendationRequest, Slate


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


# --- Cornac -------------------------------------------------------------------------------


# --- RecBole ------------------------------------------------------------------------------


def from_recbole(where: str | Path) -> HttpRecommender | ScoredUsers:
    """A RecBole model that lives in its own environment: the URL at which `recbole_side.py`
    serves it there (sequential models then see the live session), or the file it exported."""
    text = str(where)
    return from_http(text) if text.startswith(("http://", "https://")) else from_recs_file(text)


# --- a function ---------------------------------------------------------------------------
