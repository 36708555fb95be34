"""What matching will take: the requests and tokens of a few users, counted, times all users."""

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
    """For `users` users who have ratings, from the counts of `sampled` of them; `without` more
    have none and are not asked about. `prompt_tokens` are all that are submitted, `new_tokens`
    those of them that do not repeat the beginning of another request of the same user (and so
    must be read by an engine that reuses beginnings). Ties, which are judged twice, and replies
    that must be asked for again come on top: `worst` has (requests, prompt tokens, generated
    tokens) where all candidates are tied and every question is asked again."""

    users: int
    sampled: int
    without: int
    requests: float
    prompt_tokens: float
    new_tokens: float
    generated_tokens: float
    worst: tuple[float, float, float]

    def lines(self, seconds_per_user: float | None = None, prices=(0.0, 0.0)) -> list[str]:
        """In words. `prices` are per million prompt and generated tokens."""
        requests, prompt, generated = self.worst
        none = f"; {self.without} more have no ratings and are not asked about"
        told = [
            f"{self.users} users: {self.requests:,.0f} requests, {self.prompt_tokens:,.0f} "
            f"prompt tokens ({self.new_tokens:,.0f} where beginnings are reused), "
            f"{self.generated_tokens:,.0f} generated, without ties or repeats (at worst, with "
            f"both everywhere, {requests:,.0f}, {prompt:,.0f} and {generated:,.0f}); counted "
            f"for {self.sampled} users" + (none if self.without else ""),
        ]
        if any(prices):
            cost, most = (
                (read * prices[0] + written * prices[1]) / 1e6
                for read, written in (
                    (self.prompt_tokens, self.generated_tokens),
                    (prompt, generated),
                )
            )
            told.append(
                f"price: {cost:,.2f} without ties or repeats, at worst {most:,.2f}, without a "
                "discount for reuse"
            )
        if seconds_per_user is not None:
            seconds = seconds_per_user * self.users
            told.append(
                f"time: {seconds:,.0f} s ({seconds / 3600:.1f} h) at {seconds_per_user:.2f} s "
                "per user, as measured here"
            )
        return told


def estimate(
    users: Sequence[str],
    evidence: Evidence,
    config: MatchConfig,
    count_tokens: Callable[[str], int],
    sample: int = 16,
) -> Cost:
    """The cost of `users`, from up to `sample` of them; no model is asked. Raises `ValueError`,
    saying why, where none of them can be asked anything."""
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
        asked, failures = _stand_in(user, evidence, config, count_tokens)
        reasons += failures
        for request, reply in asked:
            requests += 1
            text = "\x1e".join(message.content for message in request.messages)
            extra = MESSAGE_TOKENS * len(request.messages)
            read = count_tokens(text) + extra
            prompt += read
            known = max((len(os.path.commonprefix([text, old])) for old in texts), default=0)
            new += count_tokens(text[known:]) + (extra if not known else MESSAGE_TOKENS)
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
    """The requests of a user whose candidates all differ, with replies as long as real ones;
    and what failed."""
    coroutine, asked = match(user, evidence, config, count_tokens), []
    answers = None
    while True:
        try:
            batch = coroutine.send(answers)
        except StopIteration as end:
            return asked, end.value.failures
        answers = []
        for request in batch:
            if request.purpose == "propose":
                choices = _different(len(asked), [len(line) for line in request.answer])
            else:  # the first candidate likes the user's own ratings only: nothing is tied
                _, subset, candidate = map(int, request.subject.split("/"))
                choices = [9 if candidate == 0 and subset < config.subsets else 0]
            reply = answer_text(choices, request.answer)
            asked.append((request, reply))
            answers.append(Completion(reply, tuple(choices)))


def _different(number: int, sizes: Sequence[int]) -> list[int]:
    """The choices of candidate `number`: its digits in base `sizes`."""
    choices = []
    for size in sizes:
        choices.append(number % size)
        number //= size
    return choices
