"""What matching will take: the requests and tokens of a few users, counted, times all users."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from alignuser_jax.language.parsing import answer_text
from alignuser_jax.personas.evidence import Evidence
from alignuser_jax.personas.matching import MESSAGE_TOKENS, MatchConfig, match
from alignuser_jax.records import Completion, Request, stable_key


@dataclass(frozen=True)
class Cost:
    """For `users` users, from the counts of `sampled` of them. `prompt_tokens` are all that are
    submitted, `new_tokens` those of them that do not repeat the beginning of another request of
    the same user (and so must be read by an engine that reuses beginnings); `generated_tokens`
    are at most so many. Ties and replies that must be asked for again come on top."""

    users: int
    sampled: int
    requests: float
    prompt_tokens: float
    new_tokens: float
    generated_tokens: float

    def lines(self, seconds_per_user: float | None = None, prices=(0.0, 0.0)) -> list[str]:
        """In words. `prices` are per million prompt and generated tokens."""
        told = [
            f"{self.users} users: {self.requests:,.0f} requests, {self.prompt_tokens:,.0f} "
            f"prompt tokens ({self.new_tokens:,.0f} where beginnings are reused), at most "
            f"{self.generated_tokens:,.0f} generated; counted for {self.sampled} users",
        ]
        if any(prices):
            cost = self.prompt_tokens * prices[0] + self.generated_tokens * prices[1]
            told.append(f"price: at most {cost / 1e6:,.2f}, without a discount for reuse")
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
    sampled = sorted(users, key=lambda user: stable_key("estimate", user))[:sample]
    if not sampled:
        raise ValueError("no users to estimate the cost of: give user ids")
    requests = prompt = new = generated = 0
    reasons: tuple[str, ...] = ()
    for user in sampled:
        texts: list[str] = []
        asked, failures = _stand_in(user, evidence, config, count_tokens)
        reasons += failures
        for request, reply in asked:
            requests += 1
            text = "\x1e".join(message.content for message in request.messages)
            extra = MESSAGE_TOKENS * len(request.messages)
            prompt += count_tokens(text) + extra
            known = max((len(os.path.commonprefix([text, old])) for old in texts), default=0)
            new += count_tokens(text[known:]) + (extra if not known else MESSAGE_TOKENS)
            generated += request.reasoning_tokens + count_tokens(reply)
            texts.append(text)
    if not requests:
        raise ValueError(f"none of {len(sampled)} users can be matched: {reasons[0]}")
    times = len(users) / len(sampled)
    counts = (value * times for value in (requests, prompt, new, generated))
    return Cost(len(users), len(sampled), *counts)


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
