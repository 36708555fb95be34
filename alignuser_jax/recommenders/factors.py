"""Users and items as vectors: what MF and LightGCN leave behind, and how a live history moves a
user. NumPy only, so that a simulation asks them without touching jax or a device.

A user's vector is `base + Σ_{i in live history} fold_i / √|live history|`, made so that the
history of training gives the trained vector back; a longer or shorter history, or that of
somebody unknown (whose base is the mean one), moves it by the same linear rule.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from alignuser_jax.recommenders.base import Catalogue
from alignuser_jax.records import RecommendationRequest, Slate

ROWS = 32
"""Rows of every product: a fixed shape, so that no answer depends on who else is asked for."""


@dataclass(frozen=True, eq=False)
class Factors:
    user_ids: tuple[str, ...]
    item_ids: tuple[str, ...]
    base: np.ndarray  # float32[n_users, d]
    fold: np.ndarray  # float32[n_items, d]
    items: np.ndarray  # float32[n_items, d]
    counts: np.ndarray  # float32[n_items], interactions in training: for whom nothing is known

    ARRAYS = ("base", "fold", "items", "counts")

    @cached_property
    def catalogue(self) -> Catalogue:
        return Catalogue(self.item_ids)

    @cached_property
    def user_codes(self) -> Mapping[str, int]:
        return {user: code for code, user in enumerate(self.user_ids)}

    @cached_property
    def mean_base(self) -> np.ndarray:
        return self.base.mean(0, dtype=np.float64).astype(np.float32)

    def arrays(self) -> dict[str, np.ndarray]:
        ids = {"user_ids": np.array(self.user_ids), "item_ids": np.array(self.item_ids)}
        return ids | {name: getattr(self, name) for name in self.ARRAYS}

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray]) -> Factors:
        ids = (tuple(arrays[name].tolist()) for name in ("user_ids", "item_ids"))
        return cls(*ids, *(arrays[name] for name in cls.ARRAYS))

    def user_vectors(
        self, requests: Sequence[RecommendationRequest], codes: Sequence[np.ndarray]
    ) -> np.ndarray:
        """float32[requests, d], from each request's `live_codes`."""
        made = np.empty((len(requests), self.items.shape[1]), np.float32)
        for row, (request, live) in enumerate(zip(requests, codes, strict=True)):
            known = self.user_codes.get(request.user_id)
            made[row] = self.mean_base if known is None else self.base[known]
            if len(live):
                made[row] += self.fold[live].sum(0) / np.float32(np.sqrt(len(live)))
        return made

    def recommend(self, requests: Sequence[RecommendationRequest]) -> list[Slate]:
        """The items with the largest products; the most popular ones for a request whose
        history and session hold no item of the catalogue."""

        def scores(some: Sequence[RecommendationRequest], codes: Sequence[np.ndarray]):
            return padded_product(self.user_vectors(some, codes), self.items.T)

        return top_slates(self.catalogue, self.counts, requests, scores)


def live_codes(
    catalogue: Catalogue, requests: Sequence[RecommendationRequest]
) -> list[np.ndarray]:
    """Each request's history and session as the distinct codes of known items, ascending."""
    return [
        catalogue.codes(i.item_id for part in (r.history, r.session) for i in part)
        for r in requests
    ]


def padded_product(rows: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """`rows @ matrix` for at most `ROWS` rows, computed as exactly `ROWS`."""
    full = np.zeros((ROWS, rows.shape[1]), np.float32)
    full[: len(rows)] = rows
    return (full @ matrix)[: len(rows)]


def top_slates(
    catalogue: Catalogue,
    counts: np.ndarray,
    requests: Sequence[RecommendationRequest],
    scores: Callable[[Sequence[RecommendationRequest], Sequence[np.ndarray]], np.ndarray],
) -> list[Slate]:
    """One slate per request, of `scores(at most ROWS requests, their live codes)`, or of
    `counts` where nothing that the request brings is in the catalogue."""
    slates: list[Slate] = []
    for start in range(0, len(requests), ROWS):
        some = requests[start : start + ROWS]
        codes = live_codes(catalogue, some)
        for request, live, row in zip(some, codes, scores(some, codes), strict=True):
            chosen = row if len(live) else counts
            slates.append(catalogue.slate(chosen, request.k, request.exclude))
    return slates
