"""Users and items as vectors: the learned model of MF and LightGCN, and top-k from live scores.

NumPy only, so that a simulation can ask for slates without touching jax or a device.

A user's vector is `base + Σ_{i in live history} fold_i / √|live history|`. Training makes
`base` and `fold` so that the training history gives the trained vector back. A longer or
shorter history moves the vector by the same linear rule, and so does the history of an unknown
user, whose base is the mean one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from alignuser_jax.recommenders.base import ItemIndex
from alignuser_jax.records import RecommendationRequest, Slate


@dataclass(frozen=True, eq=False)
class Factors:
    """The vectors of users and items, and how a history moves a user.

    Attributes:
        user_ids: users of the training log, in the order of `base`.
        item_ids: items of the training log, in the order of `items`.
        base: float32[n_users, d], the part of a user's vector that no history moves.
        fold: float32[n_items, d], what an item of the history adds to a user's vector.
        items: float32[n_items, d], the vectors that items are scored with.
        counts: float32[n_items], interactions in training; the scores of a request that holds
            no known item.
    """

    user_ids: tuple[str, ...]
    item_ids: tuple[str, ...]
    base: np.ndarray
    fold: np.ndarray
    items: np.ndarray
    counts: np.ndarray

    @cached_property
    def index(self) -> ItemIndex:
        """The index of `item_ids`."""
        return ItemIndex(self.item_ids)

    @cached_property
    def user_codes(self) -> Mapping[str, int]:
        """User id to row of `base`."""
        return {user: code for code, user in enumerate(self.user_ids)}

    @cached_property
    def mean_base(self) -> np.ndarray:
        """The base of an unknown user, float32[d]."""
        return self.base.mean(0, dtype=np.float64).astype(np.float32)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return everything as named arrays, from which `from_arrays` makes the same again."""
        return {
            "user_ids": np.array(self.user_ids),
            "item_ids": np.array(self.item_ids),
            "base": self.base,
            "fold": self.fold,
            "items": self.items,
            "counts": self.counts,
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Factors:
        """Return the factors that `arrays` describes."""
        return cls(
            user_ids=tuple(arrays["user_ids"].tolist()),
            item_ids=tuple(arrays["item_ids"].tolist()),
            **{name: arrays[name] for name in ("base", "fold", "items", "counts")},
        )

    def user_vector(self, request: RecommendationRequest, live: np.ndarray) -> np.ndarray:
        """Return the user's vector, float32[d], from the request's `live_codes`."""
        code = self.user_codes.get(request.user_id)
        vector = self.mean_base if code is None else self.base[code]
        if len(live):
            vector = vector + self.fold[live].sum(0) / np.float32(np.sqrt(len(live)))
        return vector

    def recommend(self, requests: Sequence[RecommendationRequest]) -> list[Slate]:
        """Return the items whose vectors have the largest products with the user's."""

        def scores(request: RecommendationRequest, live: np.ndarray) -> np.ndarray:
            return self.items @ self.user_vector(request, live)

        return top_slates(self.index, self.counts, requests, scores)


def live_codes(index: ItemIndex, request: RecommendationRequest) -> np.ndarray:
    """Return the codes of a request's history and session: int64[m], distinct, ascending."""
    return index.codes(i.item_id for part in (request.history, request.session) for i in part)


def top_slates(
    index: ItemIndex,
    counts: np.ndarray,
    requests: Sequence[RecommendationRequest],
    scores: Callable[[RecommendationRequest, np.ndarray], np.ndarray],
) -> list[Slate]:
    """Return one slate for each request, scored by what its history and session hold.

    Requests are scored one at a time. In a product of many rows the bits of a row depend, on
    some CPUs, on its place among the others (AVX-512 kernels of OpenBLAS).

    Args:
        index: the items.
        counts: float32[n_items], the scores of a request that holds no known item.
        requests: what to answer.
        scores: from a request and its `live_codes` to float32[n_items].
    """
    slates: list[Slate] = []
    for request in requests:
        live = live_codes(index, request)
        values = scores(request, live) if len(live) else counts
        slates.append(index.slate(values, request.k, request.exclude))
    return slates
