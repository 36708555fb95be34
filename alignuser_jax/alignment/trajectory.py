"""Reflect at the level of sessions, for data that has clicks (docs/method.md section 8).

The session coroutine runs with the human's own actions. At every act call K other offered
actions are stepped in the world, their missing pages requested in one batch, and each pair of
next states becomes one reflection. Visits reconstructed from ratings hold no human actions and
must not be used here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from alignuser_jax.agents import AgentUser, SessionConfig, session
from alignuser_jax.agents.conversation import remembered
from alignuser_jax.alignment.counterfactuals import (
    Alternatives,
    Counterfactual,
    Generate,
    step_alternatives,
)
from alignuser_jax.alignment.examples import (
    Call,
    HumanVisit,
    WatchedWorld,
    action_line,
    choice_example,
    drive,
)
from alignuser_jax.alignment.reflecting.requests import trajectory_reflection_request
from alignuser_jax.alignment.reflecting.templates import trajectory_template
from alignuser_jax.alignment.reflecting.writing import Tally, reflect
from alignuser_jax.alignment.visits import Visit
from alignuser_jax.randomness import stable_key
from alignuser_jax.records import Action, CountTokens, Example, Recommender, Request
from alignuser_jax.world import RecommendationSite


@dataclass(frozen=True, slots=True)
class HumanSession:
    """A logged session.

    Attributes:
        visit: Its pages and what was rated on them.
        actions: Every other action of the human, in order.
    """

    visit: Visit
    actions: tuple[Action, ...]


@dataclass(frozen=True, slots=True)
class ActStep:
    """One human action at an act call of a session, and what others would have led to.

    Attributes:
        name: The step's part of example ids: user, visit and number of the act call.
        call: The act call and the human's choice.
        counterfactual: The human action and its alternatives as transitions.
    """

    name: str
    call: Call
    counterfactual: Counterfactual


def act_steps(
    user: AgentUser,
    world: RecommendationSite,
    recommender: Recommender,
    human: HumanSession,
    config: SessionConfig,
    alternatives: Alternatives,
    count_tokens: CountTokens | None = None,
) -> list[ActStep]:
    """Return the act calls of one human session with their alternatives.

    Alternatives that lead to the same state as the human's action, or as each other, are
    dropped.

    Args:
        user: The human as agents know their user.
        world: The site on which the session happened.
        recommender: Answers for the pages that alternatives lead to.
        human: The session.
        config: How the agents ask.
        alternatives: How other actions are drawn from those that a call offered.
        count_tokens: Needed if `config.context_tokens` is set.
    """
    watched = WatchedWorld(world)
    replies = HumanVisit(human.visit, human.actions)
    coroutine = session(
        user,
        cast(RecommendationSite, watched),  # it has all that a session uses of a site
        config,
        arm="human",
        number=human.visit.number,
        seed=alternatives.seed,
        count_tokens=count_tokens,
    )
    steps_before: list[int] = []  # for each call: transitions recorded before it

    def choose(request: Request) -> tuple[int, ...]:
        steps_before.append(len(watched.transitions))
        return replies.choose(request)

    calls, _ = drive(coroutine, choose, replies.show)
    acts = [
        (call, watched.transitions[n])
        for call, n in zip(calls, steps_before, strict=True)
        if call.request.purpose == "act"
    ]
    others = alternatives.draw(
        [call.request for call, _ in acts], [call.choices[0] for call, _ in acts]
    )
    actions = []
    for (call, step), indices in zip(acts, others, strict=True):
        by_line = {action_line(action): action for action in step.state.actions}
        actions.append([by_line[call.request.answer[0][index]] for index in indices])
    pairs = step_alternatives(world, [step for _, step in acts], actions, recommender)
    return [
        ActStep(f"{user.user_id}/{human.visit.number}/{number}", call, pair)
        for number, ((call, _), pair) in enumerate(zip(acts, pairs, strict=True))
    ]


def trajectory_examples(
    user: AgentUser,
    world: RecommendationSite,
    steps: Sequence[ActStep],
    config: SessionConfig,
    *,
    seed: int = 0,
    generate: Generate | None = None,
    tally: Tally | None = None,
) -> tuple[list[Example], Mapping[str, int]]:
    """Make one example per pair of a human action and an alternative.

    The prompt is the act call as at inference; trained are the four tagged lines of the
    reflection and the human's `BEST-ACTION`.

    Args:
        user: The human as agents know their user.
        world: The site on which the session happened.
        steps: The act calls with their alternatives.
        config: How the agents ask.
        seed: Names the draws.
        generate: Writes the reflections; by template without it.
        tally: Counts what the model writes and shows it; it holds the settings.

    Returns:
        The examples, and how many reflections were dropped, by reason.
    """
    pairs = [(step, pair) for step in steps for pair in step.counterfactual.pairs]
    keys = [
        stable_key(seed, "reflect", step.name, pair.alternative.action.token)
        for step, pair in pairs
    ]
    persona = user.persona if config.persona else None
    dropped: Mapping[str, int] = {}
    texts: Sequence[str | None]
    if generate is None:
        texts = [
            trajectory_template(persona, world.items, pair, key)
            for (_, pair), key in zip(pairs, keys, strict=True)
        ]
    else:
        history = remembered(user, world.items).summary(config.history_items)
        tally = tally or Tally()
        requests = [
            trajectory_reflection_request(
                *(persona, history, pair, config.item_type, tally.config, key)
            )
            for (_, pair), key in zip(pairs, keys, strict=True)
        ]
        reflected = reflect(generate, requests, [pair for _, pair in pairs], tally=tally)
        texts, dropped = reflected.texts, reflected.dropped
    examples = [
        choice_example(
            step.call,
            "reflection",
            f"reflection/{step.name}/{pair.alternative.action.token}",
            user.user_id,
            text,
        )
        for (step, pair), text in zip(pairs, texts, strict=True)
        if text is not None
    ]
    return examples, dropped
