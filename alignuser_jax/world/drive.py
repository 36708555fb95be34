"""Stepping many states at once: every question that comes up is answered in one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from alignuser_jax.records import Action, RecommendationRequest, Recommender, State, World

Purpose = Literal["browse", "counterfactual"]


def advance(
    world: World,
    recommender: Recommender,
    state_actions: Sequence[tuple[State, Action]],
    purpose: Purpose = "browse",
) -> list[State]:
    """The states after each action, complete. With `purpose="counterfactual"` the pages are
    only imagined: requests say so, and a recommender that keeps state is refused."""
    stepped = [world.step(state, action) for state, action in state_actions]
    return fill(world, recommender, stepped, purpose)


def fill(
    world: World,
    recommender: Recommender,
    states: Sequence[State],
    purpose: Purpose = "browse",
) -> list[State]:
    """`states` with what they need, asked of the recommender in one batch."""
    if purpose == "counterfactual" and getattr(recommender, "stateful", False):
        raise ValueError(
            f"{type(recommender).__name__} keeps state, so it cannot be asked for pages that "
            "are only imagined; use a stateless recommender for counterfactuals"
        )
    open_states = [n for n, state in enumerate(states) if state.needs is not None]
    requests = []
    for n in open_states:
        request = states[n].needs
        if not isinstance(request, RecommendationRequest):
            raise ValueError(
                f"state {n} needs a {type(request).__name__}, which a recommender cannot answer"
            )
        requests.append(replace(request, purpose=purpose))
    filled = list(states)
    if not requests:
        return filled
    slates = list(recommender.recommend(requests))
    if len(slates) != len(requests):
        raise ValueError(
            f"{type(recommender).__name__} gave {len(slates)} slates for "
            f"{len(requests)} requests, expected one each, in order"
        )
    for n, slate in zip(open_states, slates, strict=True):
        filled[n] = world.resolve(states[n], slate)
    return filled
