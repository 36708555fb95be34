"""A persona for a user whose ratings are all that is known (METHOD.md 4.4): a language model
proposes candidates and judges, in the role of each, which ratings could be its own.

`match` is a coroutine that does no I/O: it yields batches of requests and is sent their
completions, so it can be tested with canned answers and `population.match_users` runs many.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from alignuser_jax.language import persona_prompts as prompts
from alignuser_jax.language.parsing import answer_text, ask_again, read_choices
from alignuser_jax.personas.evidence import Evidence, Rated
from alignuser_jax.randomness import stable_key
from alignuser_jax.records import Completion, Message, Persona, Request

MESSAGE_TOKENS = 8
"""What a chat template puts around a message, in tokens, at most (ChatML and Llama 3: 5)."""
FIT_TOKENS = 16
"""What a judgement takes at most, with what a chat template puts before a reply."""
SAME_SCORE = 1e-9

CountTokens = Callable[[str], int]
Batch = tuple[Request, ...]
Answers = Sequence[Completion]


@dataclass(frozen=True)
class MatchConfig:
    """How personas are matched; `ages` and `occupations` are the closed lists.

    From METHOD.md 4.4: `candidates` m, `taste_items` of the taste summary, `subset_items` ρ.
    DEFAULTS of this project: `subsets` j, the reasoning tokens before a proposal and before a
    judgement (without them its exact distribution is read off), and that the ratings told are
    as many as fit into `context_tokens` (`None`: no limit).
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
        for name in ("ages", "occupations"):
            values = getattr(self, name)
            bad = [v for v in values if not v.strip() or "\n" in v or v != v.strip()]
            if not values or bad or len(set(values)) != len(values):
                raise ValueError(
                    f"{name} are {values}: expected one or more different texts of one line"
                )


class Candidate(NamedTuple):
    """A persona as proposed; `big_five` in the order of `Persona.big_five`, 1 to 3."""

    age: str
    occupation: str
    big_five: tuple[int, ...]


@dataclass(frozen=True)
class Match:
    """What came out for a user. `fits[c]` are candidate c's judgements (1 to 10) of the user's
    own j subsets, then of j others'; () where one of them failed. `scores[c]` is the sum of the
    former minus that of the latter, a mean of two draws where candidates were tied; `None`
    where it failed. `chosen` indexes `candidates` (distinct, in order of proposal), -1 where
    there is none; `told` says how many ratings stood in the proposal and in each subset.
    `failures` says what went wrong, in words."""

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
        return self.candidates[self.chosen] if self.chosen >= 0 else None


def match(
    user_id: str,
    evidence: Evidence,
    config: MatchConfig,
    count_tokens: CountTokens | None = None,
) -> Generator[Batch, Answers, Match]:
    """Proposes `config.candidates` personas one after the other in one conversation, then
    judges all of them at once. The requests depend on `evidence`, `config` and the answers
    only; `count_tokens` is needed for `config.context_tokens`."""
    return (yield from _Matching(user_id, evidence, config, count_tokens).run())


