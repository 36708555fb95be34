"""A `Generator` that answers from a function or a list: tests, baselines, dry runs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from alignuser_jax.language.parsing import ReplyError, parse_answer
from alignuser_jax.records import Completion, Request, Ticket, Usage
from alignuser_jax.sampling.generate import with_samples

Reply = str | Completion


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
