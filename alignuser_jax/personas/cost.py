"""Estimate what persona matching takes: count the tokens of a few users, scale to all users."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from alignuser_jax.driver.cost import Load, LoadCounter
from alignuser_jax.language.parsing import REPROMPT, answer_text
from alignuser_jax.language.render import MOST_MESSAGE_TOKENS
from alignuser_jax.personas.matching import MatchConfig, match
from alignuser_jax.personas.user_ratings import UserRatings
from alignuser_jax.randomness import stable_key
from alignuser_jax.records import Completion, CountTokens, Request


@dataclass(frozen=True)
class Cost:
    """The requests and tokens that matching takes.

    `expected` leaves out ties, which are judged twice, and replies that cannot be read, which
    are asked for again; `worst` has both everywhere.

    Attributes:
        users: How many users have ratings, so that they can be matched.
        sampled: For how many of them the tokens were counted.
        without: How many users have no ratings; nothing is asked about them.
        expected: The load without ties and repeats.
        new_tokens: The prompt tokens that are not a prefix of another request of the same user.
            An engine that reuses prefixes must prefill only these.
        worst: The load if all candidates are tied and every question is asked twice.
    """

    users: int
    sampled: int
    without: int
    expected: Load
    new_tokens: float
    worst: Load

    def lines(
        self,
        seconds_per_user: float | None = None,
        prices: tuple[float, float] = (0.0, 0.0),
    ) -> list[str]:
        """Return the estimate in words, a line each for tokens, price and time.

        Args:
            seconds_per_user: The measured time; `None` leaves out the line about time.
            prices: Per million prompt tokens and per million generated tokens; without them
                the line about the price is left out.
        """
        expected, worst = self.expected, self.worst
        unrated = f"; {self.without} more have no ratings and are not asked about"
        lines = [
            f"{self.users} users: {expected.requests:,.0f} requests, "
            f"{expected.prompt_tokens:,.0f} prompt tokens ({self.new_tokens:,.0f} where "
            f"beginnings are reused), {expected.generated_tokens:,.0f} generated, without ties "
            f"or repeats (at worst, with both everywhere, {worst.requests:,.0f}, "
            f"{worst.prompt_tokens:,.0f} and {worst.generated_tokens:,.0f}); counted "
            f"for {self.sampled} users" + (unrated if self.without else ""),
        ]
        if any(prices):
            lines.append(
                f"price: {expected.price(prices):,.2f} without ties or repeats, at worst "
                f"{worst.price(prices):,.2f}, without a discount for reuse"
            )
        if seconds_per_user is not None:
            seconds = seconds_per_user * self.users
            lines.append(
                f"time: {seconds:,.0f} s ({seconds / 3600:.1f} h) at {seconds_per_user:.2f} s "
                "per user, as measured here"
            )
        return lines


def estimate(
    users: Sequence[str],
    ratings: UserRatings,
    config: MatchConfig,
    count_tokens: CountTokens,
    sample: int = 16,
) -> Cost:
    """Estimate what it takes to match `users`, without asking a model.

    Args:
        users: The user ids.
        ratings: The ratings to match by.
        config: How personas are matched.
        count_tokens: Counts the tokens of a text.
        sample: For how many users requests are made and counted.

    Raises:
        ValueError: There are no users, or none of them can be asked anything; the message says
            why.
    """
    if not users:
        raise ValueError("no users to estimate the cost of: give user ids")
    able = [user for user in users if ratings.count(user)]
    sampled = sorted(able, key=lambda user: stable_key("estimate", user))[:sample]
    if not sampled:
        raise ValueError(f"none of {len(users)} users has ratings to match by")
    repeat = count_tokens(REPROMPT) + 2 * MOST_MESSAGE_TOKENS
    counter = LoadCounter(count_tokens, MOST_MESSAGE_TOKENS, repeat)
    reasons: list[str] = []
    for user in sampled:
        counter.next_coroutine()
        exchanges, failures = _stand_in(user, ratings, config, count_tokens)
        reasons += failures
        for request, reply in exchanges:
            counter.add(request, reply, most=1 if request.purpose == "propose" else 2)
    if not counter.expected.requests:
        raise ValueError(f"none of {len(sampled)} users can be matched: {reasons[0]}")
    times = len(able) / len(sampled)
    return Cost(
        len(able),
        len(sampled),
        len(users) - len(able),
        counter.expected.scaled(times),
        counter.new_tokens * times,
        counter.worst.scaled(times),
    )


def _stand_in(
    user: str, ratings: UserRatings, config: MatchConfig, count_tokens: CountTokens
) -> tuple[list[tuple[Request, str]], tuple[str, ...]]:
    """Return the (request, reply) pairs of one user, and what failed.

    The replies are as long as real ones, and the candidates in them all differ.
    """
    coroutine = match(user, ratings, config, count_tokens)
    exchanges: list[tuple[Request, str]] = []
    try:
        batch = next(coroutine)
        while True:
            answers = []
            for request in batch:
                if request.purpose == "propose":
                    choices = _different(len(exchanges), [len(line) for line in request.answer])
                else:  # only candidate 0 fits, and only the user's own ratings: nothing is tied
                    _, subset, candidate = map(int, request.subject.split("/"))
                    choices = [9 if candidate == 0 and subset < config.subsets else 0]
                reply = answer_text(choices, request.answer)
                exchanges.append((request, reply))
                answers.append(Completion(reply, tuple(choices)))
            batch = coroutine.send(answers)
    except StopIteration as end:
        return exchanges, end.value.failures


def _different(number: int, sizes: Sequence[int]) -> list[int]:
    """Return the choices of candidate `number`: its digits in base `sizes`."""
    choices = []
    for size in sizes:
        choices.append(number % size)
        number //= size
    return choices
