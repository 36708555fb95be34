"""Build counterfactuals: K alternative actions per human step and the states they lead to.

A counterfactual is nothing special: the world steps every alternative, all pages that are
missing are requested in one batch (`purpose="counterfactual"`), and the answers are resolved.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from alignuser_jax.randomness import generator_of, stable_key
from alignuser_jax.records import Action, Completion, Recommender, Request, Transition, World
from alignuser_jax.world import fill

Generate = Callable[[Sequence[Request]], Sequence[Completion]]
"""Answer a batch of requests, in order (`sampling.generate` bound to a `Generator`)."""


class Pair(NamedTuple):
    """A human step and one alternative to it, from the same state."""

    human: Transition
    alternative: Transition


@dataclass(frozen=True, slots=True)
class Counterfactual:
    """A human step and the steps that its alternative actions would have been.

    Attributes:
        human: The transition of the action that the human took.
        alternatives: The transitions of other actions from the same state, at most K.
    """

    human: Transition
    alternatives: tuple[Transition, ...]

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """The human step with each of its alternatives."""
        return tuple(Pair(self.human, alternative) for alternative in self.alternatives)


def step_alternatives(
    world: World,
    steps: Sequence[Transition],
    actions: Sequence[Sequence[Action]],
    recommender: Recommender | None = None,
) -> list[Counterfactual]:
    """Step `actions[i]` from the state of `steps[i]`, with every missing page in one batch.

    An alternative that leads to the same text as the human step or as an earlier alternative
    is dropped, ratings excepted (docs/method.md section 8.1).

    Args:
        world: The world in which the steps were taken.
        steps: The human steps.
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
        for row, (step, others) in enumerate(zip(steps, actions, strict=True))
        for action in others
    ]
    states = [state for _, _, state in flat]
    if any(state.needs is not None for state in states):
        if recommender is None:
            raise ValueError(
                "an alternative leads to a new page, but no recommender was passed: pass one"
            )
        states = fill(world, recommender, states, purpose="counterfactual")
    alternatives: list[list[Transition]] = [[] for _ in steps]
    texts = [{step.next_state.text} for step in steps]
    for (row, action, _), state in zip(flat, states, strict=True):
        if action.kind == "rate" or state.text not in texts[row]:
            texts[row].add(state.text)
            before = steps[row].state
            alternatives[row].append(Transition(before, action, state, "counterfactual"))
    return [
        Counterfactual(step, tuple(others))
        for step, others in zip(steps, alternatives, strict=True)
    ]


@dataclass(frozen=True)
class Alternatives:
    """How the alternatives to human choices are drawn (docs/method.md section 8.1).

    Attributes:
        k: Alternatives per human step, at most.
        seed: Names the draws, together with the request's key.
        generate: Draws from the policy's own choices; `None` draws uniformly.

    Example:
        >>> from alignuser_jax.records import Message, Request
        >>> request = Request((Message("user", "Rate it."),), "rate", answer=(("1", "2", "3"),))
        >>> sorted(Alternatives(k=2).draw([request], choices=[1])[0])
        [0, 2]
    """

    k: int = 4
    seed: int = 0
    generate: Generate | None = None

    def __post_init__(self) -> None:
        if self.k < 0:
            raise ValueError(f"k is {self.k}, expected 0 or more")

    def draw(
        self, requests: Sequence[Request], choices: Sequence[int]
    ) -> list[tuple[int, ...]]:
        """Draw other choices than the humans'.

        Args:
            requests: Requests with one answer line from a closed set.
            choices: The index of the human's choice in each request's answer line.

        Returns:
            Distinct indices into the answer line of each request, at most `k`.
        """
        if self.generate is not None:
            return policy_alternatives(self.generate, requests, choices, self.k, self.seed)
        return [
            uniform_alternatives(
                len(request.answer[0]),
                choice,
                self.k,
                stable_key(self.seed, "alternatives", request.key),
            )
            for request, choice in zip(requests, choices, strict=True)
        ]


def uniform_alternatives(n: int, choice: int, k: int, key: int) -> tuple[int, ...]:
    """Draw at most `k` distinct indices below `n` other than `choice`, uniformly, by `key`."""
    rng = generator_of(key)
    order = rng.permutation(n).tolist()
    return tuple(index for index in order if index != choice)[:k]


def policy_alternatives(
    generate: Generate,
    requests: Sequence[Request],
    choices: Sequence[int],
    k: int,
    seed: int = 0,
) -> list[tuple[int, ...]]:
    """Draw at most `k` alternatives per request from the policy (docs/method.md section 8.1).

    Each request is sampled 4 K times at temperature 1. Distinct choices other than the human's
    are used in the order in which they were drawn; what is missing to `k` is filled up
    uniformly from the request's other choices. A failed sample counts as no draw.

    Args:
        generate: Answers the requests.
        requests: Requests with one answer line from a closed set.
        choices: The index of the human's choice in each request's answer line.
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
    for request, human, completion in zip(requests, choices, generate(sampled), strict=True):
        drawn = [sample.choices[0] for sample in completion.samples if sample.choices]
        spare = uniform_alternatives(
            len(request.answer[0]), human, k, stable_key(seed, "fill", request.key)
        )
        distinct = dict.fromkeys([*drawn, *spare])
        distinct.pop(human, None)
        alternatives.append(tuple(distinct)[:k])
    return alternatives
