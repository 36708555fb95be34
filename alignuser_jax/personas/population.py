"""Many users matched at once: the requests of all of them are with the generator together, and
every answer is on disk before it is used, so a killed run goes on as if nothing had happened.

A request that failed is no answer: it is used, but not put on disk, nor is what its user is
asked in later batches, as another answer may lead to other questions. So a run that is started
again asks those again.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from tqdm import tqdm

from alignuser_jax import records
from alignuser_jax.durable.answers import Answer, Question
from alignuser_jax.personas.evidence import Evidence
from alignuser_jax.personas.matching import Batch, Match, MatchConfig, match
from alignuser_jax.records import (
    Completion,
    CountTokens,
)

SECONDS_BETWEEN_UPDATES = 10.0


class Asked(NamedTuple):
    """Who asked, in the form of the agents' journal; `sequence` counts a user's questions."""

    arm: str
    user_id: str
    session: int
    sequence: int


class Answers(Protocol):
    """What is used of a journal (`agents.Journal`)."""

    def recorded(self, asked: Asked, question: Question) -> Answer | None: ...
    def append(self, asked: Asked, question: Question, answer: Answer) -> Answer: ...
    def flush(self) -> None: ...


@dataclass(slots=True)
class _Live:
    place: int
    coroutine: object
    requests: Batch = ()
    answers: list[Completion | None] = field(default_factory=list)
    asked: int = 0
    """Questions of earlier batches."""
    failed: bool = False
    """A request of an earlier batch failed."""


def match_users(
    users: Sequence[str],
    evidence: Evidence,
    config: MatchConfig,
    generator: records.Generator,
    journal: Answers,
    *,
    count_tokens: CountTokens | None = None,
    concurrency: int = 64,
    progress: bool = False,
) -> list[Match]:
    """The match of every user, in the order of `users`, at most `concurrency` users at work at
    a time. What comes out does not depend on that, on the other users, on the order in which
    answers arrive, or on how often the run was killed.

    Raises `JournalError` where a resumed question is not the recorded one, `KeyError` for an
    unknown user, `ValueError` for repeated users or bad sizes."""
    if concurrency < 1:
        raise ValueError(f"concurrency is {concurrency}, expected at least 1")
    if len(set(users)) != len(users):
        twice = next(user for user in users if list(users).count(user) > 1)
        raise ValueError(f"user {twice!r} is given twice; users must differ")
    run = _Run(users, evidence, config, generator, journal, count_tokens, progress)
    try:
        return run.to_the_end(concurrency)
    finally:
        run.stop()


class _Run:
    def __init__(self, users, evidence, config, generator, journal, count_tokens, progress):
        self.users, self.generator, self.journal = users, generator, journal
        self.make = lambda user: match(user, evidence, config, count_tokens)
        self.to_start = deque(range(len(users)))
        self.tickets: dict[records.Ticket, tuple[_Live, int]] = {}
        self.live = 0
        self.found: list[Match | None] = [None] * len(users)
        self.bar = tqdm(
            total=len(users),
            unit="user",
            disable=not progress,
            mininterval=SECONDS_BETWEEN_UPDATES if not sys.stderr.isatty() else 0.1,
        )
        self.failed = 0

    def to_the_end(self, concurrency: int) -> list[Match]:
        while self.to_start or self.tickets:
            while self.to_start and self.live < concurrency:
                place = self.to_start.popleft()
                self.live += 1
                self.resume(_Live(place, self.make(self.users[place])), None)
            if self.tickets:
                self.collect()
        return [found for found in self.found if found is not None]

    def stop(self) -> None:
        for ticket in self.tickets:
            with suppress(KeyError):  # it was collected when the run was interrupted
                self.generator.cancel(ticket)
        self.bar.close()

    def resume(self, live: _Live, answers: Sequence[Completion] | None) -> None:
        """Send a whole batch of answers in, and recorded ones after it, until something new is
        asked."""
        while True:
            try:
                live.requests = live.coroutine.send(answers)
            except StopIteration as end:
                self.finished(live, end.value)
                return
            live.answers = [
                self.journal.recorded(self.name(live, n), request)
                for n, request in enumerate(live.requests)
            ]
            for n, (request, known) in enumerate(zip(live.requests, live.answers, strict=True)):
                if known is None:
                    self.tickets[self.generator.submit(request)] = (live, n)
            if None in live.answers:
                return
            answers = self.taken(live)

    def taken(self, live: _Live) -> tuple[Completion, ...]:
        live.asked += len(live.requests)
        live.failed |= any(c.finish_reason == "error" for c in live.answers)
        return tuple(live.answers)

    def name(self, live: _Live, place: int) -> Asked:
        return Asked("match", self.users[live.place], 0, live.asked + place)

    def finished(self, live: _Live, found: Match) -> None:
        self.found[live.place] = found
        self.live -= 1
        self.failed += found.persona is None
        if self.failed:
            self.bar.set_postfix_str(f"{self.failed} failed", refresh=False)
        self.bar.update(1)

    def collect(self) -> None:
        completions = self.generator.collect()
        if not completions:
            raise RuntimeError(
                f"{len(self.tickets)} requests were submitted and the generator says that "
                "nothing is outstanding; its collect() must return every ticket once"
            )
        touched: dict[int, _Live] = {}
        for ticket, completion in completions:
            live, n = self.tickets.pop(ticket)
            asked = self.name(live, n)
            if not (live.failed or completion.finish_reason == "error"):
                completion = self.journal.append(asked, live.requests[n], completion)
            live.answers[n] = completion
            touched[live.place] = live
        self.journal.flush()
        for live in touched.values():
            if None not in live.answers:
                self.resume(live, self.taken(live))
