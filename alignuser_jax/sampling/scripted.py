"""A `Generator` that answers from a function or a list: for tests, baselines and dry runs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from alignuser_jax.language.parsing import ReplyError, parse_answer
from alignuser_jax.records import Completion, Request, Ticket, Usage
from alignuser_jax.sampling.generate import with_samples

ScriptedReply = str | Completion
"""What a script answers: a text, or a whole completion."""


class ScriptedGenerator:
    """A generator that answers each request from a script.

    A text is parsed against the request's answer, as a server's reply would be; if it does not
    parse, the completion carries the text without choices. If the script raises an exception,
    or a list of replies has run out, the completion is an error.

    Args:
        reply: A function of the request, or a list of replies, used in the order of submission.
        max_batch: The most completions that one `collect` returns; `None` for no limit.

    Attributes:
        requests: Every request that was submitted, in order.

    Example:
        >>> from alignuser_jax.records import Message
        >>> from alignuser_jax.sampling import generate
        >>> request = Request(
        ...     (Message.of("user", "Rate 1."),),
        ...     "rate",
        ...     answer=(("RATING: 1", "RATING: 2"),),
        ... )
        >>> generate(ScriptedGenerator(["RATING: 2"]), [request])[0].choices
        (1,)
    """

    def __init__(
        self,
        reply: Callable[[Request], ScriptedReply] | Iterable[ScriptedReply],
        max_batch: int | None = None,
    ):
        if max_batch is not None and max_batch < 1:
            raise ValueError(f"max_batch={max_batch}: give at least 1, or None for no limit")
        self._reply = reply if callable(reply) else self._next_of(reply)
        self._max_batch = max_batch
        self._queue: deque[tuple[Ticket, Request]] = deque()
        self.requests: list[Request] = []

    @staticmethod
    def _next_of(replies: Iterable[ScriptedReply]) -> Callable[[Request], ScriptedReply]:
        iterator = iter(replies)

        def next_reply(request: Request) -> ScriptedReply:
            try:
                return next(iterator)
            except StopIteration:
                raise IndexError(
                    f"the script has no reply left for a {request.purpose!r} request"
                ) from None

        return next_reply

    def submit(self, request: Request) -> Ticket:
        """Queue a request and return its ticket."""
        ticket = len(self.requests)
        self.requests.append(request)
        self._queue.append((ticket, request))
        return ticket

    def collect(self) -> list[tuple[Ticket, Completion]]:
        """Answer the oldest queued requests, `max_batch` at most; [] when none is queued."""
        count = min(len(self._queue), self._max_batch or len(self._queue))
        batch = [self._queue.popleft() for _ in range(count)]
        return [(ticket, self._complete(request)) for ticket, request in batch]

    def cancel(self, ticket: Ticket) -> None:
        """Forget a request that is still queued; its completion will not come."""
        self._queue = deque(entry for entry in self._queue if entry[0] != ticket)

    def _complete(self, request: Request) -> Completion:
        return with_samples([self._sample(request) for _ in range(max(request.samples, 1))])

    def _sample(self, request: Request) -> Completion:
        try:
            reply = self._reply(request)
        except Exception as error:  # a failing script fails this request only
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
