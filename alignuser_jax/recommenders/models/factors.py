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

    def user_vector(self, request: RecommendationRequest, live: np.ndarray) -> np.ndarray:
        """float32[d], from the request's `live_codes`."""
        known = self.user_codes.get(request.user_id)
        vector = self.mean_base if known is None else self.base[known]
        if len(live):
            vector = vector + self.fold[live].sum(0) / np.float32(np.sqrt(len(live)))
        return vector

    def recommend(self, requests: Sequence[RecommendationRequest]) -> list[Slate]:
        """The items with the largest products; the most popular ones for a request whose
        history and session hold no item of the catalogue."""

        def scores(request: RecommendationRequest, live: np.ndarray) -> np.ndarray:
            return self.items @ self.user_vector(request, live)

        return top_slates(self.catalogue, self.counts, requests, scores)


def live_codes(catalogue: Catalogue, request: RecommendationRequest) -> np.ndarray:
    """The request's history and session as the distinct codes of known items, ascending."""
    return catalogue.codes(
        i.item_id for part in (request.history, request.session) for i in part
    )


def top_slates(
    catalogue: Catalogue,
    counts: np.ndarray,
    requests: Sequence[RecommendationRequest],
    scores: Callable[[RecommendationRequest, np.ndarray], np.ndarray],
) -> list[Slate]:
    """One slate per request, of `scores(request, its live codes)`, or of `counts` where nothing
    that the request brings is in the catalogue.

    One request at a time: in a product of many rows the bits of a row depend, on some CPUs, on
    its place among the others (AVX-512 kernels of OpenBLAS).
    """
    slates: list[Slate] = []
    for request in requests:
        live = live_codes(catalogue, request)
        chosen = scores(request, live) if len(live) else counts
        slates.append(catalogue.slate(chosen, request.k, request.exclude))
    return slates
