"""Step many states at once and answer everything they need in one batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal, TypeVar

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
"""Whether an agent really sees the pages, or they are only imagined."""
WritePages = Callable[[Sequence[NextPageRequest]], Sequence[str]]
"""Writes the pages that no recommender makes: a language model as a function of a batch."""

_Need = TypeVar("_Need")
_Answer = TypeVar("_Answer")


def advance(
    world: World,
    recommender: Recommender | None,
    state_actions: Sequence[tuple[State, Action]],
    purpose: Purpose = "browse",
    write_pages: WritePages | None = None,
) -> list[State]:
    """Return the complete state after each action.

    Args:
        world: The world of all states.
        recommender: Makes the slates; may be `None` if no state needs one.
        state_actions: (state, action) pairs, of any number of visits.
        purpose: "counterfactual" if the pages are only imagined. Requests then say so, and a
            recommender that keeps state is refused with a `ValueError`.
        write_pages: Writes the pages that a recommender cannot make; may be `None` if no state
            needs one.

    Example:
        >>> from alignuser_jax.datasets.formats import synthetic
        >>> from alignuser_jax.recommenders import Random
        >>> from alignuser_jax.world.site.of_dataset import site_of_dataset
        >>> dataset = synthetic.generate()
        >>> site, recommender = site_of_dataset(dataset), Random(dataset.item_ids)
        >>> states = [site.reset(user, 0) for user in dataset.user_ids[:2]]
        >>> states = fill(site, recommender, states)
        >>> states = advance(site, recommender, [(s, Action("next_page")) for s in states])
        >>> [state.page for state in states]
        [2, 2]
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
    """Return `states` with everything that they need.

    The recommender makes all slates in one call, `write_pages` all other pages in another. The
    arguments are those of `advance`.

    Raises:
        ValueError: If a state needs what nobody can answer, a recommender that keeps state
            would make imagined pages, or there is not one answer for each request.
    """
    if purpose == "counterfactual" and getattr(recommender, "stateful", False):
        raise ValueError(
            f"{type(recommender).__name__} keeps state, so it cannot be asked for pages "
            "that are only imagined: use a stateless recommender for counterfactuals"
        )
    slates: dict[int, RecommendationRequest] = {}
    pages: dict[int, NextPageRequest] = {}
    for n, state in enumerate(states):
        if isinstance(state.needs, RecommendationRequest):
            slates[n] = replace(state.needs, purpose=purpose)
        elif state.needs is not None:
            pages[n] = replace(state.needs, purpose=purpose)
    answers: dict[int, Slate | str] = {}
    if pages and write_pages is None:
        raise ValueError(
            f"state {next(iter(pages))} needs a NextPageRequest answered, which no "
            "recommender can do: pass write_pages"
        )
    if slates:
        if recommender is None:
            raise ValueError(f"state {next(iter(slates))} needs a slate: pass a recommender")
        name = type(recommender).__name__
        answers |= _in_one_batch(slates, recommender.recommend, name, "slates")
    if pages and write_pages is not None:
        answers |= _in_one_batch(pages, write_pages, "write_pages", "pages")
    return [
        world.resolve(state, answers[n]) if n in answers else state
        for n, state in enumerate(states)
    ]


def _in_one_batch(
    requests: dict[int, _Need],
    answer: Callable[[Sequence[_Need]], Sequence[_Answer]],
    name: str,
    noun: str,
) -> dict[int, _Answer]:
    answers = list(answer(list(requests.values())))
    if len(answers) != len(requests):
        raise ValueError(
            f"{name} gave {len(answers)} {noun} for {len(requests)} requests, expected one "
            "each, in order"
        )
    return dict(zip(requests, answers, strict=True))
