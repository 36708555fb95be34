"""`RecSysEnv`: the recommender acts, one slate a step, and a user inside responds."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from alignuser_jax import records
from alignuser_jax.recommenders.base import Catalogue
from alignuser_jax.records import (
    LIKED_FROM,
    Interaction,
    Item,
    Outcome,
    RecommendationRequest,
    Slate,
)
from alignuser_jax.world.gym.staged import Seen, StagedEnv
from alignuser_jax.world.site.site import RecommendationSite

Visit = Generator[records.Request | RecommendationRequest, Any, Outcome]
UserModel = Callable[[str, int], Visit]
"""(user id, seed) -> one visit: a coroutine that yields what it wants to know, is sent the
answer and returns its outcome. `agents.session` makes one of a language-model agent,
`people.BehaviouralUsers` one without a model."""
Reward = Callable[[Sequence[Interaction]], float]


def likes(rated: Sequence[Interaction]) -> float:
    """How many of a step's ratings are likes (4 or 5)."""
    return float(sum(past.rating >= LIKED_FROM for past in rated))


def item_features(
    items: Mapping[str, Item], mean_ratings: Mapping[str, float]
) -> tuple[np.ndarray, tuple[str, ...]]:
    """float32[n_items, n_genres + 1] in -1 to 1 and the column names: each genre's share of the
    item's genres, then its mean rating (1 to 5 as -1 to 1; 0 where nobody rated it).
    """
    genres = sorted({genre for item in items.values() for genre in item.genres})
    column = {genre: n for n, genre in enumerate(genres)}
    features = np.zeros((len(items), len(genres) + 1), np.float32)
    for row, (item_id, item) in enumerate(items.items()):
        for genre in set(item.genres):
            features[row, column[genre]] = 1 / len(set(item.genres))
        features[row, -1] = (mean_ratings.get(item_id, 3.0) - 3) / 2
    return features, (*genres, "mean rating")


