"""Reflection at the level of sessions, for data that has clicks (METHOD.md section 8).

The session coroutine runs with the human's own actions; at every act call K other offered
actions are stepped in the world, their missing pages asked for in one batch, and each pair of
next states becomes one reflection. Visits reconstructed from ratings hold no human actions and
must not be used here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from alignuser_jax.agents import AgentUser, SessionConfig, session
from alignuser_jax.agents.conversation import remembered
from alignuser_jax.alignment.counterfactuals import (
    Counterfactual,
    Generate,
    policy_alternatives,
    step_alternatives,
    uniform_alternatives,
)
from alignuser_jax.alignment.examples import (
    Call,
    HumanVisit,
    WatchedWorld,
    action_line,
    choice_example,
    drive,
)
from alignuser_jax.alignment.reflections import (
    ReflectionConfig,
    reflect,
    trajectory_reflection_request,
    trajectory_template,
)
from alignuser_jax.alignment.visits import Visit
from alignuser_jax.randomness import stable_key
from alignuser_jax.records import (
    Action,
    CountTokens,
    Example,
    Recommender,
)
from alignuser_jax.world import RecommendationSite


@dataclass(frozen=True, slots=True)
class HumanSession:
    """A logged session: its pages, what was rated on them, and every action in order."""

    visit: Visit
    actions: tuple[Action, ...]


@dataclass(frozen=True, slots=True)
class ActStep:
    """One human action at an act call of the session, and what others would have led to."""

    name: str
    call: Call
    counterfactual: Counterfactual


def act_steps(
    user: AgentUser,
    world: RecommendationSite,
    recommender: Recommender,
    human: HumanSession,
    config: SessionConfig,
    *,
    k: int = 4,
    seed: int = 0,
    generate: Generate | None = None,
    count_tokens: CountTokens | None = None,
) -> list[ActStep]:
    """The act calls of one human session. Alternatives are drawn from the model's own choices
    where there is one, else uniformly from what the call offered; those without effect of
    their own are dropped."""
    watched = WatchedWorld(world)
    replies = HumanVisit(human.visit, human.actions)
    coroutine = session(
        user,
        watched,
        config,
        arm="human",
        number=human.visit.number,
        seed=seed,
        count_tokens=count_tokens,
    )
    at: list[int] = []

    def choose(request):
        at.append(len(watched.transitions))
        return replies.choose(request)

    calls, _ = drive(coroutine, choose, replies.show)
    timed = zip(calls, at, strict=True)
    acts = [(call, n) for call, n in timed if call.request.purpose == "act"]
    requests = [call.request for call, _ in acts]
    chosen = [call.choices[0] for call, _ in acts]
    if generate is not None and k:
        others = policy_alternatives(generate, requests, chosen, k, seed)
    else:
        others = [
            uniform_alternatives(
                len(r.answer[0]), taken, k, stable_key(seed, "alternatives", r.key)
            )
            for r, taken in zip(requests, chosen, strict=True)
        ]
    taken = [watched.transitions[n] for _, n in acts]
    actions = []
    for call, step, indices in zip(requests, taken, others, strict=True):
        by_line = {action_line(action): action for action in step.state.actions}
        actions.append([by_line[call.answer[0][index]] for index in indices])
    pairs = step_alternatives(world, taken, actions, recommender)
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
) -> tuple[list[Example], Mapping[str, int]]:
    """One example per (step, alternative): the act call as it was asked; trained: the four
    tagged lines and the human's `BEST-ACTION`. Also why reflections were dropped."""
    pairs = [(step, other) for step in steps for other in step.counterfactual.alternatives]
    keys = [stable_key(seed, "reflect", s.name, other.action.token) for s, other in pairs]
    persona = user.persona if config.persona else None
    told = remembered(user, world.items).summary(config.history_items)
    dropped: Mapping[str, int] = {}
    if generate is None:
        texts: Sequence[str | None] = [
            trajectory_template(persona, world.items, step.counterfactual.taken, other, key)
            for (step, other), key in zip(pairs, keys, strict=True)
        ]
    else:
        requests = [
            trajectory_reflection_request(
                persona,
                told,
                step.counterfactual.taken,
                other,
                ReflectionConfig(config.item_type),
                key,
            )
            for (step, other), key in zip(pairs, keys, strict=True)
        ]
        taken = [step.counterfactual.taken for step, _ in pairs]
        kept = reflect(generate, requests, taken, [other for _, other in pairs])
        texts, dropped = kept.texts, kept.dropped
    examples = [
        choice_example(
            step.call,
            "reflection",
            f"reflection/{step.name}/{other.action.token}",
            user.user_id,
            text,
        )
        for (step, other), text in zip(pairs, texts, strict=True)
        if text is not None
    ]
    return examples, dropped
