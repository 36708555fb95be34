"""Estimate what persona matching takes: count the tokens of a few users, scale to all users."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from alignuser_jax.language.parsing import REPROMPT, answer_text
from alignuser_jax.personas.evidence import Evidence
from alignuser_jax.personas.matching import MESSAGE_TOKENS, MatchConfig, match
from alignuser_jax.randomness import stable_key
from alignuser_jax.records import Completion, Request


@dataclass(frozen=True)
class Cost:
    """The requests and tokens that matching takes.

    The numbers leave out ties, which are judged twice, and replies that cannot be read, which
    are asked for again; `worst` has both everywhere.

    Attributes:
        users: How many users have ratings, so that they can be matched.
        sampled: For how many of them the tokens were counted.
        without: How many users have no ratings; nothing is asked about them.
        requests: The number of requests.
        prompt_tokens: The tokens of all prompts.
        new_tokens: The prompt tokens that are not a prefix of another request of the same user.
            An engine that reuses prefixes must prefill only these.
        generated_tokens: The tokens of all replies.
        worst: (requests, prompt tokens, generated tokens) if all candidates are tied and every
            question is asked twice.
    """

    users: int
    sampled: int
    without: int
    requests: float
    prompt_tokens: float
    new_tokens: float
    generated_tokens: float
    worst: tuple[float, float, float]

    def lines(self, seconds_per_user: float | None = None, prices=(0.0, 0.0)) -> list[str]:
        """Return the estimate in words, a line each for tokens, price and time.

        Args:
            seconds_per_user: The measured time; `None` leaves out the line about time.
            prices: Per million prompt tokens and per million generated tokens; without them
                the line about the price is left out.
        """
        requests, prompt, generated = self.worst
        unrated = f"; {self.without} more have no ratings and are not asked about"
        lines = [
            f"{self.users} users: {self.requests:,.0f} requests, {self.prompt_tokens:,.0f} "
            f"prompt tokens ({self.new_tokens:,.0f} where beginnings are reused), "
            f"{self.generated_tokens:,.0f} generated, without ties or repeats (at worst, with "
            f"both everywhere, {requests:,.0f}, {prompt:,.0f} and {generated:,.0f}); counted "
            f"for {self.sampled} users" + (unrated if self.without else ""),
        ]
        if any(prices):
            cost, most = (
                (read * prices[0] + written * prices[1]) / 1e6
                for read, written in (
                    (self.prompt_tokens, self.generated_tokens),
                    (prompt, generated),
                )
            )
            lines.append(
                f"price: {cost:,.2f} without ties or repeats, at worst {most:,.2f}, without a "
                "discount for reuse"
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
    evidence: Evidence,
    config: MatchConfig,
    count_tokens: Callable[[str], int],
    sample: int = 16,
) -> Cost:
    """Estimate what it takes to match `users`, without asking a model.

    Args:
        users: The user ids.
        evidence: The ratings to match by.
        config: How personas are matched.
        count_tokens: Counts the tokens of a text.
        sample: For how many users requests are made and counted.

    Raises:
        ValueError: There are no users, or none of them can be asked anything; the message says
            why.
    """
    if not users:
        raise ValueError("no users to estimate the cost of: give user ids")
    able = [user for user in users if evidence.count(user)]
    sampled = sorted(able, key=lambda user: stable_key("estimate", user))[:sample]
    if not sampled:
        raise ValueError(f"none of {len(users)} users has ratings to match by")
    requests = prompt = new = generated = 0
    worst = [0, 0, 0]
    repeat = count_tokens(REPROMPT) + 2 * MESSAGE_TOKENS
    reasons: tuple[str, ...] = ()
    for user in sampled:
        texts: list[str] = []
        exchanges, failures = _stand_in(user, evidence, config, count_tokens)
        reasons += failures
        for request, reply in exchanges:
            requests += 1
            text = "\x1e".join(message.content for message in request.messages)
            extra = MESSAGE_TOKENS * len(request.messages)
            read = count_tokens(text) + extra
            prompt += read
            shared = max((len(os.path.commonprefix([text, old])) for old in texts), default=0)
            new += count_tokens(text[shared:]) + (extra if not shared else MESSAGE_TOKENS)
            written = request.reasoning_tokens + count_tokens(reply)
            generated += written
            draws = 1 if request.purpose == "propose" else 2
            counts = (2, 2 * read + written + repeat, 2 * written)
            worst = [all_ + draws * n for all_, n in zip(worst, counts, strict=True)]
            texts.append(text)
    if not requests:
        raise ValueError(f"none of {len(sampled)} users can be matched: {reasons[0]}")
    times = len(able) / len(sampled)
    requests, prompt, new, generated, *worst = (
        value * times for value in (requests, prompt, new, generated, *worst)
    )
    without = len(users) - len(able)
    return Cost(
        len(able), len(sampled), without, requests, prompt, new, generated, tuple(worst)
    )


def _stand_in(
    user: str, evidence, config, count_tokens
) -> tuple[list[tuple[Request, str]], tuple[str, ...]]:
    """Return the (request, reply) pairs of one user, and what failed.

    The replies are as long as real ones, and the candidates in them all differ.
    """
    coroutine, exchanges = match(user, evidence, config, count_tokens), []
    answers = None
    while True:
        try:
            batch = coroutine.send(answers)
        except StopIteration as end:
            return exchanges, end.value.failures
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


def _different(number: int, sizes: Sequence[int]) -> list[int]:
    """Return the choices of candidate `number`: its digits in base `sizes`."""
    choices = []
    for size in sizes:
        choices.append(number % size)
        number //= size
    return choices
