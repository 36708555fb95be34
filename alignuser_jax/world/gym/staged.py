"""Gymnasium environments whose steps stop where they must ask, so that many ask together.

A whole vector of environments then makes one call to its recommender or language model.
Gymnasium wants subclasses of its `Env` and `VectorEnv`; these two are the only ones here.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array, iterate

StepResult = tuple[Any, float, bool, dict[str, Any]]
"""Observation, reward, whether the episode is over, info."""


class StagedEnv(gymnasium.Env[Any, Any]):
    """An environment whose `reset` and `step` consist of stages that a vector can interleave.

    `reset` is `open`, `settle`, `result`; `step` is `check`, `act`, `settle`, `result`.

    Args:
        user_ids: The users; an episode is one visit of one of them.
        has_items: Whether a visit of that user has anything to show.
    """

    metadata = {"render_modes": []}

    def __init__(self, user_ids: Sequence[str], has_items: Callable[[str], bool]):
        if not user_ids:
            raise ValueError(
                "user_ids is empty: an episode is one user's visit, so give at least one user"
            )
        self.user_ids = tuple(user_ids)
        self._has_items = has_items
        self._user_set = frozenset(self.user_ids)

    @abstractmethod
    def open(self, user_id: str, seed: int) -> None:
        """Begin a visit of `user_id`; `seed` draws everything in it."""

    @abstractmethod
    def check(self, action: Any) -> None:
        """Raise `ResetNeeded` or `ValueError` if the action is not possible; change nothing."""

    @abstractmethod
    def act(self, action: Any) -> None:
        """Begin a step with an action that was checked."""

    @staticmethod
    @abstractmethod
    def settle(envs: Sequence[Any]) -> None:
        """Get everything answered that `envs` ask, together; all are of one class."""

    @abstractmethod
    def result(self) -> StepResult:
        """Return what came of the reset or the step."""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begin the visit of a user, drawn at random unless `options` names one.

        Args:
            seed: Seeds the draws of users and visits, as in Gymnasium.
            options: "user_id" says whose visit it is; "seed" names everything that is drawn in
                the visit (take the same for two recommenders that are compared).

        Returns:
            The observation and the info.
        """
        super().reset(seed=seed)
        self.open(*self.draw_visit(options))
        self.settle([self])
        observation, _, _, info = self.result()
        return observation, info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take an action.

        Returns:
            The observation, the reward, whether the visit is over, `False` (no visit is cut
            off) and the info.
        """
        self.check(action)
        self.act(action)
        self.settle([self])
        observation, reward, terminated, info = self.result()
        return observation, reward, terminated, False, info

    def draw_visit(self, options: dict[str, Any] | None) -> tuple[str, int]:
        """Return whose visit comes next, and its seed.

        Raises `ValueError` if `options` names an unknown user, and if nobody has anything left
        to see.
        """
        options = options or {}
        visit_seed = options.get("seed")
        if visit_seed is None:
            visit_seed = int(self.np_random.integers(2**62))
        if (user_id := options.get("user_id")) is not None:
            if user_id not in self._user_set:
                raise ValueError(
                    f"options['user_id'] is {user_id!r}, which is none of the "
                    f"{len(self.user_ids)} users (they look like {self.user_ids[0]!r})"
                )
            if not self._has_items(user_id):
                raise ValueError(f"user {user_id!r} has seen the whole catalogue already")
            return user_id, visit_seed
        first = int(self.np_random.integers(len(self.user_ids)))
        for place in range(len(self.user_ids)):
            user_id = self.user_ids[(first + place) % len(self.user_ids)]
            if self._has_items(user_id):
                return user_id, visit_seed
        raise ValueError("every user has seen the whole catalogue: there is nothing to show")


class StagedVectorEnv(VectorEnv[Any, Any, Any]):
    """Environments that ask together.

    After an episode is over, the next step begins a new one; it ignores its action for that
    environment and gives it the reward 0 (`AutoresetMode.NEXT_STEP`). `reset(seed=s)` gives
    environment i the seed s + i: each does what it would do alone.

    Args:
        make: Makes one environment.
        num_envs: How many there are.
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
    ) -> tuple[Any, dict[str, Any]]:
        """Begin a visit in every environment, as `StagedEnv.reset` does.

        "user_id" and "seed" in `options` may be one value for all or a list with one for each.
        """
        count = self.num_envs
        if isinstance(seed, int | np.integer):
            seed = [int(seed) + n for n in range(count)]
        seeds: list[int | None] = [None] * count
        if seed is not None:
            seeds = [n if n is None else int(n) for n in seed]
        _check_count("seed", seeds, count)
        for env, each, own in zip(self.envs, seeds, _each(options, count), strict=True):
            gymnasium.Env.reset(env, seed=each)
            env.open(*env.draw_visit(own))
        self.envs[0].settle(self.envs)
        observations, _, _, _, infos = self._results()
        return observations, infos

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict]:
        """Take an action in every environment; none is taken if one of them is refused."""
        acting = list(
            zip(self.envs, iterate(self.action_space, actions), self._over, strict=True)
        )
        for env, action, over in acting:
            if not over:
                env.check(action)
        for env, action, over in acting:
            if over:
                env.open(*env.draw_visit(None))
            else:
                env.act(action)
        self.envs[0].settle(self.envs)
        return self._results()

    def _results(self) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict]:
        infos: dict[str, Any] = {}
        observations = []
        rewards = np.zeros(self.num_envs, np.float64)
        for n, env in enumerate(self.envs):
            observation, rewards[n], self._over[n], info = env.result()
            observations.append(observation)
            infos = self._add_info(infos, info, n)
        space = self.single_observation_space
        empty = create_empty_array(space, self.num_envs, np.zeros)
        assert empty is not None
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
