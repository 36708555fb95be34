"""`UserEnv`: a Gymnasium environment in which the user acts on the text of pages."""

from __future__ import annotations

import string
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from alignuser_jax.records import RATINGS, Action, Item, Recommender, State, World
from alignuser_jax.text import one_line
from alignuser_jax.world.drive import fill
from alignuser_jax.world.gym.staged import StagedEnv, StepResult
from alignuser_jax.world.site.page import local_id
from alignuser_jax.world.site.site import SiteConfig

Menu = Callable[[State], Sequence[Action]]
"""Says which action each number of the action space means in a state.

It returns the same number of actions for every state, valid or not."""
StepReward = Callable[[State, Action, State], float]
"""(state, action, next state) -> the reward of the step."""
NO_ACTION = Action("click")
"""Fills the numbers for which a menu has nothing to offer; no world accepts it."""
MOST_CHARACTERS = 1 << 16
"""The most characters of an observation, unless another limit is set."""


def site_menu(config: SiteConfig) -> Menu:
    """Return a menu whose numbers mean the same in every state of a recommendation site.

    They are: next page, previous page, exit; a click on each position of a page; the ratings 1
    to 5 of each position; and if the site has search, the queries that the page offers, in its
    order.
    """
    ids = [local_id(n) for n in range(1, config.items_per_page + 1)]
    fixed = (
        *(Action("next_page"), Action("previous_page"), Action("exit")),
        *(Action("click", item) for item in ids),
        *(Action("rate", item, stars) for item in ids for stars in RATINGS),
    )
    if not config.search:
        return lambda state: fixed

    def menu(state: State) -> tuple[Action, ...]:
        searches = [action for action in state.actions if action.kind == "search"]
        empty = config.queries_per_page - len(searches)
        return (*fixed, *searches, *[NO_ACTION] * empty)

    return menu


def listed_menu(size: int) -> Menu:
    """Return a menu for any world: number n is the n-th action that the state lists.

    The menu raises `ValueError` for a state that lists more than `size` actions.
    """

    def menu(state: State) -> tuple[Action, ...]:
        if len(state.actions) > size:
            raise ValueError(
                f"a state lists {len(state.actions)} actions, the menu has room for {size}: "
                "give listed_menu a larger size"
            )
        return (*state.actions, *[NO_ACTION] * (size - len(state.actions)))

    return menu


def characters_of(items: Iterable[Item]) -> frozenset[str]:
    """Return every character that a page of these items may hold."""
    characters = {*string.ascii_letters, *string.digits, *string.punctuation, " ", "\n"}
    for item in items:
        for text in (item.item_id, item.title, *item.genres, item.description):
            characters.update(one_line(text))
    return frozenset(characters)


class UserEnv(StagedEnv):
    """The user acts on page text, and a recommender fills the pages.

    Action: a number. Observation: the text of the page. Info: "user_id"; "page", its number;
    "actions", what each number means (its token); "action_mask" int8[n], 1 for the valid ones.
    A number that is not valid leaves the page as it is and adds an error line (docs/method.md
    section 2.5).

    Args:
        world: The world; any whose requests `recommender` can answer.
        recommender: Makes the slates; may be `None` for a world that needs none.
        user_ids: The users; an episode is one visit of one of them.
        menu: What each number means (`site_menu`, `listed_menu`).
        characters: The characters of an observation (`characters_of`); others become "?".
        most_characters: The most characters of an observation; a longer text is cut.
        reward: The reward of a step; by default 0, because the paper's users have none.

    Example:
        >>> from alignuser_jax.world.gym import user_env
        >>> env = user_env()  # the most popular items of a SYNTHETIC dataset
        >>> text, info = env.reset(seed=0)
        >>> text.splitlines()[0], info["actions"][0]
        ('PAGE 1', '[NEXT_PAGE]')
        >>> text, reward, terminated, truncated, info = env.step(0)
        >>> text.splitlines()[0]
        'PAGE 2'
    """

    action_space: spaces.Discrete
    observation_space: spaces.Text

    def __init__(
        self,
        world: World,
        recommender: Recommender | None,
        user_ids: Sequence[str],
        menu: Menu,
        *,
        characters: Iterable[str],
        most_characters: int = MOST_CHARACTERS,
        reward: StepReward | None = None,
    ):
        super().__init__(user_ids, lambda user: not world.reset(user, 0).terminal)
        self.world, self.recommender, self.menu = world, recommender, menu
        self._reward_of = reward
        self._characters = frozenset(characters) | {"?"}
        self._state: State | None = None
        self._before: tuple[State, Action] | None = None
        size = len(menu(world.reset(self.user_ids[0], 0)))
        self.observation_space = spaces.Text(most_characters, charset=self._characters)
        self.action_space = spaces.Discrete(size)

    @property
    def state(self) -> State | None:
        """The world's state, whose text is the observation; `None` before the first reset."""
        return self._state

    @property
    def _now(self) -> State:
        if self._state is None:
            raise gymnasium.error.ResetNeeded("there is no visit yet: call reset() first")
        return self._state

    def open(self, user_id: str, seed: int) -> None:
        """Begin a visit of `user_id`; `seed` draws everything in it."""
        self._state = self.world.reset(user_id, seed)
        self._before = None

    def check(self, action: Any) -> None:
        """Raise `ResetNeeded` or `ValueError` if the action is not possible; change nothing."""
        if self._state is None or self._state.terminal:
            raise gymnasium.error.ResetNeeded("the visit is over: call reset() before step()")
        if not self.action_space.contains(action):
            raise ValueError(
                f"action {action!r}: expected a number from 0 to {self.action_space.n - 1}"
            )

    def act(self, action: Any) -> None:
        """Begin a step with an action that was checked."""
        state = self._now
        chosen = self.menu(state)[int(action)]
        self._before = state, chosen
        self._state = self.world.step(state, chosen)

    @staticmethod
    def settle(envs: Sequence[UserEnv]) -> None:
        """Fill all pages that still need a slate with one call to the recommender."""
        while any(env._now.needs is not None for env in envs):
            filled = fill(envs[0].world, envs[0].recommender, [env._now for env in envs])
            for env, state in zip(envs, filled, strict=True):
                env._state = state

    def result(self) -> StepResult:
        """Return the observation, the reward, whether the visit is over, and the info."""
        state = self._now
        reward = 0.0
        if self._before is not None and self._reward_of is not None:
            reward = float(self._reward_of(*self._before, state))
        actions = tuple(self.menu(state))
        if len(actions) != self.action_space.n:
            raise ValueError(
                f"the menu gave {len(actions)} actions, expected {self.action_space.n}"
            )
        every_action = getattr(self.world, "valid_actions", None)
        valid = set(state.actions if every_action is None else every_action(state))
        info = {
            "user_id": state.user_id,
            "page": state.page,
            "actions": tuple(action.token for action in actions),
            "action_mask": np.array([action in valid for action in actions], np.int8),
        }
        return self._text(state.text), reward, state.terminal, info

    def _text(self, text: str) -> str:
        text = text[: self.observation_space.max_length]
        strange = set(text) - self._characters
        return text.translate({ord(c): "?" for c in strange}) if strange else text