class RecSysEnv(StagedEnv):
    """Action: the codes of a slate's items, best first (`item_ids[code]`).

    Observation: `history` and `session`, what the user rated before this visit and in it, as
    the mean of the items' features, each times its rating (1 to 5 as -1 to 1); `page`.
    Reward: `reward` of the ratings that the step brought, by default the number of likes.
    Info: `user_id`; `action_mask` int8[n_items], 1 for what may be shown; after a step `slate`
    (item ids as shown), `rated` float32[k] (0: not rated), `replaced`; at the end `outcome`.

    A code that repeats or is masked is replaced by the next one that may be shown, and counted
    in `replaced`; with `strict` it is refused with ValueError. `generator` answers users that
    are language models, all environments' requests at once.
    """

    def __init__(
        self,
        site: RecommendationSite,
        users: UserModel,
        user_ids: Sequence[str] | None = None,
        *,
        generator: records.Generator | None = None,
        reward: Reward = likes,
        strict: bool = False,
    ):
        known = [*site.histories] if user_ids is None else user_ids
        super().__init__(known, lambda user: not site.reset(user, 0).terminal)
        self.site, self.users, self.generator = site, users, generator
        self.catalogue = Catalogue(site.items)
        self.item_ids = self.catalogue.item_ids
        self.features, self.feature_names = item_features(site.items, site.mean_ratings)
        self._reward_of, self._strict = reward, strict
        size = min(site.config.items_per_page, len(self.item_ids))
        profile = spaces.Box(-1, 1, (self.features.shape[1],), np.float32)
        self.observation_space = spaces.Dict(
            {
                "history": profile,
                "page": spaces.Discrete(site.config.last_page, start=1),
                "session": profile,
            }
        )
        self.action_space = spaces.MultiDiscrete([len(self.item_ids)] * size)
        self._visit: Visit | None = None
        self._question: Any = None

    def open(self, user_id: str, seed: int) -> None:
        if self._visit is not None:
            self._visit.close()
        self._request = RecommendationRequest(user_id, ())
        self._outcome: Outcome | None = None
        self._slate: tuple[str, ...] | None = None
        self._shown: set[str] = set()
        self._free = np.ones(len(self.item_ids), np.int8)
        self._history = _Profile(self.features, self.catalogue)
        self._session = _Profile(self.features, self.catalogue)
        self._visit = self.users(user_id, seed)
        self.send(None)

    def check(self, action: Any) -> None:
        if not isinstance(self._question, RecommendationRequest):
            raise gymnasium.error.ResetNeeded("the visit is over: reset() before step()")
        self._valid_codes(action, self._question.k)

    def act(self, action: Any) -> None:
        codes, self._replaced = self._valid_codes(action, self._question.k)
        self._slate = tuple(self.item_ids[code] for code in codes)
        self._shown.update(self._slate)
        self.send(Slate(self._slate))

    def send(self, answer: Any) -> None:
        """Go on with the visit to its next question or its end."""
        try:
            self._question = self._visit.send(answer)
        except StopIteration as end:
            self._question, self._outcome = None, end.value

    @staticmethod
    def settle(envs: Sequence[RecSysEnv]) -> None:
        """Answer what the users ask of their language model until each wants a slate or has
        left.
        """
        generator, tickets = envs[0].generator, {}

        def submit(env: RecSysEnv) -> None:
            if env._question is None or isinstance(env._question, RecommendationRequest):
                return
            if not isinstance(env._question, records.Request):
                raise TypeError(
                    f"the user model asked a {type(env._question).__name__}; it may ask for a "
                    "RecommendationRequest or a Request to a language model"
                )
            if generator is None:
                raise ValueError(
                    "the user model asks a language model: give RecSysEnv(generator=...), for "
                    "example an engine"
                )
            tickets[generator.submit(env._question)] = env

        for env in envs:
            submit(env)
        while tickets:
            answered = generator.collect()
            if not answered:
                raise RuntimeError(f"the generator owes {len(tickets)} replies and has none")
            for ticket, completion in answered:
                env = tickets.pop(ticket)
                env.send(completion)
                submit(env)

    def seen(self) -> Seen:
        before, over = self._request, self._question is None
        session = self._outcome.state.session if over else self._question.session
        new = session[len(before.session) :]
        if not over:
            self._request = self._question
            excluded = self._request.exclude - before.exclude
            self._free[self.catalogue.codes(excluded)] = 0
        if self._slate is None:
            self._history.add(self._request.history)
        self._session.add(new)
        info: dict[str, Any] = {"user_id": self._request.user_id}
        info["action_mask"] = np.zeros_like(self._free) if over else self._free.copy()
        reward = 0.0
        if self._slate is not None:
            reward = float(self._reward_of([r for r in new if r.item_id in self._shown]))
            rated = np.zeros(self.action_space.shape, np.float32)
            for past in new:
                if past.item_id in self._slate:
                    rated[self._slate.index(past.item_id)] = past.rating
            info |= {"slate": self._slate, "rated": rated, "replaced": self._replaced}
        if over:
            info["outcome"] = self._outcome
        observation = {
            "history": self._history.mean(),
            "page": np.int64(self._request.page),
            "session": self._session.mean(),
        }
        return observation, reward, over, info

    def close(self) -> None:
        if self._visit is not None:
            self._visit.close()

    def _valid_codes(self, action: Any, k: int) -> tuple[list[int], int]:
        """The slate's codes, valid, and how many had to be replaced."""
        asked, size = np.asarray(action), self.action_space.shape
        whole = asked.shape == size and asked.dtype.kind in "iu"
        if not whole or not 0 <= asked.min() <= asked.max() < len(self.item_ids):
            raise ValueError(
                f"action {action!r}: expected {size[0]} codes from 0 to "
                f"{len(self.item_ids) - 1}"
            )
        free = self._free.astype(np.bool_)
        left = int(np.count_nonzero(free))
        codes, replaced = [], 0
        for code in asked.tolist()[: min(k, left)]:
            if not free[code]:
                if self._strict:
                    raise ValueError(
                        f"code {code} ({self.item_ids[code]!r}) may not be shown: it repeats "
                        "or info['action_mask'] has 0 for it"
                    )
                after = np.flatnonzero(free[code:])
                code = code + int(after[0]) if len(after) else int(np.flatnonzero(free)[0])
                replaced += 1
            free[code] = False
            codes.append(code)
        return codes, replaced


class _Profile:
    """The mean of rated items' features, each times its rating (1 to 5 as -1 to 1)."""

    def __init__(self, features: np.ndarray, catalogue: Catalogue):
        self._features, self._code = features, catalogue.index
        self._total, self._count = np.zeros(features.shape[1]), 0

    def add(self, interactions: Sequence[Interaction]) -> None:
        known = [r for r in interactions if r.item_id in self._code]
        if known:
            codes = [self._code[r.item_id] for r in known]
            weights = [min(max((r.rating - 3) / 2, -1.0), 1.0) for r in known]
            self._total += np.array(weights) @ self._features[codes]
            self._count += len(known)

    def mean(self) -> np.ndarray:
        """float32[d] in -1 to 1; zeros where nothing was rated."""
        mean = self._total / max(self._count, 1)
        return np.minimum(np.maximum(mean, -1), 1).astype(np.float32)
