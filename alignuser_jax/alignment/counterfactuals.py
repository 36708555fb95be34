"""Build counterfactuals: K alternative actions per human step and the states they lead to.

A counterfactual is nothing special: the world steps every alternative, all pages that are
missing are requested in one batch (`purpose="counterfactual"`), and the answers are resolved.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from alignuser_jax.randomness import generator_of, stable_key
from alignuser_jax.records import Action, Completion, Recommender, Request, Transition, World
from alignuser_jax.world import fill

Generate = Callable[[Sequence[Request]], Sequence[Completion]]
"""Answer a batch of requests, in order (`sampling.generate` bound to a `Generator`)."""


@dataclass(frozen=True, slots=True)
class Counterfactual:
    """A human step and the steps that its alternative actions would have been.

    Attributes:
        taken: The transition of the action that the human took.
        alternatives: The transitions of other actions from the same state, at most K.
    """

    taken: Transition
    alternatives: tuple[Transition, ...]


def step_alternatives(
    world: World,
    taken: Sequence[Transition],
    actions: Sequence[Sequence[Action]],
    recommender: Recommender | None = None,
) -> list[Counterfactual]:
    """Step `actions[i]` from the state of `taken[i]`, with every missing page in one batch.

    An alternative that leads to the same text as the human step or as an earlier alternative
    is dropped, ratings excepted (docs/method.md section 8.1).

    Args:
        world: The world in which the steps were taken.
        taken: The human steps.
        actions: The alternative actions of each step.
        recommender: Answers for the pages that alternatives lead to. It is not needed where
            no alternative leads to a new page, as with ratings.

    Returns:
        One `Counterfactual` per human step, in order.

    Raises:
        ValueError: A page is needed and there is no recommender, or the recommender says that
            it is `stateful`: imagined pages must leave no trace.
    """
    flat = [
        (row, action, world.step(step.state, action))
        for row, (step, alternatives) in enumerate(zip(taken, actions, strict=True))
        for action in alternatives
    ]
    states = [state for _, _, state in flat]
    if any(state.needs is not None for state in states):
        if recommender is None:
            raise ValueError(
                "an alternative leads to a new page, but no recommender was passed: pass one"
            )
        states = fill(world, recommender, states, purpose="counterfactual")
    steps: list[list[Transition]] = [[] for _ in taken]
    texts = [{step.next_state.text} for step in taken]
    for (row, action, _), state in zip(flat, states, strict=True):
        if action.kind == "rate" or state.text not in texts[row]:
            texts[row].add(state.text)
            steps[row].append(Transition(taken[row].state, action, state, "counterfactual"))
    return [
        Counterfactual(step, tuple(alternatives))
        for step, alternatives in zip(taken, steps, strict=True)
    ]


def uniform_alternatives(n: int, taken: int, k: int, key: int) -> tuple[int, ...]:
    """Draw at most `k` distinct indices below `n` other than `taken`, uniformly, by `key`."""
    rng = generator_of(key)
    order = rng.permutation(n).tolist()
    return tuple(index for index in order if index != taken)[:k]


def policy_alternatives(
    generate: Generate, requests: Sequence[Request], taken: Sequence[int], k: int, seed: int = 0
) -> list[tuple[int, ...]]:
    """Draw at most `k` alternatives per request from the policy (docs/method.md section 8.1).

    Each request is sampled 4 K times at temperature 1. Distinct choices other than the human's
    are used in the order in which they were drawn; what is missing to `k` is filled up
    uniformly from the request's other choices. A failed sample counts as no draw.

    Args:
        generate: Answers the requests.
        requests: Requests with one answer line from a closed set.
        taken: The index of the human's choice in each request's answer line.
        k: Alternatives per request, at most.
        seed: Names the draws, together with the request's key.

    Returns:
        Indices into the answer line of each request.
    """
    if k == 0:
        return [()] * len(requests)
    sampled = [
        replace(
            request,
            temperature=1.0,
            top_p=1.0,
            scored=False,
            samples=4 * k,
            key=stable_key(seed, "alternatives", request.key),
        )
        for request in requests
    ]
    alternatives = []
    for request, human, completion in zip(requests, taken, generate(sampled), strict=True):
        drawn = [sample.choices[0] for sample in completion.samples if sample.choices]
        spare = uniform_alternatives(
            len(request.answer[0]), human, k, stable_key(seed, "fill", request.key)
        )
        distinct = dict.fromkeys([*drawn, *spare])
        distinct.pop(human, None)
        alternatives.append(tuple(distinct)[:k])
    return alternatives
