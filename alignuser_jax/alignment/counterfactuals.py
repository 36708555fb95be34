"""What would have happened: K alternative actions per human step and the states they lead to.

Nothing is special about a counterfactual: the world steps every alternative, all pages that
are missing are asked for in one batch (`purpose="counterfactual"`), and the answers resolved.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from alignuser_jax.randomness import generator_of, stable_key
from alignuser_jax.records import Action, Completion, Recommender, Request, Transition, World
from alignuser_jax.world import fill

Generate = Callable[[Sequence[Request]], Sequence[Completion]]
"""Answers a batch of requests in order (`sampling.generate` over a `Generator`)."""


@dataclass(frozen=True, slots=True)
class Counterfactual:
    """A step as it was taken, and the K transitions of its alternatives."""

    taken: Transition
    alternatives: tuple[Transition, ...]


def step_alternatives(
    world: World,
    taken: Sequence[Transition],
    actions: Sequence[Sequence[Action]],
    recommender: Recommender | None = None,
) -> list[Counterfactual]:
    """Steps `actions[i]` from the state of `taken[i]`; every missing page in one batch.

    Alternatives that lead to the same text as the step taken, or as an earlier alternative,
    are dropped, ratings excepted (METHOD.md section 8.1). Raises `ValueError` for a
    recommender that says it is `stateful`: imagined pages must leave no trace. Where no
    alternative needs a page (ratings), no recommender is needed.
    """
    flat = [
        (row, action, world.step(step.state, action))
        for row, (step, alternatives) in enumerate(zip(taken, actions, strict=True))
        for action in alternatives
    ]
    states = [state for _, _, state in flat]
    if any(state.needs is not None for state in states):
        if recommender is None:
            raise ValueError("alternatives that lead to new pages need a recommender")
        states = fill(world, recommender, states, purpose="counterfactual")
    found: list[list[Transition]] = [[] for _ in taken]
    texts = [{step.next_state.text} for step in taken]
    for (row, action, _), state in zip(flat, states, strict=True):
        if action.kind == "rate" or state.text not in texts[row]:
            texts[row].add(state.text)
            found[row].append(Transition(taken[row].state, action, state, "counterfactual"))
    return [
        Counterfactual(step, tuple(alternatives))
        for step, alternatives in zip(taken, found, strict=True)
    ]


def uniform_alternatives(n: int, taken: int, k: int, key: int) -> tuple[int, ...]:
    """At most `k` distinct indices below `n` other than `taken`, uniformly, by `key`."""
    rng = generator_of(key)
    order = rng.permutation(n).tolist()
    return tuple(index for index in order if index != taken)[:k]


def policy_alternatives(
    generate: Generate, requests: Sequence[Request], taken: Sequence[int], k: int, seed: int = 0
) -> list[tuple[int, ...]]:
    """At most `k` alternatives per closed request, drawn from the policy (METHOD.md 8.1).

    Each request (one answer line) is sampled 4K times at temperature 1; distinct choices other
    than `taken` are kept in the order drawn and filled up uniformly over the valid ones.
    Failed samples count as no draw.
    """
    if k == 0:
        return [()] * len(requests)
    asked = [
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
    found = []
    for request, human, completion in zip(requests, taken, generate(asked), strict=True):
        drawn = [sample.choices[0] for sample in completion.samples if sample.choices]
        spare = uniform_alternatives(
            len(request.answer[0]), human, k, stable_key(seed, "fill", request.key)
        )
        distinct = dict.fromkeys([*drawn, *spare])
        distinct.pop(human, None)
        found.append(tuple(distinct)[:k])
    return found