class _Matching:
    def __init__(self, user_id, evidence, config, count_tokens):
        if config.context_tokens is not None and count_tokens is None:
            raise ValueError("context_tokens is set, so count_tokens is needed: pass it")
        self.user_id, self.evidence, self.config = user_id, evidence, config
        self.count = count_tokens if config.context_tokens is not None else None
        self.failures: list[str] = []
        self.propose_answer = prompts.propose_answer(config.ages, config.occupations)
        self.fit_answer = prompts.fit_answer()

    def run(self):
        own = self.evidence.of_user(self.user_id)
        if not own:
            return Match(self.user_id, failures=("the user has no ratings to match by",))
        candidates, told = yield from self.propose(own)
        if not candidates:
            return Match(self.user_id, told=(told, 0), failures=tuple(self.failures))
        fits, size = yield from self.judge(candidates, range(len(candidates)), 0)
        scores = [score(row) for row in fits]
        second: list[tuple[float, ...]] = []
        best = _best(scores)
        if len(best) > 1:  # among these only, by two draws where there are two
            second, _ = yield from self.judge(candidates, best, 1)
            means: list[float | None] = [None] * len(scores)
            for index, again in zip(best, map(score, second), strict=True):
                if again is not None:
                    means[index] = scores[index] = (scores[index] + again) / 2
            best = _best(means) or best
        return Match(
            self.user_id,
            candidates,
            tuple(fits),
            tuple(second),
            tuple(scores),
            best[0] if best else -1,
            (told, size),
            tuple(self.failures),
        )

    # --- candidates ---

    def propose(self, own: tuple[Rated, ...]):
        """The distinct candidates, and how many ratings the taste summary tells of."""
        config = self.config
        taste = self.evidence.taste(self.user_id, config.taste_items, config.seed)

        def asked(count: int) -> tuple[Message, ...]:
            return prompts.propose_messages(
                self.evidence.summary(taste[:count]),
                config.ages,
                config.occupations,
                config.candidates,
                config.item_type,
            )

        told = self.fitting(len(taste), asked, self.propose_room())
        if told is None:
            return (), 0
        found: dict[Candidate, None] = {}
        messages = asked(told)
        for number in range(1, config.candidates + 1):
            if number > 1:
                again = prompts.propose_another(number, config.candidates)
                messages = (*messages, again)
            request = self.request(
                messages, "propose", self.propose_answer, (number,), scored=False
            )
            ((choices, _),) = yield from self.choose((request,))
            if choices is None:
                break  # what follows would go on from a reply that nobody gave
            messages = (
                *messages,
                Message.of("assistant", answer_text(choices, self.propose_answer)),
            )
            age, occupation, *levels = choices
            traits = tuple(level + prompts.TRAIT_LEVELS[0] for level in levels)
            candidate = Candidate(config.ages[age], config.occupations[occupation], traits)
            found[candidate] = None
        return tuple(found), told

    def propose_room(self) -> int:
        """Tokens that the replies and the later turns take."""
        if self.count is None:
            return 0
        longest = sum(max(map(self.count, line)) + 1 for line in self.propose_answer)
        turn = self.count(prompts.propose_another(2, self.config.candidates).content)
        each = longest + turn + 2 * MESSAGE_TOKENS
        return self.config.candidates * each + self.config.propose_reasoning_tokens

    # --- self-consistency ---

    def judge(self, candidates: Sequence[Candidate], which: Sequence[int], draw: int):
        """Per candidate of `which` its judgements, own subsets first, and how many ratings each
        subset tells of. A subset stands before the candidates in a prompt, so those of one
        subset share it."""
        config = self.config
        subsets = self.evidence.subsets(
            self.user_id, config.subsets, config.subset_items, config.seed, draw
        )
        personas = [
            Persona(self.user_id, age=c.age, occupation=c.occupation, big_five=c.big_five)
            for c in candidates
        ]
        longest = max(personas, key=lambda p: len(p.age) + len(p.occupation))

        def asked(subset: Sequence[Rated], persona: Persona) -> tuple[Message, ...]:
            text = self.evidence.summary(subset)
            return prompts.fit_messages(text, persona, config.item_type)

        size = min(map(len, subsets))  # the same for all, so that the two sums are comparable
        for subset in subsets:
            fitting = self.fitting(
                size,
                lambda count, subset=subset: asked(subset[:count], longest),
                config.fit_reasoning_tokens + FIT_TOKENS,
            )
            if fitting is None:
                return [()] * len(which), 0
            size = fitting
        requests = [
            self.request(
                asked(subset[:size], personas[c]),
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
            given = [
                _expected(choices, completion)
                for choices, completion in answers[place :: len(which)]
                if choices is not None
            ]
            fits.append(tuple(given) if len(given) == len(subsets) else ())
        return fits, size

    # --- asking ---

    def fitting(self, most: int, asked, room: int) -> int | None:
        """The most ratings, at most `most`, with which the messages of `asked(count)` leave
        `room` tokens; `None`, and a failure, where even one does not fit."""
        if self.count is None:
            return most
        free = self.config.context_tokens - room

        def fits(count: int) -> bool:
            used = (self.count(m.content) + MESSAGE_TOKENS for m in asked(count))
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
            f"the questions do not fit into {self.config.context_tokens} tokens with a single "
            f"rating ({room} are for the replies): give a larger context (engine.context; of a "
            "server --context_tokens), fewer candidates or less reasoning"
        )
        return None

    def request(self, messages, purpose, answer, name: tuple, *, scored: bool) -> Request:
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

    def choose(self, requests: Batch):
        """Per request (choices, completion); choices are `None` after a failure, which is
        noted. Replies that cannot be read are asked for once more, all of them at once."""
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


def score(fits: Sequence[float]) -> float | None:
    """s(p, u) of METHOD.md 4.4: the fits of the user's own subsets minus those of as many of
    other users; `None` for no fits."""
    half = len(fits) // 2
    return math.fsum(fits[:half]) - math.fsum(fits[half:]) if fits else None


def _best(scores: Sequence[float | None]) -> list[int]:
    """Where the highest score stands: several places where it is tied, none where there is
    none."""
    known = [s for s in scores if s is not None]
    return [n for n, s in enumerate(scores) if s is not None and max(known) - s <= SAME_SCORE]


def _expected(choices: tuple[int, ...], completion: Completion) -> float:
    """The expected fit, or the one drawn where the back end tells no distribution."""
    first = prompts.FIT[0]
    shares = completion.choice_probabilities
    if shares and shares[0]:
        return math.fsum(value * share for value, share in enumerate(shares[0], first))
    return float(choices[0] + first)
