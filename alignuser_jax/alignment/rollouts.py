"""Collect experience for the world model: epsilon-greedy rollouts and human transitions.

In episode e a random valid action is taken with probability epsilon, annealed linearly over
the episodes, else the policy's greedy action (docs/method.md section 7).
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
"""Return the greedy action of each state of a batch; the integers are keys, one per state."""


@dataclass(frozen=True)
class RolloutConfig:
    """The size and the schedule of the rollouts (docs/method.md section 7).

    The paper states the linear form only; the values are DEFAULTs.

    Attributes:
        episodes: How many episodes are played; one for each of the paper's 1,000 agents.
        epsilon_start: Probability of a random action in the first episode.
        epsilon_end: Probability that is reached one episode after the last.
        max_actions: An episode ends after this many actions.

    Example:
        >>> RolloutConfig(episodes=10, epsilon_start=1.0, epsilon_end=0.5).epsilon(5)
        0.75
    """

    episodes: int = 1000
    epsilon_start: float = 1.0
    epsilon_end: float = 0.1
    max_actions: int = 30

    def __post_init__(self) -> None:
        for name in ("episodes", "max_actions"):
            if (number := getattr(self, name)) < 1:
                raise ValueError(f"{name} is {number}, expected at least 1")
        for name in ("epsilon_start", "epsilon_end"):
            if not 0 <= (share := getattr(self, name)) <= 1:
                raise ValueError(f"{name} is {share}, expected 0 <= epsilon <= 1")

    def epsilon(self, episode: int) -> float:
        """Return the probability of a random action in `episode`, counted from 0."""
        left = max(0.0, 1 - episode / self.episodes)
        return self.epsilon_end + (self.epsilon_start - self.epsilon_end) * left


def random_policy(states: Sequence[State], keys: Sequence[int]) -> list[Action]:
    """Draw an action uniformly from the valid ones of each state."""
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
    """Play all episodes side by side, one action of each at a time.

    Episode e is a session of `user_ids[e % len(user_ids)]`. Every draw is named by (seed,
    episode, step), so the result does not depend on which episodes run together.

    Args:
        world: The site to explore.
        recommender: Fills its pages.
        user_ids: Whose sessions the episodes are.
        config: Size and schedule.
        policy: Takes the greedy actions (default: random ones too).
        seed: Names every draw.

    Returns:
        The transitions, episode by episode.

    Example:
        >>> transitions = collect_rollouts(
        ...     site, recommender, ["u1", "u2"], RolloutConfig(episodes=10), seed=1
        ... )
    """
    if not user_ids:
        raise ValueError("user_ids is empty: pass at least one user id to roll out")
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
    """Replay a reconstructed visit in a world and return its transitions.

    On each page come its ratings, then the page turn or the exit (`leave_action`). The pages
    are the visit's own. A world with a fixed horizon must end at the visit's last page
    (`Sites.of_visit`).
    """
    transitions: list[Transition] = []
    pages = iter(visit.pages)

    def filled(state: State) -> State:
        return world.resolve(state, Slate(next(pages))) if state.needs is not None else state

    state = filled(world.reset(visit.user_id, stable_key(seed, "visit", visit.number)))
    ratings = visit.ratings
    for number in range(1, len(visit.pages) + 1):
        actions = [
            Action("rate", str(position), ratings[item_id])
            for position, item_id in enumerate(state.slate, 1)
            if item_id in ratings
        ]
        for action in [*actions, leave_action(state.actions, number == len(visit.pages))]:
            after = filled(world.step(state, action))
            transitions.append(Transition(state, action, after, "human"))
            state = after
    return transitions


def leave_action(actions: Sequence[Action], last_page: bool) -> Action:
    """Return how a human leaves a page: `[NEXT_PAGE]`, or `[EXIT]` from the visit's last page.

    A site with a fixed horizon has no `[EXIT]`; there the last page is turned too.
    """
    leave = Action("exit")
    return leave if last_page and leave in actions else Action("next_page")


def generator_policy(
    generate: Generate,
    users: Mapping[str, AgentUser],
    items: Mapping[str, Item],
    config: SessionConfig,
    count_tokens: Callable[[str], int] | None = None,
) -> Policy:
    """Return a policy that takes a model's greedy action (temperature 0).

    The model gets the agents' own act prompt, in a conversation that begins at the state.

    Args:
        generate: Answers the requests.
        users: What the agents know, by user id.
        items: The catalogue by item id.
        config: The agents' session settings.
        count_tokens: Needed where `config.context_tokens` is set.

    Returns:
        A policy; it raises `RuntimeError` if the model gives no action.
    """

    def policy(states: Sequence[State], keys: Sequence[int]) -> list[Action]:
        requests = []
        for state, key in zip(states, keys, strict=True):
            user = users[state.user_id]
            conversation = Conversation(user, config, count_tokens)
            conversation.show_page(state.text, remembered(user, items))
            answer = act_answer(state.actions)
            messages = conversation.messages_with(
                act_turn(state.actions, conversation.pending), answer, 0
            )
            requests.append(Request(messages, "act", answer=answer, temperature=0.0, key=key))
        actions = []
        for state, completion in zip(states, generate(requests), strict=True):
            if len(completion.choices) != 1:
                raise RuntimeError(
                    f"the model gave no action for user {state.user_id!r}: "
                    f"{completion.error or repr(completion.text)}; check the back end that "
                    "answers for the policy"
                )
            actions.append(state.actions[completion.choices[0]])
        return actions

    return policy


def _generator(key: int) -> np.random.Generator:
    return generator_of(key)
