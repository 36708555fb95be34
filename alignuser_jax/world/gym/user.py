"""`UserEnv`: the user acts on page text, with a recommender inside."""

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
from alignuser_jax.world.gym.staged import Seen, StagedEnv
from alignuser_jax.world.site.page import local_id
from alignuser_jax.world.site.site import SiteConfig

Menu = Callable[[State], Sequence[Action]]
"""What each number of the action space means in a state; always as many actions, valid or not.
"""
Reward = Callable[[State, Action, State], float]
NO_ACTION = Action("click")
"""Stands where a menu has nothing to offer; no world accepts it."""
MOST_CHARACTERS = 1 << 16


def site_menu(config: SiteConfig) -> Menu:
    """Numbers that mean the same in every state of a recommendation site: next page, previous
    page, exit; a click on each place of a page; the ratings 1 to 5 of each place; and where
    there is search, the queries that the page offers, in its order.
    """
    places = [local_id(n) for n in range(1, config.items_per_page + 1)]
    fixed = (
        *(Action("next_page"), Action("previous_page"), Action("exit")),
        *(Action("click", place) for place in places),
        *(Action("rate", place, stars) for place in places for stars in RATINGS),
    )
    if not config.search:
        return lambda state: fixed

    def menu(state: State) -> tuple[Action, ...]:
        searches = [action for action in state.actions if action.kind == "search"]
        empty = config.queries_per_page - len(searches)
        return (*fixed, *searches, *[NO_ACTION] * empty)

    return menu


def listed_menu(size: int) -> Menu:
    """`state.actions` in order, for any world: number n is the n-th action listed. ValueError
    where a state lists more than `size`.
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
    """Every character that a page of these items may hold."""
    found = {*string.ascii_letters, *string.digits, *string.punctuation, " ", "\n"}
    for item in items:
        for text in (item.item_id, item.title, *item.genres, item.description):
            found.update(one_line(text))
    return frozenset(found)


class UserEnv(StagedEnv):
    """Action: a number; `info["actions"]` says what each means (its token), and
    `info["action_mask"]` int8[n] which are valid. Observation: the page's text.

    A number that is not valid leaves the page as it was with an error line (METHOD.md 2.5).
    `reward(state, action, next state)` is 0 where none is given: the paper's users have none.
    `characters` (of `characters_of`) and `most_characters` bound the text: others become "?",
    and what is longer is cut. `world` may be any whose questions `recommender` answers.
    """

    def __init__(
        self,
        world: World,
        recommender: Recommender | None,
        user_ids: Sequence[str],
        menu: Menu,
        *,
        characters: Iterable[str],
        most_characters: int = MOST_CHARACTERS,
        reward: Reward | None = None,
    ):
        super().__init__(user_ids, lambda user: not world.reset(user, 0).terminal)
        self.world, self.recommender, self.menu = world, recommender, menu
        self._reward_of = reward
        self._characters = frozenset(characters) | {"?"}
        self._state: State | None = None
        size = len(menu(world.reset(self.user_ids[0], 0)))
        self.observation_space = spaces.Text(most_characters, charset=self._characters)
        self.action_space = spaces.Discrete(size)

    @property
    def state(self) -> State | None:
        """The world's own state, of which the observation is the text."""
        return self._state

    def open(self, user_id: str, seed: int) -> None:
        self._state = self.world.reset(user_id, seed)
        self._before: tuple[State, Action] | None = None

    def check(self, action: Any) -> None:
        if self._state is None or self._state.terminal:
            raise gymnasium.error.ResetNeeded("the visit is over: reset() before step()")
        if not self.action_space.contains(action):
            raise ValueError(
                f"action {action!r}: expected a number from 0 to {self.action_space.n - 1}"
            )

    def act(self, action: Any) -> None:
        chosen = self.menu(self._state)[int(action)]
        self._before = self._state, chosen
        self._state = self.world.step(self._state, chosen)

    @staticmethod
    def settle(envs: Sequence[UserEnv]) -> None:
        """One call to the recommender for all pages that are open."""
        while any(env._state.needs is not None for env in envs):
            filled = fill(envs[0].world, envs[0].recommender, [env._state for env in envs])
            for env, state in zip(envs, filled, strict=True):
                env._state = state

    def seen(self) -> Seen:
        state = self._state
        reward = 0.0
        if self._before is not None and self._reward_of is not None:
            reward = float(self._reward_of(*self._before, state))
        actions = tuple(self.menu(state))
        if len(actions) != self.action_space.n:
            raise ValueError(
                f"the menu gave {len(actions)} actions, expected {self.action_space.n}"
            )
        tell = getattr(self.world, "valid_actions", None)
        valid = set(state.actions if tell is None else tell(state))
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
