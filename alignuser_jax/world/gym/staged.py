"""Gymnasium environments whose step is cut in two where it must ask somebody else, so that many
of them ask together: one call to a recommender or a language model for a whole vector.

Gymnasium wants subclasses of its `Env` and `VectorEnv`; these two are all there are.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array, iterate

Seen = tuple[Any, float, bool, dict[str, Any]]
"""Observation, reward, whether the episode is over, info."""


class StagedEnv(gymnasium.Env):
    """`open` or `check` and `act`, then `settle`, then `seen`: what `reset` and `step` do in
    one go.
    """

    metadata = {"render_modes": []}

    def __init__(self, user_ids: Sequence[str], starts: Callable[[str], bool]):
        """`starts(user_id)`: whether a visit of that user has anything to show."""
        if not user_ids:
            raise ValueError(
                "no user_ids: an episode is one user's visit, so give at least one"
            )
        self.user_ids = tuple(user_ids)
        self._starts = starts
        self._known = frozenset(self.user_ids)

    @abstractmethod
    def open(self, user_id: str, seed: int) -> None:
        """Begin a visit of `user_id`, with `seed` for all its randomness."""

    @abstractmethod
    def check(self, action: Any) -> None:
        """Raise what is wrong with an action: ResetNeeded, ValueError. Changes nothing."""

    @abstractmethod
    def act(self, action: Any) -> None:
        """Begin a step; the action has been checked."""

    @staticmethod
    @abstractmethod
    def settle(envs: Sequence[Any]) -> None:
        """Have all questions of `envs` (of one kind) answered, together."""

    @abstractmethod
    def seen(self) -> Seen:
        """What has come of it."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        """A visit of a user drawn at random. `options`: "user_id" says whose, "seed" names the
        visit's randomness (the same for two recommenders that are compared).
        """
        super().reset(seed=seed)
        self.open(*self.draw(options))
        self.settle([self])
        observation, _, _, info = self.seen()
        return observation, info

    def step(self, action: Any):
        self.check(action)
        self.act(action)
        self.settle([self])
        observation, reward, terminated, info = self.seen()
        return observation, reward, terminated, False, info

    def draw(self, options: dict[str, Any] | None) -> tuple[str, int]:
        """Whose visit comes next, and its seed. ValueError for an unknown user and where no
        user has anything left to see.
        """
        options = options or {}
        visit_seed = options.get("seed")
        if visit_seed is None:
            visit_seed = int(self.np_random.integers(2**62))
        if (user_id := options.get("user_id")) is not None:
            if user_id not in self._known:
                raise ValueError(
                    f"options['user_id'] is {user_id!r}, which is none of the "
                    f"{len(self.user_ids)} users (they look like {self.user_ids[0]!r})"
                )
            if not self._starts(user_id):
                raise ValueError(f"user {user_id!r} has seen the whole catalogue already")
            return user_id, visit_seed
        first = int(self.np_random.integers(len(self.user_ids)))
        for place in range(len(self.user_ids)):
            user_id = self.user_ids[(first + place) % len(self.user_ids)]
            if self._starts(user_id):
                return user_id, visit_seed
        raise ValueError("every user has seen the whole catalogue: there is nothing to show")


class StagedVectorEnv(VectorEnv):
    """`num_envs` environments that ask together. An episode that is over is begun anew by the
    next step, whose action for it is ignored and whose reward is 0 (`AutoresetMode.NEXT_STEP`).
    `reset(seed=s)` gives environment i the seed s + i: each does what it would do alone.
    """

    metadata = {"render_modes": [], "autoreset_mode": AutoresetMode.NEXT_STEP}

    def __init__(self, make: Callable[[], StagedEnv], num_envs: int = 1):
        if num_envs < 1:
            raise ValueError(f"num_envs is {num_envs}, expected 1 or more")
        self.envs = [make() for _ in range(num_envs)]
        self.num_envs = num_envs
        self.single_observation_space = self.envs[0].observation_space
        self.single_action_space = self.envs[0].action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._over = np.zeros(num_envs, np.bool_)

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ):
        """As `StagedEnv.reset`; "user_id" and "seed" in `options` may also be one for each."""
        count = self.num_envs
        if isinstance(seed, int | np.integer):
            seed = [int(seed) + n for n in range(count)]
        seeds = [None] * count if seed is None else [n if n is None else int(n) for n in seed]
        _check_count("seed", seeds, count)
        for env, each, given in zip(self.envs, seeds, _each(options, count), strict=True):
            gymnasium.Env.reset(env, seed=each)
            env.open(*env.draw(given))
        self.envs[0].settle(self.envs)
        observations, _, _, _, infos = self._seen()
        return observations, infos

    def step(self, actions: Any):
        acting = list(
            zip(self.envs, iterate(self.action_space, actions), self._over, strict=True)
        )
        for env, action, over in acting:  # none acts where one is refused
            if not over:
                env.check(action)
        for env, action, over in acting:
            if over:
                env.open(*env.draw(None))
            else:
                env.act(action)
        self.envs[0].settle(self.envs)
        return self._seen()

    def _seen(self):
        infos: dict[str, Any] = {}
        observations = []
        rewards = np.zeros(self.num_envs, np.float64)
        for n, env in enumerate(self.envs):
            observation, rewards[n], self._over[n], info = env.seen()
            observations.append(observation)
            infos = self._add_info(infos, info, n)
        space = self.single_observation_space
        empty = create_empty_array(space, self.num_envs, np.zeros)
        batched = concatenate(space, observations, empty)
        return batched, rewards, self._over.copy(), np.zeros(self.num_envs, np.bool_), infos


def _each(options: dict[str, Any] | None, count: int) -> list[dict[str, Any]]:
    """The options of each environment."""
    each: list[dict[str, Any]] = [{} for _ in range(count)]
    for name, value in (options or {}).items():
        same = isinstance(value, str | int | np.integer | None)
        values = [value] * count if same else list(value)
        _check_count(f"options[{name!r}]", values, count)
        for options_of_one, one in zip(each, values, strict=True):
            options_of_one[name] = one
    return each


def _check_count(name: str, values: list[Any], count: int) -> None:
    if len(values) != count:
        raise ValueError(f"{name} has {len(values)} values, expected one for each of {count}")
