"""Recommenders made worse in a known way, so that a simulated A/B test can be tested itself.

`Degraded` loses quality slot by slot. `ShuffledAcrossUsers` keeps which items are shown how
often and takes only the personalisation away, which is the most telling single control.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from alignuser_jax.datasets import Dataset, Log
from alignuser_jax.randomness import named_generator, stable_key
from alignuser_jax.recommenders.base import (
    ItemIndex,
    Saveable,
    digest,
    label_of,
    read_folder,
    refit,
    version_of,
    write_folder,
)
from alignuser_jax.records import Interaction, RecommendationRequest, Recommender, Slate

INNER = "inner"
"""Folder of the wrapped recommender, inside the folder of what wraps it."""
LoadInner = Callable[[Path], Recommender]
"""Loads a recommender of any kind: `loading.load_saved`, which imports this module."""


def _save_inner(inner: Recommender, directory: str | Path) -> None:
    if not isinstance(inner, Saveable):
        raise ValueError(
            f"{label_of(inner)} has no save(dir), so what wraps it cannot be saved either: "
            "wrap it again in your own module and pass module:attr instead of a folder"
        )
    inner.save(Path(directory) / INNER)


class Degraded:
    """A recommender with a share of each slate's slots given to random items.

    A slate of k gets ⌊share · k⌋ random slots or one more, so that the share is right on
    average. Random items are never excluded ones nor ones that the inner slate already shows;
    where no other items are left the inner ones stay. The draws depend on (seed, user, request
    seed, page).

    Example:
        >>> popularity = Popularity().fit(dataset, dataset.log)
        >>> control = Degraded(popularity, random_share=0.5, item_ids=dataset.item_ids)
        >>> control.name
        'popularity-random0.5'

    Args:
        inner: the recommender to make worse.
        random_share: 0 to 1.
        item_ids: the items to draw from.
        seed: another seed draws other items.
        name: for tables; made of the inner name and the share when it is not given.
    """

    stateful = False

    def __init__(
        self,
        inner: Recommender,
        random_share: float,
        item_ids: Iterable[str],
        seed: int = 0,
        name: str = "",
    ):
        if not 0 <= random_share <= 1:
            raise ValueError(f"random_share is a share between 0 and 1, not {random_share}")
        self.inner, self.random_share, self.seed = inner, float(random_share), seed
        self.index = ItemIndex(sorted(item_ids))
        self.name = name or f"{label_of(inner)}-random{random_share:g}"
        self.version = digest(
            {
                "kind": "degraded",
                "inner": version_of(inner),
                "share": self.random_share,
                "seed": seed,
            },
            self.item_ids,
        )

    @property
    def item_ids(self) -> tuple[str, ...]:
        """The items that random slots are drawn from, sorted."""
        return self.index.item_ids

    def fit(self, dataset: Dataset, log: Log) -> Degraded:
        """Return the same control of the inner recommender fitted on `log`."""
        inner = refit(self.inner, dataset, log)
        return Degraded(inner, self.random_share, self.item_ids, self.seed, self.name)

    def recommend(self, requests: Sequence[RecommendationRequest]) -> list[Slate]:
        """Return the inner slates with some of their slots replaced."""
        slates = self.inner.recommend(requests)
        return [self._degrade(r, s) for r, s in zip(requests, slates, strict=True)]

    def _degrade(self, request: RecommendationRequest, slate: Slate) -> Slate:
        items = list(slate.item_ids)
        draw = named_generator(
            "degraded", self.seed, request.user_id, request.seed, request.page
        )
        count = int(self.random_share * len(items) + draw.random())
        slots = draw.permutation(len(items))[:count]
        keys = draw.random(len(self.index), np.float32)
        codes, _ = self.index.top(keys, count, request.exclude.union(items))
        for slot, code in zip(slots, codes, strict=False):
            items[slot] = self.item_ids[code]
        return Slate(tuple(items))

    def save(self, directory: str | Path) -> None:
        """Write a folder that `load_recommender` reads, the inner recommender inside it."""
        _save_inner(self.inner, directory)
        settings = {"random_share": self.random_share, "seed": self.seed, "name": self.name}
        about = {"version": self.version, "settings": settings}
        write_folder(directory, "degraded", about, item_ids=np.array(self.item_ids))

    @classmethod
    def load(cls, directory: str | Path, load_inner: LoadInner) -> Degraded:
        """Read what `save` wrote; `load_inner` reads the inner folder."""
        about, arrays = read_folder(directory, "degraded")
        inner = load_inner(Path(directory) / INNER)
        return cls(inner, item_ids=arrays["item_ids"].tolist(), **about["settings"])


class ShuffledAcrossUsers:
    """A recommender that answers each user with what `inner` would show to another user.

    Which user stands for which is one fixed cycle through all users of `histories`, drawn from
    the seed, so nobody stands for themselves and each stands for one. A user outside
    `histories` gets a fixed one of them. The user's own session is not passed on. What the user
    excludes is, and the other's history is excluded too, as it would be for them.

    Example:
        >>> log = dataset.log.of_split("train")
        >>> control = ShuffledAcrossUsers.of(ALS(factors=8).fit(dataset, log), dataset, log)
        >>> control.name
        'als-shuffled'

    Args:
        inner: the recommender to ask.
        histories: user id to what that user did, of at least two users.
        seed: another seed makes another cycle.
        name: for tables; made of the inner name when it is not given.
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
        order = named_generator("shuffled", seed).permutation(len(users))
        self.users = tuple(users)
        self.partner: dict[str, str] = {
            users[a]: users[b] for a, b in zip(order, np.roll(order, -1), strict=True)
        }
        self.name = name or f"{label_of(inner)}-shuffled"
        about = {"kind": "shuffled", "inner": version_of(inner), "seed": seed}
        self.version = digest(about, *self._history_arrays().values())

    @classmethod
    def of(
        cls, inner: Recommender, dataset: Dataset, log: Log, seed: int = 0, name: str = ""
    ) -> ShuffledAcrossUsers:
        """Return the control with the histories of every user of `log`."""
        users = [dataset.user_ids[code] for code in np.unique(log.user)]
        return cls(inner, {user: dataset.history(log, user) for user in users}, seed, name)

    def fit(self, dataset: Dataset, log: Log) -> ShuffledAcrossUsers:
        """Return the control of the inner recommender fitted on `log`, with its histories."""
        inner = refit(self.inner, dataset, log)
        return ShuffledAcrossUsers.of(inner, dataset, log, self.seed, self.name)

    @property
    def item_ids(self) -> tuple[str, ...]:
        """The items of the inner recommender, empty when it does not say."""
        return getattr(self.inner, "item_ids", ())

    def partner_of(self, user_id: str) -> str:
        """Return the user whose slate this user is shown."""
        other = self.partner.get(user_id)
        if other is None:
            other = self.users[stable_key("shuffled", self.seed, user_id) % len(self.users)]
        return other

    def recommend(self, requests: Sequence[RecommendationRequest]) -> list[Slate]:
        """Return what the inner recommender would show to each user's partner."""
        partner_requests = []
        for request in requests:
            other = self.partner_of(request.user_id)
            history = self.histories[other]
            exclude = request.exclude.union(i.item_id for i in history)
            partner_requests.append(
                replace(request, user_id=other, history=history, session=(), exclude=exclude)
            )
        slates = list(self.inner.recommend(partner_requests))
        # a catalogue so small that the other's history uses it up: fill from that history
        short = [n for n, r in enumerate(requests) if len(slates[n].item_ids) < r.k]
        if short:
            wider = [
                replace(
                    partner_requests[n],
                    exclude=requests[n].exclude.union(slates[n].item_ids),
                    k=requests[n].k - len(slates[n].item_ids),
                )
                for n in short
            ]
            for n, more in zip(short, self.inner.recommend(wider), strict=True):
                slates[n] = Slate(slates[n].item_ids + more.item_ids)
        return slates

    def _history_arrays(self) -> dict[str, np.ndarray]:
        """Return the histories as columns: all interactions, and how many each user has."""
        rows = [row for user in self.users for row in self.histories[user]]
        return {
            "users": np.array(self.users),
            "lengths": np.array([len(self.histories[user]) for user in self.users], np.int64),
            "items": np.array([row.item_id for row in rows], dtype=np.str_),
            "ratings": np.array([row.rating for row in rows], np.float64),
            "timestamps": np.array([row.timestamp for row in rows], np.int64),
        }

    def save(self, directory: str | Path) -> None:
        """Write a folder that `load_recommender` reads, the inner recommender inside it."""
        _save_inner(self.inner, directory)
        settings = {"seed": self.seed, "name": self.name}
        about = {"version": self.version, "settings": settings}
        write_folder(directory, "shuffled", about, **self._history_arrays())

    @classmethod
    def load(cls, directory: str | Path, load_inner: LoadInner) -> ShuffledAcrossUsers:
        """Read what `save` wrote; `load_inner` reads the inner folder."""
        about, arrays = read_folder(directory, "shuffled")
        columns = (arrays[name].tolist() for name in ("items", "ratings", "timestamps"))
        rows = map(Interaction, *columns)
        histories = {
            user: tuple(next(rows) for _ in range(length))
            for user, length in zip(
                arrays["users"].tolist(), arrays["lengths"].tolist(), strict=True
            )
        }
        return cls(load_inner(Path(directory) / INNER), histories, **about["settings"])
