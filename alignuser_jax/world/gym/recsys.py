"""`RecSysEnv`: a Gymnasium environment in which a recommender acts and a user responds."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from alignuser_jax import records
from alignuser_jax.recommenders.base import ItemIndex
from alignuser_jax.records import (
    LIKED_FROM,
    Interaction,
    Item,
    Outcome,
    RecommendationRequest,
    Slate,
)
from alignuser_jax.world.gym.staged import StagedEnv, StepResult
from alignuser_jax.world.site.site import RecommendationSite

VisitCoroutine = Generator[records.Request | RecommendationRequest, Any, Outcome]
"""One visit: yields requests, is sent the answers and returns the outcome."""
UserModel = Callable[[str, int], VisitCoroutine]
"""(user id, seed) -> one visit. `agents.session` makes that of a language-model agent,
`people.BehaviouralUsers` one without a model."""
SlateReward = Callable[[Sequence[Interaction]], float]
"""The ratings that a slate got -> its reward."""


def likes(rated: Sequence[Interaction]) -> float:
    """Return how many of the ratings are likes (4 or 5)."""
    return float(sum(past.rating >= LIKED_FROM for past in rated))


def item_features(
    items: Mapping[str, Item], mean_ratings: Mapping[str, float]
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return what an agent may know of each item.

    Args:
        items: The catalogue.
        mean_ratings: The mean rating by item id.

    Returns:
        float32[n_items, n_genres + 1] in -1 to 1, and the names of its columns: each genre's
        share of the item's genres, then the mean rating (1 to 5 as -1 to 1; 0 if nobody rated
        the item).
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
    """The recommender acts, one slate a step, and a user inside responds.

    Action: the codes of a slate's items, best first (`item_ids[code]`). Observation: "history"
    and "session", what the user rated before this visit and in it, as the mean of the items'
    features, each times its rating (1 to 5 as -1 to 1); "page", its number. Reward: that of the
    ratings which the slate got. Info: "user_id"; "action_mask" int8[n_items], 1 for items that
    may be shown; after a step "slate" (the item ids on the page), "rated" float32[k] (0 for not
    rated) and "replaced"; at the end "outcome".

    Args:
        site: The site that is visited.
        users: The model of the users.
        user_ids: Whose visits are the episodes; all users of the site where `None`.
        generator: Answers users that are language models, the requests of all environments at
            once.
        reward: The reward of a slate, by default the number of likes.
        strict: Whether a code that repeats or is masked is refused with a `ValueError`. By
            default the next item that may be shown takes its place and is counted in
            "replaced".

    Example:
        >>> from alignuser_jax.world.gym import recsys_env
        >>> env = recsys_env()  # behavioural users of a SYNTHETIC dataset
        >>> observation, info = env.reset(seed=0, options={"user_id": "user0001"})
        >>> best = info["action_mask"].nonzero()[0][:4]
        >>> observation, reward, terminated, truncated, info = env.step(best)
        >>> len(info["slate"]), info["replaced"]
        (4, 0)
    """

    action_space: spaces.MultiDiscrete

    def __init__(
        self,
        site: RecommendationSite,
        users: UserModel,
        user_ids: Sequence[str] | None = None,
        *,
        generator: records.Generator | None = None,
        reward: SlateReward = likes,
        strict: bool = False,
    ):
        ids = [*site.histories] if user_ids is None else user_ids
        super().__init__(ids, lambda user: not site.reset(user, 0).terminal)
        self.site, self.users, self.generator = site, users, generator
        self.index = ItemIndex(site.items)
        self.item_ids = self.index.item_ids
        self.features, self.feature_names = item_features(site.items, site.mean_ratings)
        self._reward_of, self._strict = reward, strict
        self._size = min(site.config.items_per_page, len(self.item_ids))
        profile = spaces.Box(-1, 1, (self.features.shape[1],), np.float32)
        self.observation_space = spaces.Dict(
            {
                "history": profile,
                "page": spaces.Discrete(site.config.last_page, start=1),
                "session": profile,
            }
        )
        self.action_space = spaces.MultiDiscrete([len(self.item_ids)] * self._size)
        self._visit: VisitCoroutine | None = None
        self._pending: Any = None

    def open(self, user_id: str, seed: int) -> None:
        """Begin a visit of `user_id`; `seed` draws everything in it."""
        if self._visit is not None:
            self._visit.close()
        self._request = RecommendationRequest(user_id, ())
        self._outcome: Outcome | None = None
        self._slate: tuple[str, ...] | None = None
        self._replaced = 0
        self._recommended: set[str] = set()
        self._free = np.ones(len(self.item_ids), np.int8)
        self._history = _Profile(self.features, self.index)
        self._session = _Profile(self.features, self.index)
        self._visit = self.users(user_id, seed)
        self.send(None)

    def check(self, action: Any) -> None:
        """Raise `ResetNeeded` or `ValueError` if the action is not possible; change nothing."""
        if not isinstance(self._pending, RecommendationRequest):
            raise gymnasium.error.ResetNeeded("the visit is over: call reset() before step()")
        self._valid_codes(action, self._pending.k)

    def act(self, action: Any) -> None:
        """Begin a step with an action that was checked."""
        codes, self._replaced = self._valid_codes(action, self._pending.k)
        self._slate = tuple(self.item_ids[code] for code in codes)
        self._recommended.update(self._slate)
        self.send(Slate(self._slate))

    def send(self, answer: Any) -> None:
        """Send the visit an answer, so that it goes on to its next request or its end."""
        assert self._visit is not None  # open() began it
        try:
            self._pending = self._visit.send(answer)
        except StopIteration as end:
            self._pending, self._outcome = None, end.value

    @staticmethod
    def settle(envs: Sequence[RecSysEnv]) -> None:
        """Answer the users' language-model requests until each needs a slate or has left."""
        generator = envs[0].generator
        tickets: dict[records.Ticket, RecSysEnv] = {}

        def submit(env: RecSysEnv) -> None:
            if env._pending is None or isinstance(env._pending, RecommendationRequest):
                return
            if not isinstance(env._pending, records.Request):
                raise TypeError(
                    f"the user model yielded a {type(env._pending).__name__}, expected a "
                    "RecommendationRequest or a Request to a language model"
                )
            if generator is None:
                raise ValueError(
                    "the user model asks a language model: pass RecSysEnv(generator=...), for "
                    "example an engine"
                )
            tickets[generator.submit(env._pending)] = env

        for env in envs:
            submit(env)
        while tickets and generator is not None:
            answered = generator.collect()
            if not answered:
                raise RuntimeError(
                    f"the generator returned nothing and owes {len(tickets)} replies"
                )
            for ticket, completion in answered:
                env = tickets.pop(ticket)
                env.send(completion)
                submit(env)

    def result(self) -> StepResult:
        """Return the observation, the reward, whether the visit is over, and the info."""
        before, over = self._request, self._outcome is not None
        session = self._outcome.state.session if self._outcome else self._pending.session
        new = session[len(before.session) :]
        if not over:
            self._request = self._pending
            excluded = self._request.exclude - before.exclude
            self._free[self.index.codes(excluded)] = 0
        if self._slate is None:
            self._history.add(self._request.history)
        self._session.add(new)
        info: dict[str, Any] = {"user_id": self._request.user_id}
        info["action_mask"] = np.zeros_like(self._free) if over else self._free.copy()
        reward = 0.0
        if self._slate is not None:
            reward = float(self._reward_of([r for r in new if r.item_id in self._recommended]))
            rated = np.zeros(self._size, np.float32)
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
        """End the visit, if there is one."""
        if self._visit is not None:
            self._visit.close()

    def _valid_codes(self, action: Any, k: int) -> tuple[list[int], int]:
        """The valid codes of a slate of at most `k`, and how many had to be replaced."""
        wish = np.asarray(action)
        integers = wish.shape == (self._size,) and wish.dtype.kind in "iu"
        if not integers or not 0 <= wish.min() <= wish.max() < len(self.item_ids):
            raise ValueError(
                f"action {action!r}: expected {self._size} codes from 0 to "
                f"{len(self.item_ids) - 1}"
            )
        free = self._free.astype(np.bool_)
        left = int(np.count_nonzero(free))
        codes, replaced = [], 0
        for code in wish.tolist()[: min(k, left)]:
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

    def __init__(self, features: np.ndarray, index: ItemIndex):
        self._features, self._code = features, index.code_of
        self._total, self._count = np.zeros(features.shape[1]), 0

    def add(self, interactions: Sequence[Interaction]) -> None:
        ratings = [r for r in interactions if r.item_id in self._code]
        if ratings:
            codes = [self._code[r.item_id] for r in ratings]
            weights = [min(max((r.rating - 3) / 2, -1.0), 1.0) for r in ratings]
            self._total += np.array(weights) @ self._features[codes]
            self._count += len(ratings)

    def mean(self) -> np.ndarray:
        """float32[n_features] in -1 to 1; zeros if nothing was rated."""
        mean = self._total / max(self._count, 1)
        return np.minimum(np.maximum(mean, -1), 1).astype(np.float32)
