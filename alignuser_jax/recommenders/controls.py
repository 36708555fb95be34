"""Recommenders made worse in a known way, so that a simulated A/B test can be tested itself.

`Degraded` loses quality slot by slot; `ShuffledAcrossUsers` keeps which items are shown how
often and takes only the personalisation away, the most telling single control.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from alignuser_jax.datasets import Dataset, Log
from alignuser_jax.randomness import stable_key
from alignuser_jax.recommenders.base import Catalogue, digest, generator, read, write
from alignuser_jax.records import Interaction, RecommendationRequest, Recommender, Slate

INNER = "inner"


def _version(recommender: object) -> str:
    return str(getattr(recommender, "version", ""))


def _name(recommender: object) -> str:
    return str(getattr(recommender, "name", "") or type(recommender).__name__)


def _save_inner(inner: object, directory: str | Path) -> None:
    if not hasattr(inner, "save"):
        raise ValueError(
            f"{_name(inner)} has no save(dir), so what wraps it cannot be saved either: "
            "wrap it again in your own module and pass module:attr instead of a folder"
        )
    inner.save(Path(directory) / INNER)


class Degraded:
    """`inner` with `random_share` of each slate's slots taken over by random items.

    A slate of k gets ⌊share · k⌋ random slots or one more, so that the share is right on
    average. Random items are never excluded ones nor ones the inner slate already shows; where
    the catalogue is used up the inner items stay. The draws depend on (seed, user, request
    seed, page).
    """

    stateful = False

    def __init__(
        self,
        inner: Recommender,
        random_share: float,
        catalogue: Iterable[str],
        seed: int = 0,
        name: str = "",
    ):
        if not 0 <= random_share <= 1:
            raise ValueError(f"random_share is a share between 0 and 1, not {random_share}")
        self.inner, self.random_share, self.seed = inner, float(random_share), seed
        self.catalogue = Catalogue(sorted(catalogue))
        self.name = name or f"{_name(inner)}-random{random_share:g}"
        self.version = digest(
            {
                "kind": "degraded",
                "inner": _version(inner),
                "share": self.random_share,
                "seed": seed,
            },
            self.item_ids,
        )

    @property
    def item_ids(self) -> tuple[str, ...]:
        return self.catalogue.item_ids

    def fit(self, dataset: Dataset, log: Log) -> Degraded:
        inner = copy.copy(self.inner).fit(dataset, log)  # ours may be shared by others
        return Degraded(inner, self.random_share, self.item_ids, self.seed, self.name)

    def recommend(self, requests: Sequence[RecommendationRequest]) -> list[Slate]:
        slates = self.inner.recommend(requests)
        return [self._degrade(r, s) for r, s in zip(requests, slates, strict=True)]

    def _degrade(self, request: RecommendationRequest, slate: Slate) -> Slate:
        items = list(slate.item_ids)
        draw = generator("degraded", self.seed, request.user_id, request.seed, request.page)
        count = int(self.random_share * len(items) + draw.random())
        slots = draw.permutation(len(items))[:count]
        keys = draw.random(len(self.catalogue), np.float32)
        codes, _ = self.catalogue.top(keys, count, request.exclude.union(items))
        for slot, code in zip(slots, codes, strict=False):
            items[slot] = self.catalogue.item_ids[code]
        return Slate(tuple(items))

    def save(self, directory: str | Path) -> None:
        _save_inner(self.inner, directory)
        settings = {"random_share": self.random_share, "seed": self.seed, "name": self.name}
        write(
            directory,
            "degraded",
            {"version": self.version, "settings": settings},
            item_ids=np.array(self.item_ids),
        )

    @classmethod
    def load(cls, directory: str | Path, load_inner: Callable[[Path], Recommender]) -> Degraded:
        stored, arrays = read(directory, "degraded")
        inner = load_inner(Path(directory) / INNER)
        return cls(inner, catalogue=arrays["item_ids"].tolist(), **stored["settings"])


class ShuffledAcrossUsers:
    """Answers each user with what `inner` would show to another user.

    `histories` holds what that other user did; who stands for whom is one fixed cycle through
    all its users drawn from `seed`, so nobody stands for themselves and each stands for one. A
    user outside `histories` gets a fixed one of them. The user's own session is not passed on;
    the own `exclude` is, and the other's history is excluded too, as it would be for them.
    """

    stateful = False

    def __init__(
        self,
        inner: Recommender,
        histories: Mapping[str, tuple[Interaction, ...]],
        seed: int = 0,
        name: str = "",
    ):
        users = sorted(histories)
        if len(users) < 2:
            raise ValueError(
                f"shuffling across users needs histories of at least 2 users, not {len(users)}"
            )
        self.inner, self.histories, self.seed = inner, dict(histories), seed
        order = generator("shuffled", seed).permutation(len(users))
        self.users = tuple(users)
        self.partner: dict[str, str] = {
            users[a]: users[b] for a, b in zip(order, np.roll(order, -1), strict=True)
        }
        self.name = name or f"{_name(inner)}-shuffled"
        self.version = digest(
            {"kind": "shuffled", "inner": _version(inner), "seed": seed}, *self._flat().values()
        )

    @classmethod
    def of(cls, inner: Recommender, dataset: Dataset, log: Log, seed: int = 0, name: str = ""):
        """With the histories of every user of `log`."""
        users = [dataset.user_ids[code] for code in np.unique(log.user)]
        return cls(inner, {user: dataset.history(log, user) for user in users}, seed, name)

    def fit(self, dataset: Dataset, log: Log) -> ShuffledAcrossUsers:
        inner = copy.copy(self.inner).fit(dataset, log)  # ours may be shared by others
        return ShuffledAcrossUsers.of(inner, dataset, log, self.seed, self.name)

    @property
    def item_ids(self) -> tuple[str, ...]:
        return getattr(self.inner, "item_ids", ())

    def partner_of(self, user_id: str) -> str:
        other = self.partner.get(user_id)
        if other is None:
            other = self.users[stable_key("shuffled", self.seed, user_id) % len(self.users)]
        return other

    def recommend(self, requests: Sequence[RecommendationRequest]) -> list[Slate]:
        asked = []
        for request in requests:
            other = self.partner_of(request.user_id)
            history = self.histories[other]
            exclude = request.exclude.union(i.item_id for i in history)
            asked.append(
                replace(request, user_id=other, history=history, session=(), exclude=exclude)
            )
        slates = list(self.inner.recommend(asked))
        # a catalogue so small that the other's history uses it up: fill from that history
        short = [n for n, r in enumerate(requests) if len(slates[n].item_ids) < r.k]
        if short:
            wider = [
                replace(
                    asked[n],
                    exclude=requests[n].exclude.union(slates[n].item_ids),
                    k=requests[n].k - len(slates[n].item_ids),
                )
                for n in short
            ]
            for n, more in zip(short, self.inner.recommend(wider), strict=True):
                slates[n] = Slate(slates[n].item_ids + more.item_ids)
        return slates

    def _flat(self) -> dict[str, np.ndarray]:
        rows = [row for user in self.users for row in self.histories[user]]
        return {
            "users": np.array(self.users),
            "lengths": np.array([len(self.histories[user]) for user in self.users], np.int64),
            "items": np.array([row.item_id for row in rows], dtype=np.str_),
            "ratings": np.array([row.rating for row in rows], np.float64),
            "timestamps": np.array([row.timestamp for row in rows], np.int64),
        }

    def save(self, directory: str | Path) -> None:
        _save_inner(self.inner, directory)
        settings = {"seed": self.seed, "name": self.name}
        write(
            directory,
            "shuffled",
            {"version": self.version, "settings": settings},
            **self._flat(),
        )

    @classmethod
    def load(
        cls, directory: str | Path, load_inner: Callable[[Path], Recommender]
    ) -> ShuffledAcrossUsers:
        stored, flat = read(directory, "shuffled")
        rows = map(
            Interaction,
            flat["items"].tolist(),
            flat["ratings"].tolist(),
            flat["timestamps"].tolist(),
        )
        histories = {
            user: tuple(next(rows) for _ in range(length))
            for user, length in zip(
                flat["users"].tolist(), flat["lengths"].tolist(), strict=True
            )
        }
        return cls(load_inner(Path(directory) / INNER), histories, **stored["settings"])
