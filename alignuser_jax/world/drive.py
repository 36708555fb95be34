"""Stepping many states at once: every question that comes up is answered in one batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

from alignuser_jax.records import (
    Action,
    NextPageRequest,
    RecommendationRequest,
    Recommender,
    Slate,
    State,
    World,
)

Purpose = Literal["browse", "counterfactual"]
WritePages = Callable[[Sequence[NextPageRequest]], Sequence[str]]
"""Writes the pages that no recommender makes: a language model, as a function of a batch."""


def advance(
    world: World,
    recommender: Recommender | None,
    state_actions: Sequence[tuple[State, Action]],
    purpose: Purpose = "browse",
    write_pages: WritePages | None = None,
) -> list[State]:
    """The states after each action, complete. With `purpose="counterfactual"` the pages are
    only imagined: requests say so, and a recommender that keeps state is refused.
    """
    stepped = [world.step(state, action) for state, action in state_actions]
    return fill(world, recommender, stepped, purpose, write_pages)


def fill(
    world: World,
    recommender: Recommender | None,
    states: Sequence[State],
    purpose: Purpose = "browse",
    write_pages: WritePages | None = None,
) -> list[State]:
    """`states` with what they need: slates asked of the recommender in one batch, other pages
    of `write_pages` in another. Either may be missing where no state asks for it.
    """
    if purpose == "counterfactual" and getattr(recommender, "stateful", False):
        raise ValueError(
            f"{type(recommender).__name__} keeps state, so it cannot be asked for pages that "
            "are only imagined; use a stateless recommender for counterfactuals"
        )
    wanted = {n: replace(s.needs, purpose=purpose) for n, s in enumerate(states) if s.needs}
    slates = {n: q for n, q in wanted.items() if isinstance(q, RecommendationRequest)}
    pages = {n: q for n, q in wanted.items() if isinstance(q, NextPageRequest)}
    if pages and write_pages is None:
        raise ValueError(
            f"state {next(iter(pages))} needs a NextPageRequest answered, which a recommender "
            "cannot do: give write_pages"
        )
    if slates and recommender is None:
        raise ValueError(f"state {next(iter(slates))} needs a slate: give a recommender")
    answers: dict[int, Slate | str] = {}
    for questions, ask, name, noun in (
        (slates, getattr(recommender, "recommend", None), type(recommender).__name__, "slates"),
        (pages, write_pages, "write_pages", "pages"),
    ):
        if not questions:
            continue
        got = list(ask(list(questions.values())))
        if len(got) != len(questions):
            raise ValueError(
                f"{name} gave {len(got)} {noun} for "
                f"{len(questions)} requests, expected one each, in order"
            )
        answers |= zip(questions, got, strict=True)
    return [
        world.resolve(state, answers[n]) if n in answers else state
        for n, state in enumerate(states)
    ]
