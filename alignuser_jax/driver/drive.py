"""Run many coroutines that ask questions: the one loop for agents, persona matching and judges.

A coroutine does no I/O. It yields a question, or a batch of questions, is sent the answer, or
the tuple of answers, and returns its result. Whoever has all answers goes on at once; no
coroutine waits for the others. Every answer is recorded in the journal before a coroutine sees
it, so a run that was killed goes on as if nothing had happened. Results do not depend on the
order of the coroutines, on how many run at once, or on how often the run was killed.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from alignuser_jax import records
from alignuser_jax.driver.progress import Progress
from alignuser_jax.durable.answers import Answer, Question
from alignuser_jax.durable.journal import Journal, QuestionId
from alignuser_jax.records import Completion, Request

T = TypeVar("T")

Asking = Generator[Any, Any, T]
"""A coroutine that yields a `Question` or a sequence of them, and returns a `T`."""


class Job(NamedTuple, Generic[T]):
    """A coroutine to run; arm, user and session name its questions in the journal.

    Attributes:
        arm: What is compared: a recommender, or a task such as "match".
        user_id: Whom the coroutine is about.
        session: Tells coroutines for the same arm and user apart.
        start: Makes the coroutine, anew each time it is called.
    """

    arm: str
    user_id: str
    session: int
    start: Callable[[], Asking[T]]


@dataclass(frozen=True)
class Answered:
    """What an `Answerer` made of the waiting questions.

    Attributes:
        results: The answer by the index of the question, or an error that is thrown into the
            coroutine that asked. Answers are recorded in this order.
        stop: Why the run cannot go on; it is raised after the answers are recorded, and only
            then may questions have no result.
    """

    results: Mapping[int, Answer | Exception]
    stop: Exception | None = None


class Answerer(Protocol):
    """Answers the questions of one type, all that wait in one call."""

    def answer(self, waiting: Sequence[tuple[Job[Any], Any]]) -> Answered:
        """Answer each (job that asked, question)."""
        ...


@dataclass(frozen=True)
class FailurePolicy(Generic[T]):
    """What becomes of failures.

    Attributes:
        result: Makes the result of a coroutine that raised an error; `None` stops the run with
            that error.
        record: Whether a completion that failed is recorded like any answer. If not, it is used
            but not recorded, nor is what the same coroutine asks in later batches, since
            another answer may lead to other questions. A run that is started again then asks
            those questions again.
        in_result: Whether a result stands for a failure, for the count that progress shows.
    """

    result: Callable[[Job[T], Exception], T] | None = None
    record: bool = True
    in_result: Callable[[T], bool] = lambda result: False


def drive(
    jobs: Sequence[Job[T]],
    generator: records.Generator,
    journal: Journal,
    *,
    answerers: Mapping[type, Answerer] | None = None,
    failures: FailurePolicy[T] | None = None,
    concurrency: int = 64,
    progress: Progress | None = None,
) -> list[T]:
    """Run all coroutines and return their results in the order of `jobs`.

    Args:
        jobs: The coroutines; each (arm, user, session) may stand there once.
        generator: Answers each `Request`.
        journal: Holds the answers of an earlier, killed run; every new answer is added to it.
        answerers: Answer other questions, by the type of the question.
        failures: What becomes of failures; by default an error stops the run.
        concurrency: How many coroutines run at once.
        progress: Counts the coroutines; it is closed at the end.

    Raises:
        ValueError: `concurrency` is below 1, or a job is given twice.
        JournalError: A question is not the one that the journal recorded.
        RuntimeError: The generator loses requests.

    Example:
        >>> from alignuser_jax.records import Message
        >>> from alignuser_jax.sampling import ScriptedGenerator
        >>> def ask(text):
        ...     completion = yield Request((Message.of("user", text),), "chat")
        ...     return completion.text
        >>> jobs = [Job("chat", f"u{n}", 0, lambda n=n: ask(f"I am {n}.")) for n in range(3)]
        >>> with Journal.open("runs/chat/journal", {"seed": 0}) as journal:
        ...     texts = drive(jobs, ScriptedGenerator(lambda request: "Hello."), journal)
    """
    if concurrency < 1:
        raise ValueError(f"concurrency is {concurrency}, expected at least 1")
    names = [job[:3] for job in jobs]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"job {twice} is given twice; (arm, user, session) must differ")
    progress = progress or Progress(len(jobs), visible=False)
    run = _Run(jobs, generator, journal, answerers or {}, failures or FailurePolicy(), progress)
    try:
        return run.to_the_end(concurrency)
    finally:
        run.stop()


@dataclass(slots=True, eq=False)
class _Live(Generic[T]):
    """A coroutine that has asked something.

    `sequence` counts the questions of earlier batches; `failed` says that one of those failed.
    """

    index: int
    job: Job[T]
    coroutine: Asking[T]
    questions: tuple[Question, ...] = ()
    batch: bool = False
    answers: list[Answer | Exception | None] = field(default_factory=list)
    sequence: int = 0
    failed: bool = False

    def id_of(self, place: int) -> QuestionId:
        job = self.job
        return QuestionId(job.arm, job.user_id, job.session, self.sequence + place)

    def take_answers(self) -> Any:
        """Return what to send in, or the error to throw in, and count the batch as answered."""
        self.sequence += len(self.questions)
        self.failed |= any(_is_failure(answer) for answer in self.answers)
        errors = [answer for answer in self.answers if isinstance(answer, Exception)]
        if errors:
            return errors[0]
        return tuple(self.answers) if self.batch else self.answers[0]


def _is_failure(answer: Answer | Exception | None) -> bool:
    if isinstance(answer, Completion):
        return answer.finish_reason == "error"
    return isinstance(answer, Exception)


class _Run(Generic[T]):
    """What is outstanding: `tickets` are with the generator, `waiting` is for the answerers."""

    def __init__(
        self,
        jobs: Sequence[Job[T]],
        generator: records.Generator,
        journal: Journal,
        answerers: Mapping[type, Answerer],
        failures: FailurePolicy[T],
        progress: Progress,
    ):
        self.jobs, self.generator, self.journal = jobs, generator, journal
        self.answerers, self.failures, self.progress = answerers, failures, progress
        self.to_start = deque(range(len(jobs)))
        self.live: dict[int, _Live[T]] = {}
        self.tickets: dict[records.Ticket, tuple[_Live[T], int]] = {}
        self.waiting: dict[type, list[tuple[_Live[T], int]]] = defaultdict(list)
        self.results: dict[int, T] = {}

    def to_the_end(self, concurrency: int) -> list[T]:
        while self.to_start or self.live:
            while self.to_start and len(self.live) < concurrency:
                self.start(self.to_start.popleft())
            if self.waiting:
                self.ask_answerers()
            elif self.tickets:
                self.collect()
        return [self.results[index] for index in range(len(self.jobs))]

    def stop(self) -> None:
        """Cancel what is outstanding and close the coroutines."""
        for ticket in self.tickets:
            with suppress(KeyError):  # it was collected when the run was interrupted
                self.generator.cancel(ticket)
        for live in self.live.values():
            live.coroutine.close()
        self.progress.close()

    # --- one coroutine ---

    def start(self, index: int) -> None:
        job = self.jobs[index]
        try:
            live = _Live(index, job, job.start())
        except Exception as error:
            self.fail(index, error)
            return
        self.live[index] = live
        self.resume(live, None)

    def resume(self, live: _Live[T], answer: Any) -> None:
        """Send the answer in, and recorded ones after it, until something new is asked."""
        while True:
            try:
                if isinstance(answer, Exception):
                    asked = live.coroutine.throw(answer)
                else:
                    asked = live.coroutine.send(answer)
            except StopIteration as end:
                self.finish(live.index, end.value, self.failures.in_result(end.value))
                return
            except Exception as error:
                self.fail(live.index, error)
                return
            live.batch = isinstance(asked, list | tuple)
            live.questions = tuple(asked) if live.batch else (asked,)
            live.answers = [
                self.journal.recorded(live.id_of(place), question)
                for place, question in enumerate(live.questions)
            ]
            if None in live.answers:
                self.submit(live)
                return
            answer = live.take_answers()

    def submit(self, live: _Live[T]) -> None:
        """Hand the questions that have no answer to whoever answers them."""
        places = [place for place, answer in enumerate(live.answers) if answer is None]
        for place in places:
            kind = type(live.questions[place])
            if kind is not Request and kind not in self.answerers:
                problem = f"the session asked a {kind.__name__}; nobody answers it"
                self.fail(live.index, TypeError(problem))
                live.coroutine.close()
                return
        for place in places:
            question = live.questions[place]
            if isinstance(question, Request):
                self.tickets[self.generator.submit(question)] = (live, place)
            else:
                self.waiting[type(question)].append((live, place))

    def finish(self, index: int, result: T, failed: bool = False) -> None:
        self.live.pop(index, None)
        self.results[index] = result
        self.progress.finished(failed)

    def fail(self, index: int, error: Exception) -> None:
        if self.failures.result is None:
            raise error
        self.finish(index, self.failures.result(self.jobs[index], error), failed=True)

    # --- answers ---

    def collect(self) -> None:
        completions = self.generator.collect()
        if not completions:
            raise RuntimeError(
                f"{len(self.tickets)} requests were submitted and the generator says that "
                "nothing is outstanding; its collect() must return every ticket once"
            )
        self.take_in([(*self.tickets.pop(ticket), answer) for ticket, answer in completions])

    def ask_answerers(self) -> None:
        waiting, self.waiting = self.waiting, defaultdict(list)
        for kind, places in waiting.items():
            questions = [(live.job, live.questions[place]) for live, place in places]
            answered = self.answerers[kind].answer(questions)
            results = [(*places[n], result) for n, result in answered.results.items()]
            if answered.stop:
                self.record(results)
                raise answered.stop
            if len(results) < len(places):
                raise RuntimeError(
                    f"{len(places)} questions of type {kind.__name__} were asked and "
                    f"{len(results)} answered: an answerer must answer all of them"
                )
            self.take_in(results)

    def record(self, results: Sequence[tuple[_Live[T], int, Answer | Exception]]) -> None:
        """Put answers on disk, and where the coroutines will find them."""
        for live, place, answer in results:
            recorded = answer
            if not isinstance(answer, Exception) and self.is_recorded(live, answer):
                name, question = live.id_of(place), live.questions[place]
                recorded = self.journal.append(name, question, answer)
            live.answers[place] = recorded
        self.journal.flush()

    def is_recorded(self, live: _Live[T], answer: Answer) -> bool:
        return self.failures.record or not (live.failed or _is_failure(answer))

    def take_in(self, results: Sequence[tuple[_Live[T], int, Answer | Exception]]) -> None:
        """Record answers, then resume the coroutines that have all of theirs, errors last."""
        self.record(results)
        answered = [live for live, _, answer in results if not isinstance(answer, Exception)]
        failed = [live for live, _, answer in results if isinstance(answer, Exception)]
        for live in dict.fromkeys((*answered, *failed)):
            if None not in live.answers:
                self.resume(live, live.take_answers())
