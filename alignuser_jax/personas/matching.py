"""Match a persona to a user whose ratings are all that is known (docs/method.md section 4.4).

A language model proposes candidates and then judges, in the role of each candidate, which
ratings could be its own.

`match` is a coroutine that does no I/O: it yields batches of requests and is sent their
completions. So it can be tested with canned answers, and `match_users` runs many at once.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from alignuser_jax.language import persona_prompts as prompts
from alignuser_jax.language.answers import AnswerLines
from alignuser_jax.language.parsing import answer_text, ask_again, read_choices
from alignuser_jax.language.render import MOST_MESSAGE_TOKENS
from alignuser_jax.personas.user_ratings import Rated, UserRatings
from alignuser_jax.randomness import stable_key
from alignuser_jax.records import (
    Completion,
    CountTokens,
    Message,
    Persona,
    Request,
    check_drawing,
)

FIT_TOKENS = 16
"""The most tokens of a judgement, with what a chat template puts before a reply."""
SAME_SCORE = 1e-9
"""Scores that differ by no more are tied."""

T = TypeVar("T")
Matching = Generator[tuple[Request, ...], Sequence[Completion], T]
"""A part of a match: yields batches of requests, is sent their completions, returns a `T`."""


@dataclass(frozen=True)
class MatchConfig:
    """How personas are matched.

    The letters and numbers marked 4.4 are those of docs/method.md section 4.4; the others are
    DEFAULTs of this project.

    Attributes:
        ages: The closed list of ages to choose from.
        occupations: The closed list of occupations to choose from.
        item_type: What was rated, as prompts say it.
        candidates: How many personas are proposed per user (m, 4.4).
        taste_items: How many ratings the proposals are made from (4.4).
        subsets: How many subsets of the user's ratings, and how many of others', are judged
            (j).
        subset_items: How many ratings a subset holds (ρ, 4.4).
        propose_reasoning_tokens: The most tokens of reasoning before a proposal.
        fit_reasoning_tokens: The most tokens of reasoning before a judgement; without any, the
            exact distribution of the judgement is read off.
        temperature: Of the draws; 0 takes the likeliest reply.
        top_p: The probability that the tokens to draw from must reach; 1 for all tokens.
        context_tokens: The most tokens of a prompt and its reply; prompts list as many ratings
            as fit. `None` for no limit.
        seed: Names the randomness.

    Example:
        >>> config = MatchConfig(ages=("18-24", "25-34"), occupations=("artist", "lawyer"))
    """

    ages: tuple[str, ...]
    occupations: tuple[str, ...]
    item_type: str = "movies"
    candidates: int = 5
    taste_items: int = 50
    subsets: int = 3
    subset_items: int = 50
    propose_reasoning_tokens: int = 200
    fit_reasoning_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    context_tokens: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("candidates", "taste_items", "subsets", "subset_items"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 1 or more")
        for name in ("propose_reasoning_tokens", "fit_reasoning_tokens"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 0 or more")
        if self.context_tokens is not None and self.context_tokens < 1:
            raise ValueError(
                f"context_tokens is {self.context_tokens}, expected 1 or more, or None for no "
                "limit"
            )
        check_drawing(self.temperature, self.top_p)
        for name in ("ages", "occupations"):
            values = getattr(self, name)
            bad = [v for v in values if not v.strip() or "\n" in v or v != v.strip()]
            if not values or bad or len(set(values)) != len(values):
                raise ValueError(
                    f"{name} are {values}: expected one or more different texts of one line"
                )


class Candidate(NamedTuple):
    """A proposed persona.

    Attributes:
        age: One of `MatchConfig.ages`.
        occupation: One of `MatchConfig.occupations`.
        big_five: Levels 1 to 3, in the order of `Persona.big_five`.
    """

    age: str
    occupation: str
    big_five: tuple[int, ...]


@dataclass(frozen=True)
class Match:
    """The persona matched to one user, and how it was chosen.

    Attributes:
        user_id: The user.
        candidates: The distinct candidates, in the order of their proposal.
        fits: For each candidate its judgements (1 to 10) of the user's own j subsets, then of j
            subsets of others; () if one of them failed.
        second_fits: The same for the candidates that were tied, with other subsets; () if none
            were.
        scores: For each candidate the sum of its judgements of the user's own subsets minus
            the sum of those of others; the mean of two draws if candidates were tied; `None`
            if a judgement failed.
        chosen: The index of the best candidate, -1 if there is none.
        told: How many ratings the proposal listed, and how many each subset.
        failures: What went wrong, in words.
    """

    user_id: str
    candidates: tuple[Candidate, ...] = ()
    fits: tuple[tuple[float, ...], ...] = ()
    second_fits: tuple[tuple[float, ...], ...] = ()
    scores: tuple[float | None, ...] = ()
    chosen: int = -1
    told: tuple[int, int] = (0, 0)
    failures: tuple[str, ...] = ()

    @property
    def persona(self) -> Candidate | None:
        """The candidate that was chosen; `None` if the match failed."""
        return self.candidates[self.chosen] if self.chosen >= 0 else None


def match(
    user_id: str,
    ratings: UserRatings,
    config: MatchConfig,
    count_tokens: CountTokens | None = None,
) -> Matching[Match]:
    """Return the coroutine that matches a persona to one user.

    It yields batches of requests and is sent the completions of each batch: `config.candidates`
    proposals one after the other in one conversation, then all judgements at once. The requests
    depend on `ratings`, `config` and the answers only.

    Args:
        user_id: The user.
        ratings: The ratings to match by.
        config: How personas are matched.
        count_tokens: Counts the tokens of a text; needed for `config.context_tokens`.

    Raises:
        KeyError: The user is unknown.
        ValueError: `config.context_tokens` is set and `count_tokens` is missing.

    Example:
        >>> def drive(matching, model):
        ...     batch = next(matching)
        ...     while True:
        ...         try:
        ...             batch = matching.send([model(request) for request in batch])
        ...         except StopIteration as end:
        ...             return end.value  # a Match
    """
    return (yield from _Matching(user_id, ratings, config, count_tokens).run())


class _Matching:
    def __init__(
        self,
        user_id: str,
        ratings: UserRatings,
        config: MatchConfig,
        count_tokens: CountTokens | None,
    ):
        if config.context_tokens is not None and count_tokens is None:
            raise ValueError(
                f"context_tokens is {config.context_tokens}, so count_tokens is needed: pass a "
                "function that counts the tokens of a text"
            )
        self.user_id, self.ratings, self.config = user_id, ratings, config
        self.count = count_tokens if config.context_tokens is not None else None
        self.failures: list[str] = []
        self.propose_answer = prompts.propose_answer(config.ages, config.occupations)
        self.fit_answer = prompts.fit_answer()

    def run(self) -> Matching[Match]:
        own = self.ratings.of_user(self.user_id)
        if not own:
            return Match(self.user_id, failures=("the user has no ratings to match by",))
        candidates, listed = yield from self.propose(own)
        if not candidates:
            return Match(self.user_id, told=(listed, 0), failures=tuple(self.failures))
        fits, size = yield from self.judge(candidates, range(len(candidates)), 0)
        scores = [fit_score(row) for row in fits]
        second: list[tuple[float, ...]] = []
        best = _best(scores)
        if len(best) > 1:  # a second draw decides among the tied ones
            second, _ = yield from self.judge(candidates, best, 1)
            means: list[float | None] = [None] * len(scores)
            for index, again in zip(best, map(fit_score, second), strict=True):
                before = scores[index]
                if again is not None and before is not None:
                    means[index] = scores[index] = (before + again) / 2
            best = _best(means) or best
        return Match(
            self.user_id,
            candidates,
            tuple(fits),
            tuple(second),
            tuple(scores),
            best[0] if best else -1,
            (listed, size),
            tuple(self.failures),
        )

    # --- candidates ---

    def propose(self, own: tuple[Rated, ...]) -> Matching[tuple[tuple[Candidate, ...], int]]:
        """Return the distinct candidates, and how many ratings the taste summary lists."""
        config = self.config
        taste = self.ratings.taste(self.user_id, config.taste_items, config.seed)

        def messages_with(count: int) -> tuple[Message, ...]:
            return prompts.propose_messages(
                self.ratings.summary(taste[:count]),
                config.ages,
                config.occupations,
                config.candidates,
                config.item_type,
            )

        listed = self.fitting(len(taste), messages_with, self.propose_room())
        if listed is None:
            return (), 0
        candidates: dict[Candidate, None] = {}
        messages = messages_with(listed)
        for number in range(1, config.candidates + 1):
            if number > 1:
                again = prompts.propose_another(number, config.candidates)
                messages = (*messages, again)
            request = self.request(
                messages, "propose", self.propose_answer, (number,), scored=False
            )
            ((choices, _),) = yield from self.choose((request,))
            if choices is None:
                break  # the next turn would follow a reply that nobody gave
            messages = (
                *messages,
                Message.of("assistant", answer_text(choices, self.propose_answer)),
            )
            age, occupation, *levels = choices
            traits = tuple(level + prompts.BIG_FIVE_LEVELS[0] for level in levels)
            candidate = Candidate(config.ages[age], config.occupations[occupation], traits)
            candidates[candidate] = None
        return tuple(candidates), listed

    def propose_room(self) -> int:
        """Return how many tokens the replies and the later turns take."""
        if self.count is None:
            return 0
        longest = sum(max(map(self.count, line)) + 1 for line in self.propose_answer)
        turn = self.count(prompts.propose_another(2, self.config.candidates).content)
        each = longest + turn + 2 * MOST_MESSAGE_TOKENS
        return self.config.candidates * each + self.config.propose_reasoning_tokens

    # --- self-consistency ---

    def judge(
        self, candidates: Sequence[Candidate], which: Sequence[int], draw: int
    ) -> Matching[tuple[list[tuple[float, ...]], int]]:
        """Return the judgements of each candidate of `which`, and the size of the subsets.

        The user's own subsets come first. In a prompt the subset stands before the candidate,
        so the requests about one subset share their prefix.
        """
        config = self.config
        subsets = self.ratings.subsets(
            self.user_id, config.subsets, config.subset_items, config.seed, draw
        )
        personas = [
            Persona(self.user_id, age=c.age, occupation=c.occupation, big_five=c.big_five)
            for c in candidates
        ]
        longest = max(personas, key=lambda p: len(p.age) + len(p.occupation))

        def messages_of(subset: Sequence[Rated], persona: Persona) -> tuple[Message, ...]:
            text = self.ratings.summary(subset)
            return prompts.fit_messages(text, persona, config.item_type)

        def beginning_of(subset: Sequence[Rated], count: int) -> tuple[Message, ...]:
            return messages_of(subset[:count], longest)

        size = min(map(len, subsets))  # the same for all, so that the two sums are comparable
        for subset in subsets:
            fitting = self.fitting(
                size,
                functools.partial(beginning_of, subset),
                config.fit_reasoning_tokens + FIT_TOKENS,
            )
            if fitting is None:
                return [()] * len(which), 0
            size = fitting
        requests = [
            self.request(
                messages_of(subset[:size], personas[c]),
                "fit",
                self.fit_answer,
                (draw, number, c),
                scored=True,
            )
            for number, subset in enumerate(subsets)
            for c in which
        ]
        answers = yield from self.choose(tuple(requests))
        fits: list[tuple[float, ...]] = []
        for place in range(len(which)):
            judgements = [
                _expected(choices, completion)
                for choices, completion in answers[place :: len(which)]
                if choices is not None
            ]
            complete = len(judgements) == len(subsets)
            fits.append(tuple(judgements) if complete else ())
        return fits, size

    # --- requests ---

    def fitting(
        self, most: int, messages_with: Callable[[int], tuple[Message, ...]], room: int
    ) -> int | None:
        """Return the largest count up to `most` whose messages leave `room` tokens.

        `messages_with(count)` are the messages with that many ratings. If not even one rating
        fits, that is noted as a failure and `None` is returned.
        """
        count_tokens, context = self.count, self.config.context_tokens
        if count_tokens is None or context is None:
            return most
        free = context - room

        def fits(count: int) -> bool:
            used = (count_tokens(m.content) + MOST_MESSAGE_TOKENS for m in messages_with(count))
            return sum(used) <= free

        if fits(most):
            return most
        low, high = 0, most  # `low` fits, or is 0; `high` does not
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        if low:
            return low
        self.failures.append(
            f"the questions do not fit into {context} tokens with a single "
            f"rating ({room} are for the replies): give a larger context (engine.context; of a "
            "server --context_tokens), fewer candidates or less reasoning"
        )
        return None

    def request(
        self,
        messages: tuple[Message, ...],
        purpose: str,
        answer: AnswerLines,
        name: tuple[int, ...],
        *,
        scored: bool,
    ) -> Request:
        config = self.config
        reasoning = config.fit_reasoning_tokens if scored else config.propose_reasoning_tokens
        return Request(
            messages,
            purpose,
            subject="/".join(map(str, name)),
            answer=answer,
            scored=scored,
            reasoning_tokens=reasoning,
            temperature=config.temperature,
            top_p=config.top_p,
            key=stable_key(config.seed, self.user_id, purpose, *name),
        )

    def choose(
        self, requests: tuple[Request, ...]
    ) -> Matching[list[tuple[tuple[int, ...] | None, Completion]]]:
        """Return (choices, completion) per request; choices are `None` after a failure.

        Failures are noted. Replies that cannot be read are asked for once more, all at once.
        """
        completions = list((yield requests))
        read = [read_choices(c, r.answer) for c, r in zip(completions, requests, strict=True)]
        unread = [
            place
            for place, (choices, _) in enumerate(read)
            if choices is None and completions[place].finish_reason != "error"
        ]
        if unread:
            again = tuple(ask_again(requests[n], completions[n].text) for n in unread)
            for place, completion in zip(unread, (yield again), strict=True):
                completions[place] = completion
                read[place] = read_choices(completion, requests[place].answer)
        for request, (choices, problem) in zip(requests, read, strict=True):
            if choices is None:
                self.failures.append(f"{request.purpose} {request.subject}: {problem}")
        return [
            (choices, completion)
            for (choices, _), completion in zip(read, completions, strict=True)
        ]


def fit_score(fits: Sequence[float]) -> float | None:
    """Return s(p, u) of docs/method.md section 4.4; `None` without judgements.

    The first half of `fits` is of the user's own subsets, the second half of other users'.
    """
    half = len(fits) // 2
    return math.fsum(fits[:half]) - math.fsum(fits[half:]) if fits else None


def _best(scores: Sequence[float | None]) -> list[int]:
    """Return the indices of the highest score: several if it is tied, none without scores."""
    valid = [s for s in scores if s is not None]
    return [n for n, s in enumerate(scores) if s is not None and max(valid) - s <= SAME_SCORE]


def _expected(choices: tuple[int, ...], completion: Completion) -> float:
    """Return the expected judgement, or the drawn one if there is no distribution."""
    first = prompts.FIT[0]
    shares = completion.choice_probabilities
    if shares and shares[0]:
        return math.fsum(value * share for value, share in enumerate(shares[0], first))
    return float(choices[0] + first)
