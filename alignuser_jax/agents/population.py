"""The population driver: many session coroutines at once, no question waiting for another.

Every question is answered from the journal where it was answered before; else recommendation
requests are put to the arm's recommender in one call and language requests go to the generator,
and whoever has an answer goes on. What comes out does not depend on the order of the sessions,
on how many are alive at once or on how often the run was killed.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

from alignuser_jax import records
from alignuser_jax.agents.events import sort_events
from alignuser_jax.agents.session import RecommendationFailed, SessionCoroutine
from alignuser_jax.driver.progress import Progress
from alignuser_jax.durable.answers import Answer, Question
from alignuser_jax.durable.journal import Asked, Journal
from alignuser_jax.records import (
    Event,
    RecommendationRequest,
    Recommender,
    RecommenderUnavailable,
    Request,
    Slate,
)


class SessionSpec(NamedTuple):
    """One session to run; `make` creates its coroutine anew each time it is called."""

    arm: str
    user_id: str
    number: int
    make: Callable[[], SessionCoroutine]


class RecommenderError(RuntimeError):
    """A recommender failed in every session of its arm."""


@dataclass(slots=True)
class _Live:
    spec: SessionSpec
    coroutine: SessionCoroutine
    question: Question | None = None
    asked: int = 0

    @property
    def name(self) -> Asked:
        return Asked(self.spec.arm, self.spec.user_id, self.spec.number, self.asked)


def run_population(
    specs: Sequence[SessionSpec],
    generator: records.Generator,
    recommenders: Mapping[str, Recommender],
    journal: Journal,
    *,
    concurrency: int = 64,
    catalogue: Collection[str] | None = None,
    progress: bool = False,
) -> list[Event]:
    """Run all sessions, at most `concurrency` alive at once, and return their sorted events.

    An agent that breaks (its coroutine raises, its slate cannot be had or is invalid) leaves a
    "failure" event and the others go on. Slates are checked: k different ids, none excluded;
    where `catalogue` is given, all in it, and fewer than k only where it holds no more.

    Raises `RecommenderError` as soon as a recommender has failed every session of its arm,
    `RecommenderUnavailable` where one says that it cannot be asked now,
    `JournalError` where a resumed question is not the recorded one, `ValueError` for bad
    arguments. Interrupted, it leaves a journal that can be resumed.
    """
    _check_arguments(specs, recommenders, concurrency)
    shown = Progress(len(specs), progress)
    run = _Run(specs, generator, recommenders, journal, catalogue, shown)
    try:
        return run.to_the_end(concurrency)
    finally:
        run.stop()


def _check_arguments(specs, recommenders, concurrency) -> None:
    if concurrency < 1:
        raise ValueError(f"concurrency is {concurrency}, expected at least 1")
    names = [spec[:3] for spec in specs]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"session {twice} is given twice; (arm, user, number) must differ")
    unknown = {spec.arm for spec in specs} - recommenders.keys()
    if unknown:
        raise ValueError(
            f"no recommender for arm {', '.join(sorted(unknown))}; there are recommenders for "
            f"{', '.join(sorted(recommenders)) or 'no arm'}"
        )


class _Run:
    """What is outstanding. `waiting` sessions want a slate, `tickets` are with the model."""

    def __init__(self, specs, generator, recommenders, journal, catalogue, progress):
        self.to_start = deque(specs)
        self.generator = generator
        self.recommenders = recommenders
        self.journal = journal
        self.catalogue = None if catalogue is None else frozenset(catalogue)
        self.progress = progress
        self.waiting: list[_Live] = []
        self.tickets: dict[records.Ticket, _Live] = {}
        self.events: list[Event] = []
        self.sessions_of_arm: dict[str, int] = defaultdict(int)
        self.without_slates: dict[str, int] = defaultdict(int)
        for spec in specs:
            self.sessions_of_arm[spec.arm] += 1

    def to_the_end(self, concurrency: int) -> list[Event]:
        while self.to_start or self.waiting or self.tickets:
            while self.to_start and len(self.waiting) + len(self.tickets) < concurrency:
                spec = self.to_start.popleft()
                try:
                    live = _Live(spec, spec.make())
                except Exception as error:
                    self.fail(spec, error)
                    continue
                self.resume(live, None)
            if self.waiting:
                self.recommend()
            elif self.tickets:
                self.collect()
        return sort_events(self.events)

    def stop(self) -> None:
        for ticket, live in self.tickets.items():
            with suppress(KeyError):  # it was collected when the run was interrupted
                self.generator.cancel(ticket)
            live.coroutine.close()
        for live in self.waiting:
            live.coroutine.close()
        self.progress.close()

    # --- one session ---

    def resume(self, live: _Live, answer: Answer | Exception | None) -> None:
        """Send the answer in, and recorded ones after it, until something new is asked."""
        while True:
            try:
                if isinstance(answer, Exception):
                    live.question = live.coroutine.throw(answer)
                else:
                    live.question = live.coroutine.send(answer)
            except StopIteration as end:
                self.events.extend(end.value.events)
                self.progress.session_done()
                return
            except Exception as error:
                self.fail(live.spec, error)
                return
            answer = self.journal.recorded(live.name, live.question)
            if answer is None:
                break
            live.asked += 1
        if isinstance(live.question, Request):
            self.tickets[self.generator.submit(live.question)] = live
        elif isinstance(live.question, RecommendationRequest):
            self.waiting.append(live)
        else:
            kind = type(live.question).__name__
            self.fail(live.spec, TypeError(f"the session asked a {kind}; nobody answers it"))
            live.coroutine.close()

    def fail(self, spec: SessionSpec, error: Exception) -> None:
        """The events of a session that broke: one failure. Others go on."""
        text = f"{type(error).__name__}: {error}"
        self.events.append(Event(*spec[:3], 0, "failure", text=text))
        self.progress.session_done(failed=True)

    def send_in(self, answered: Sequence[tuple[_Live, Answer]]) -> None:
        """Record the answers, then let the sessions see them."""
        recorded = []
        for live, answer in answered:
            recorded.append((live, self.journal.append(live.name, live.question, answer)))
        self.journal.flush()
        for live, answer in recorded:
            live.asked += 1
            self.resume(live, answer)

    # --- the answerers ---

    def collect(self) -> None:
        completions = self.generator.collect()
        if not completions:
            raise RuntimeError(
                f"{len(self.tickets)} requests were submitted and the generator says that "
                "nothing is outstanding; its collect() must return every ticket once"
            )
        self.send_in([(self.tickets.pop(ticket), answer) for ticket, answer in completions])

    def recommend(self) -> None:
        waiting, self.waiting = self.waiting, []
        by_arm: dict[str, list[_Live]] = defaultdict(list)
        for live in waiting:
            by_arm[live.spec.arm].append(live)
        answered, failed = [], []
        unavailable = None
        for arm, asking in by_arm.items():
            try:
                slates = self.slates(arm, asking)
            except RecommenderUnavailable as error:
                unavailable = error
                slates = [error.answered.get(n) for n in range(len(asking))]
            where = getattr(self.recommenders[arm], "url", "")
            who = f"recommender of arm {arm!r}" + (f" at {where}" if where else "")
            for live, slate in zip(asking, slates, strict=True):
                if slate is None:
                    continue
                if isinstance(slate, str):
                    problem = slate
                else:
                    problem = self.problem(slate, live.question)
                if problem:
                    failed.append((live, f"{who} {problem}"))
                else:
                    answered.append((live, slate))
            if unavailable:
                break
        self.progress.pages_shown(len(answered))
        if unavailable:  # what was answered is kept, so that nothing is asked twice
            for live, slate in answered:
                self.journal.append(live.name, live.question, slate)
            self.journal.flush()
            raise unavailable
        self.send_in(answered)
        for live, problem in failed:
            live.asked += 1
            self.resume(live, RecommendationFailed(problem))
            self.without_slates[live.spec.arm] += 1
            if self.without_slates[live.spec.arm] == self.sessions_of_arm[live.spec.arm]:
                raise RecommenderError(f"no session got its slates: {problem}")

    def slates(self, arm: str, asking: list[_Live]) -> list[Slate | str]:
        """A slate per session, or what went wrong; one bad request spoils no other."""
        requests = [live.question for live in asking]
        try:
            given = self.recommenders[arm].recommend(requests)
            slates = [
                Slate(tuple(slate.item_ids), _row(slate.scores), _row(slate.propensities))
                for slate in given
            ]
        except RecommenderUnavailable:
            raise
        except Exception as error:
            if len(asking) > 1:
                return self.one_by_one(arm, asking)
            return [f"raised {type(error).__name__}: {error} ({_which(requests[0])})"]
        if len(slates) != len(requests):
            return [f"gave {len(slates)} slates for {len(requests)} requests"] * len(requests)
        return slates

    def one_by_one(self, arm: str, asking: list[_Live]) -> list[Slate | str]:
        slates: list[Slate | str] = []
        for live in asking:
            try:
                slates += self.slates(arm, [live])
            except RecommenderUnavailable as error:
                good = {n: slate for n, slate in enumerate(slates) if isinstance(slate, Slate)}
                raise RecommenderUnavailable(str(error), good) from error
        return slates

    def problem(self, slate: Slate, request: RecommendationRequest) -> str:
        """What is wrong with the slate, "" if nothing."""
        ids, expected = slate.item_ids, request.k
        if self.catalogue is not None and len(ids) < expected:
            expected = min(expected, len(self.catalogue - request.exclude))
        if len(ids) != expected or len(set(ids)) != len(ids):
            wrong = f"gave {ids}, expected {expected} different ids"
        elif excluded := sorted(set(ids) & request.exclude):
            wrong = f"gave {excluded}, which were excluded"
        elif self.catalogue is not None and (unknown := sorted(set(ids) - self.catalogue)):
            wrong = f"gave {unknown}, which are not in the catalogue"
        else:
            return ""
        return f"{wrong} ({_which(request)})"


def _row(values) -> tuple[float, ...] | None:
    return None if values is None else tuple(float(value) for value in values)


def _which(request: RecommendationRequest) -> str:
    return f"user {request.user_id!r}, page {request.page}"
