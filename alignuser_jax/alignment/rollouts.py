"""Experience for the world model: epsilon-greedy rollouts and the transitions of human visits.

METHOD.md section 7: at episode e a random valid action with probability epsilon, annealed
linearly, else the policy's greedy action.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from alignuser_jax.agents.conversation import (
    AgentUser,
    Conversation,
    SessionConfig,
    remembered,
)
from alignuser_jax.alignment.counterfactuals import Generate
from alignuser_jax.alignment.visits import Visit
from alignuser_jax.language.prompts import act_answer, act_turn
from alignuser_jax.randomness import generator_of, stable_key
from alignuser_jax.records import (
    Action,
    Item,
    Recommender,
    Request,
    Slate,
    State,
    Transition,
    World,
)
from alignuser_jax.world import fill

Policy = Callable[[Sequence[State], Sequence[int]], Sequence[Action]]
"""Greedy actions for a batch of states; the integers are keys, one per state."""


@dataclass(frozen=True)
class RolloutConfig:
    """The schedule and size of the rollouts; all values are DEFAULT but the linear form."""

    episodes: int = 1000
    epsilon_start: float = 1.0
    epsilon_end: float = 0.1
    max_actions: int = 30

    def epsilon(self, episode: int) -> float:
        """`episode` counts from 0; reaches `epsilon_end` at the last + 1."""
        left = max(0.0, 1 - episode / self.episodes)
        return self.epsilon_end + (self.epsilon_start - self.epsilon_end) * left


def random_policy(states: Sequence[State], keys: Sequence[int]) -> list[Action]:
    """Uniform over the valid actions of each state."""
    return [
        state.actions[int(_generator(key).integers(len(state.actions)))]
        for state, key in zip(states, keys, strict=True)
    ]


def collect_rollouts(
    world: World,
    recommender: Recommender,
    user_ids: Sequence[str],
    config: RolloutConfig,
    *,
    policy: Policy = random_policy,
    seed: int = 0,
) -> list[Transition]:
    """All episodes side by side, one action each at a time; returned episode by episode.

    Episode e is a session of `user_ids[e % len]`. Every draw is named by (seed, episode,
    step), so the result does not depend on which episodes run together.
    """
    if not user_ids:
        raise ValueError("no users to roll out: give at least one user id")
    states = [
        world.reset(user_ids[episode % len(user_ids)], stable_key(seed, "rollout", episode))
        for episode in range(config.episodes)
    ]
    states = fill(world, recommender, states)
    steps: list[list[Transition]] = [[] for _ in states]
    for step in range(config.max_actions):
        alive = [e for e, state in enumerate(states) if not state.terminal and state.actions]
        if not alive:
            break
        keys = {e: stable_key(seed, "rollout", e, step) for e in alive}
        greedy = [e for e in alive if _generator(keys[e]).random() >= config.epsilon(e)]
        chosen = set(greedy)
        explored = [e for e in alive if e not in chosen]
        actions: dict[int, Action] = {}
        for rule, episodes in ((policy, greedy), (random_policy, explored)):
            if episodes:
                named = [stable_key(keys[e], "action") for e in episodes]
                answers = rule([states[e] for e in episodes], named)
                actions.update(zip(episodes, answers, strict=True))
        before = [states[e] for e in alive]
        after = [world.step(states[e], actions[e]) for e in alive]
        for e, old, new in zip(alive, before, fill(world, recommender, after), strict=True):
            steps[e].append(Transition(old, actions[e], new, "rollout"))
            states[e] = new
    return [transition for episode in steps for transition in episode]


def human_transitions(world: World, visit: Visit, seed: int = 0) -> list[Transition]:
    """A reconstructed visit step by step: on each page its ratings, then the page turn or the
    exit (`leave_action`). The pages are the visit's own. A world with a fixed horizon must end
    at the visit's last page (`site_of_visit`)."""
    transitions: list[Transition] = []
    pages = iter(visit.pages)

    def settle(state: State) -> State:
        return world.resolve(state, Slate(next(pages))) if state.needs is not None else state

    state = settle(world.reset(visit.user_id, stable_key(seed, "visit", visit.number)))
    ratings = visit.ratings
    for number in range(1, len(visit.pages) + 1):
        actions = [
            Action("rate", f"ITEM_{position}", ratings[item_id])
            for position, item_id in enumerate(state.slate, 1)
            if item_id in ratings
        ]
        for action in [*actions, leave_action(state.actions, number == len(visit.pages))]:
            after = settle(world.step(state, action))
            transitions.append(Transition(state, action, after, "human"))
            state = after
    return transitions


def leave_action(actions: Sequence[Action], last_page: bool) -> Action:
    """How a human leaves a page: `[NEXT_PAGE]`; on the visit's last page `[EXIT]` where the
    site has one."""
    leave = Action("exit")
    return leave if last_page and leave in actions else Action("next_page")


def generator_policy(
    generate: Generate,
    users: Mapping[str, AgentUser],
    items: Mapping[str, Item],
    config: SessionConfig,
    count_tokens: Callable[[str], int] | None = None,
) -> Policy:
    """The model's greedy action (temperature 0) by the agents' act prompt, on a conversation
    that begins at the state. Raises `RuntimeError` where the model fails."""

    def policy(states: Sequence[State], keys: Sequence[int]) -> list[Action]:
        requests = []
        for state, key in zip(states, keys, strict=True):
            user = users[state.user_id]
            talk = Conversation(user, config, count_tokens)
            talk.show_page(state.text, remembered(user, items))
            asked = talk.ask(act_turn(state.actions, talk.pending))
            answer = act_answer(state.actions)
            requests.append(Request(asked, "act", answer=answer, temperature=0.0, key=key))
        actions = []
        for state, completion in zip(states, generate(requests), strict=True):
            if len(completion.choices) != 1:
                raise RuntimeError(
                    f"no action for user {state.user_id!r}: "
                    f"{completion.error or repr(completion.text)}; check the policy's back end"
                )
            actions.append(state.actions[completion.choices[0]])
        return actions

    return policy


def _generator(key: int) -> np.random.Generator:
    return generator_of(key)
