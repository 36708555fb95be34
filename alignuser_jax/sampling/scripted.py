"""A `Generator` that answers from a function or a list: tests, baselines, dry runs."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence

from alignuser_jax.language.parsing import ReplyError, parse_answer
from alignuser_jax.records import Completion, Generator, Request, Ticket, Usage

Reply = str | Completion

REASON = 300
"""Characters of an error that are told, at most."""


class ScriptedGenerator:
    """Replies with `reply(request)`, or with the next of a list of replies, in submission
    order.

    A text is parsed against the request's answer as a server's would be; where it does not
    parse, the completion carries the raw text without choices. An exception raised by `reply`
    and a list that has run out give an error completion. `max_batch` limits how many
    completions one `collect` returns. `requests` holds everything that was submitted.
    """

    def __init__(
        self, reply: Callable[[Request], Reply] | Iterable[Reply], max_batch: int | None = None
    ):
        if max_batch is not None and max_batch < 1:
            raise ValueError(f"max_batch={max_batch}: give at least 1, or None for no limit")
        self._reply = reply if callable(reply) else self._next_of(reply)
        self._max_batch = max_batch
        self._queue: deque[tuple[Ticket, Request]] = deque()
        self.requests: list[Request] = []

    @staticmethod
    def _next_of(replies: Iterable[Reply]) -> Callable[[Request], Reply]:
        iterator = iter(replies)

        def following(request: Request) -> Reply:
            try:
                return next(iterator)
            except StopIteration:
                raise IndexError(
                    f"the script has no reply left for a {request.purpose!r} request"
                ) from None

        return following

    def submit(self, request: Request) -> Ticket:
        ticket = len(self.requests)
        self.requests.append(request)
        self._queue.append((ticket, request))
        return ticket

    def collect(self) -> list[tuple[Ticket, Completion]]:
        count = min(len(self._queue), self._max_batch or len(self._queue))
        batch = [self._queue.popleft() for _ in range(count)]
        return [(ticket, self._complete(request)) for ticket, request in batch]

    def cancel(self, ticket: Ticket) -> None:
        self._queue = deque(entry for entry in self._queue if entry[0] != ticket)

    def _complete(self, request: Request) -> Completion:
        replies = [self._one(request) for _ in range(max(request.samples, 1))]
        return with_samples(replies)

    def _one(self, request: Request) -> Completion:
        try:
            reply = self._reply(request)
        except Exception as error:  # a failing script is this request's failure only
            return Completion(
                "", finish_reason="error", error=f"{type(error).__name__}: {error}"
            )
        if isinstance(reply, Completion):
            return reply
        usage = Usage(generated_tokens=len(reply.split()))
        choices: tuple[int, ...] = ()
        if request.answer:
            try:
                choices = tuple(parse_answer(reply, request.answer))
            except ReplyError:
                choices = ()
        return Completion(reply, choices=choices, usage=usage)


def with_samples(completions: Sequence[Completion]) -> Completion:
    """One completion per request: the first sample, carrying all of them if there are
    several."""
    first = completions[0]
    if len(completions) == 1:
        return first
    return Completion(
        first.text,
        choices=first.choices,
        choice_probabilities=first.choice_probabilities,
        tokens=first.tokens,
        logprobs=first.logprobs,
        finish_reason=first.finish_reason,
        error=first.error,
        usage=Usage(
            *(sum(values) for values in zip(*(c.usage for c in completions), strict=True))
        ),
        samples=tuple(completions),
    )


class RequestsFailed(RuntimeError):
    """Some of many requests have no answer; the others have theirs."""


def errors_of(completion: Completion) -> list[str]:
    """What went wrong, of each of its samples that failed."""
    replies = completion.samples or (completion,)
    return [r.error or "no reason given" for r in replies if r.finish_reason == "error"]


def check_answered(completions: Sequence[Completion], what: str) -> None:
    """Raises `RequestsFailed`, which says how many failed and the most frequent reasons."""
    failed = [errors for completion in completions if (errors := errors_of(completion))]
    if failed:
        often = Counter(error[:REASON] for errors in failed for error in errors[:1])
        reasons = "; ".join(f"{n} x {error!r}" for error, n in often.most_common(3))
        raise RequestsFailed(
            f"{what}: {len(failed)} of {len(completions)} requests failed: {reasons}"
        )


def generate(generator: Generator, requests: Sequence[Request]) -> list[Completion]:
    """All completions, in the order of the requests. The generator must be otherwise idle."""
    tickets = [generator.submit(request) for request in requests]
    done: dict[Ticket, Completion] = {}
    while batch := generator.collect():
        done.update(batch)
    missing = sum(ticket not in done for ticket in tickets)
    if missing:
        raise RuntimeError(
            f"the generator is idle but {missing} of {len(tickets)} requests have no completion"
        )
    return [done[ticket] for ticket in tickets]
