"""Cut a user's ratings into conversations that ask for one rating after another.

A rating alone costs a system message, a persona and a history for one digit to learn from. In
a conversation these are paid once, and each further rating costs a line and the question.
That the ratings follow each other in time is in the log; that they were asked for in one
conversation is a DEFAULT of this project.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from alignuser_jax.agents import SessionConfig, rate_items
from alignuser_jax.alignment.examples import conversation_examples, drive
from alignuser_jax.alignment.visits import stars
from alignuser_jax.randomness import named_generator
from alignuser_jax.records import RATINGS, CountTokens, Example, Interaction, Request
from alignuser_jax.views.sites import Sites, agent_user


class RatingRun(NamedTuple):
    """Ratings of one user that one conversation asks for.

    Attributes:
        user_id: Whose ratings they are.
        number: Place among the user's runs, from 0, in time order.
        rated: The ratings, oldest first, no item twice.
    """

    user_id: str
    number: int
    rated: tuple[Interaction, ...]


def rating_runs(
    user_id: str, rated: Sequence[Interaction], longest: int, *, seed: int = 0
) -> list[RatingRun]:
    """Cut a user's ratings, in order, into runs of 1 to `longest`, drawn evenly.

    Runs of every length occur, so that a model learns the answer to a first question as well as
    to a tenth. The second of two ratings of an item within a run is left out.

    Args:
        user_id: Whose ratings they are; names the draws together with `seed`.
        rated: The ratings, oldest first.
        longest: The most ratings of a run.
        seed: Names the draws.

    Example:
        >>> past = [Interaction(str(n), 4.0) for n in range(6)]
        >>> sum(len(run.rated) for run in rating_runs("u1", past, longest=4))
        6
    """
    if longest < 1:
        raise ValueError(f"longest is {longest}, expected at least 1 rating of a run")
    rng = named_generator(seed, "rating runs", user_id)
    runs: list[RatingRun] = []
    start = 0
    while start < len(rated):
        end = start + int(rng.integers(1, longest + 1))
        once = {past.item_id: past for past in reversed(rated[start:end])}
        runs.append(RatingRun(user_id, len(runs), tuple(reversed(once.values()))))
        start = end
    return runs


def run_examples(
    run: RatingRun,
    sites: Sites,
    config: SessionConfig,
    *,
    seed: int = 0,
    count_tokens: CountTokens | None = None,
) -> Iterator[Example]:
    """Yield one example per context window of a run's conversation, every rating trained.

    Args:
        run: The ratings.
        sites: Where they are asked for.
        config: How the agents ask.
        seed: Names the draws.
        count_tokens: Needed if `config.context_tokens` is set.
    """
    given = {past.item_id: RATINGS.index(stars(past.rating)) for past in run.rated}

    def choose(request: Request) -> tuple[int, ...]:
        return (given[request.subject],)

    asking = rate_items(
        agent_user(sites.view, run.user_id, config),
        list(given),
        sites.of_one_item(),
        config,
        seed=seed,
        count_tokens=count_tokens,
    )
    calls, _ = drive(asking, choose)
    yield from conversation_examples(
        calls, "rating", f"{run.user_id}/{run.number}", run.user_id
    )
