"""A `Generator` over OpenAI-compatible servers: vLLM, SGLang, `transformers serve`, hosted.

A reply that does not parse is requested once more (docs/method.md section 3), and is an error
completion if the second reply does not parse either. An agent's session re-prompts only after
completions without choices, so it does not do so a second time.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, Literal, TypeVar

from absl import logging

from alignuser_jax.language.parsing import REPROMPT, ReplyError, parse_answer
from alignuser_jax.randomness import stable_key
from alignuser_jax.records import Completion, Message, Request, Ticket, Usage
from alignuser_jax.sampling.generate import errors_of, with_samples
from alignuser_jax.sampling.request_checks import check_request
from alignuser_jax.sampling.servers.structured import (
    BEGIN_WITH,
    CONTINUE,
    MODES,
    PROBE,
    Mode,
    as_lines,
    constraint,
    continues,
    lines_constraint,
    token_limit,
)
from alignuser_jax.sampling.servers.transport import (
    Refused,
    Transport,
    TransportConfig,
    refused_model,
    usage_of,
)

T = TypeVar("T")

SEED_MASK = 0x7FFFFFFF
"""Seeds are the last 31 bits of a request's key: servers read them as signed 32-bit numbers."""

MOST_STOPS = 4
"""The most stop strings that are sent, as hosted models take no more.

Replies are cut here at any of a request's stop strings.
"""


@dataclass(frozen=True)
class ServerConfig:
    """What to request of servers.

    Attributes:
        model: The name under which the servers serve the model.
        transport: Where the servers are, and how patient to be.
        structured: How answers are constrained (sampling/servers/structured.py); "auto" tries
            each way once at the start.
        adapters: The served model's name for each name in `Request.adapter`.
        extra: Fields that go into every call's body as they are, such as
            `{"chat_template_kwargs": {"enable_thinking": False}}`.
        prompt_price: The price of a million prompt tokens.
        generated_price: The price of a million generated tokens.

    Raises:
        ValueError: A field has no meaning; the message names it.

    Example:
        >>> from alignuser_jax.sampling import TransportConfig
        >>> config = ServerConfig(
        ...     "Qwen/Qwen3-8B", TransportConfig(("http://localhost:8000/v1",))
        ... )
    """

    model: str
    transport: TransportConfig
    structured: Mode | Literal["auto"] = "auto"
    adapters: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    prompt_price: float = 0.0
    generated_price: float = 0.0

    def __post_init__(self) -> None:
        if not self.model:
            raise ValueError("no model: give the name under which the server serves it")
        if self.structured not in (*MODES, "auto"):
            raise ValueError(
                f"structured is {self.structured!r}, expected auto, {', '.join(MODES)}"
            )
        for name in ("prompt_price", "generated_price"):
            if not getattr(self, name) >= 0:
                raise ValueError(
                    f"{name} is {getattr(self, name)}, expected 0 or more, for a million tokens"
                )


class ServerGenerator:
    """A generator that asks servers, all of which serve the same model.

    `collect` raises `ServerError` when no server can be worked with any more, after everything
    that was answered before has been collected. The alternative of a `scored` request is drawn
    by the server, and its distribution is unknown. A request whose parameters make no sense
    comes back as an error.

    Args:
        config: What to request of the servers.

    Attributes:
        config: What to request of the servers.
        mode: How the servers constrain answers.

    Raises:
        ServerError: No URL answers, or the key or the model is refused.

    Example:
        >>> from alignuser_jax.sampling import TransportConfig, generate
        >>> config = ServerConfig(
        ...     "Qwen/Qwen3-8B", TransportConfig(("http://localhost:8000/v1",))
        ... )
        >>> generator = ServerGenerator(config)
        >>> request = Request((Message.of("user", "Say hello."),), "greet", max_tokens=16)
        >>> generate(generator, [request])[0].text
        'Hello!'
        >>> generator.close()
    """

    def __init__(self, config: ServerConfig):
        self.config = config
        self.mode: Mode = "none"
        self._stats: Counter[str] = Counter()
        self._multiple = True  # whether the servers give several choices in one call
        self._limit = "max_tokens"
        self._tickets = 0
        self._open: dict[Ticket, Any] = {}
        self._ready: SimpleQueue[tuple[Ticket, Completion] | BaseException] = SimpleQueue()
        self._fatal: BaseException | None = None
        self._seconds, self._since = 0.0, 0.0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, daemon=True, name="servers"
        )
        self._thread.start()
        try:
            self._run(self._start())
        except BaseException:
            self.close()
            raise

    @property
    def about(self) -> dict[str, Any]:
        """What decides the answers besides the request; a run only goes on under the same."""
        config = self.config
        return {
            "server_model": config.model,
            "adapters": dict(config.adapters),
            "structured": self.mode,
            "extra": dict(config.extra),
        }

    @property
    def stats(self) -> dict[str, float]:
        """What was done so far.

        Requests, calls, retries, reprompts and errors; prompt, cached and generated tokens of
        all answered calls; their cost; and the seconds in which any request was in work.
        """
        stats: dict[str, float] = dict(self._stats)
        prompt = stats.get("prompt_tokens", 0) * self.config.prompt_price
        generated = stats.get("generated_tokens", 0) * self.config.generated_price
        running = time.perf_counter() - self._since if self._open else 0.0
        return stats | {"cost": (prompt + generated) / 1e6, "seconds": self._seconds + running}

    def close(self) -> None:
        """Cancel everything and end the thread; nothing may be submitted afterwards."""
        if self._loop.is_closed():
            return
        self._drop_all()
        if hasattr(self, "_transport"):
            self._run(self._transport.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _drop_all(self) -> None:
        for ticket in list(self._open):
            self.cancel(ticket)

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    # --- Generator ----------------------------------------------------------------------

    def submit(self, request: Request) -> Ticket:
        """Start a request and return its ticket.

        Raises:
            ValueError: No served model has the request's adapter.
            ServerError: The servers could not be worked with before.
        """
        if self._fatal:
            raise self._fatal
        model = self._model(request.adapter)
        self._tickets += 1
        ticket = self._tickets
        if not self._open:
            self._since = time.perf_counter()
        self._open[ticket] = asyncio.run_coroutine_threadsafe(
            self._answer(ticket, request, model), self._loop
        )
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Forget a request and close its connection; its completion will not come."""
        if future := self._open.get(ticket):
            future.cancel()
            self._forget(ticket)

    def collect(self) -> list[tuple[Ticket, Completion]]:
        """Wait until some request is done; return what is done, [] if nothing is in work.

        Raises:
            ServerError: No server can be worked with any more.
        """
        done: list[tuple[Ticket, Completion]] = []
        while self._open and not self._fatal and (not done or not self._ready.empty()):
            item = self._ready.get()
            if isinstance(item, BaseException):
                self._fatal = item
            elif item[0] in self._open:  # else it was cancelled
                self._forget(item[0])
                done.append(item)
        if self._fatal and not done:
            self._drop_all()
            raise self._fatal
        return done

    def _forget(self, ticket: Ticket) -> None:
        del self._open[ticket]
        if not self._open:
            self._seconds += time.perf_counter() - self._since

    def _model(self, adapter: str | None) -> str:
        if adapter is None:
            return self.config.model
        if adapter not in self.config.adapters:
            raise ValueError(
                f"no served model for adapter {adapter!r}; ServerConfig.adapters names "
                f"{', '.join(sorted(self.config.adapters)) or 'none'}"
            )
        return self.config.adapters[adapter]

    # --- at the start, on the loop ------------------------------------------------------

    async def _start(self) -> None:
        self._transport = Transport(self.config.transport, self._stats, self._ready.put)
        await self._transport.check()
        first = asyncio.ensure_future(self._first_calls())
        while not first.done():  # an error that stops all calls comes through the queue
            await asyncio.wait([first], timeout=0.02)
            if not self._ready.empty():
                first.cancel()
                item = self._ready.get()
                if isinstance(item, BaseException):
                    raise item
        await first

    async def _first_calls(self) -> None:
        """Check that the model answers, and find out how answers can be constrained."""
        config = self.config
        hello = (Message.of("user", "Say hello."),)
        question = Request(hello, "check", max_tokens=1, temperature=0.0)
        try:
            await self._call(question, hello, config.model, {}, 1)
        except Refused as refusal:
            served = await self._transport.served()
            where = ", ".join(config.transport.urls)
            raise refused_model(where, config.model, str(refusal), served) from refusal
        if config.structured != "auto":
            self.mode = config.structured
            return
        question = Request(hello, "check", answer=PROBE, temperature=0.0)
        for mode in MODES[:-1]:
            fields = constraint(mode, PROBE)
            try:
                (reply,) = await self._call(question, hello, config.model, fields, 1, mode)
                parse_answer(as_lines(mode, reply.text, PROBE), PROBE)
            except (Refused, ReplyError):
                continue
            self.mode = mode
            logging.info("answers are constrained by the server (%s)", mode)
            return
        logging.warning(
            "%s constrains no answers: they are parsed strictly, and requested once more",
            ", ".join(config.transport.urls),
        )

    # --- one request, on the loop -------------------------------------------------------

    async def _answer(self, ticket: Ticket, request: Request, model: str) -> None:
        try:
            _refuse_nonsense(request)
            async with asyncio.timeout(request.timeout_seconds):
                replies = await self._samples(request, model)
                completions = await asyncio.gather(
                    *(self._read(request, model, n, reply) for n, reply in enumerate(replies))
                )
            completion = with_samples(completions)
        except Refused as refusal:
            completion = _error(str(refusal))
        except TimeoutError:
            completion = _error(f"not done {request.timeout_seconds} s after it was submitted")
        except Exception as error:  # a mistake in this file; no request may wait for ever
            self._ready.put(error)
            return
        self._stats["requests"] += 1
        self._stats["errors"] += bool(errors_of(completion))
        self._ready.put((ticket, completion))

    async def _samples(self, request: Request, model: str) -> list[_Reply | Refused]:
        """Return `request.samples` replies, in one call if the server can.

        A sample that the server refuses is a `Refused` in the list.

        Raises:
            Refused: The server refuses all samples.
        """
        count = max(request.samples, 1)
        fields = self._constraint(request)
        replies: list[_Reply | Refused] = []
        too_few = False
        if count > 1 and self._multiple:
            try:
                replies += await self._call(request, request.messages, model, fields, count)
            except Refused as refusal:
                logging.info("several replies in one call are refused: %s", refusal)
            too_few = len(replies) < count
        keys = [
            stable_key(request.key, "sample", n) if n else request.key for n in range(count)
        ]
        more = await asyncio.gather(
            *(
                self._call(request, request.messages, model, fields, 1, key=key)
                for key in keys[len(replies) :]
            ),
            return_exceptions=True,
        )
        for result in more:
            if isinstance(result, Refused):
                replies.append(result)
            elif isinstance(result, BaseException):
                raise result
            else:
                replies.append(result[0])
        refusals = [reply for reply in replies if isinstance(reply, Refused)]
        if len(refusals) == len(replies):
            raise refusals[0]
        if too_few and self._multiple:  # else it was the request that was refused
            self._multiple = False
            logging.warning("the server gives one reply a call: each sample is a call")
        return replies[:count]

    async def _read(
        self, request: Request, model: str, n: int, reply: _Reply | Refused
    ) -> Completion:
        """Return the reply as a completion; request it once more if it does not parse."""
        if isinstance(reply, Refused):
            return _error(str(reply))
        if not request.answer:
            start = request.reply_start if continues(self.mode) else ""
            return _free_text(reply, request.stop, start)
        usage = reply.usage
        for attempt in (1, 2):
            try:
                if reply.finish_reason in ("length", "content_filter"):
                    raise ReplyError(f"the reply was cut ({reply.finish_reason})")
                text = as_lines(self._mode(request), reply.text, request.answer)
                choices = parse_answer(text, request.answer)
                return Completion(text, choices=choices, usage=usage)
            except ReplyError as error:
                if attempt == 2:
                    return _error(str(error), usage)
            reprompt = (
                *request.messages,
                Message.of("assistant", reply.text),
                Message.of("user", REPROMPT),
            )
            self._stats["reprompts"] += 1
            key = stable_key(request.key, "again", n)
            fields = self._constraint(request)
            try:
                (reply, *_) = await self._call(request, reprompt, model, fields, 1, key=key)
            except Refused as refusal:
                return _error(f"{refusal} (requested once more)", usage)
            usage = Usage(*(a + b for a, b in zip(usage, reply.usage, strict=True)))
        raise AssertionError("unreachable")

    def _mode(self, request: Request) -> Mode:
        """Return how the reply is constrained: not at all if free reasoning comes first."""
        return "none" if request.reasoning_tokens else self.mode

    def _constraint(self, request: Request) -> dict[str, Any]:
        if request.answer:
            return constraint(self._mode(request), request.answer)
        start, fields = request.reply_start, dict[str, Any]()
        if request.lines:
            fields = lines_constraint(self.mode, request.lines, request.line_tokens, start)
        if start and continues(self.mode):
            fields["extra_body"] = fields.get("extra_body", {}) | CONTINUE
        return fields

    async def _call(
        self,
        request: Request,
        messages: Sequence[Message],
        model: str,
        fields: Mapping[str, Any],
        count: int,
        mode: Mode | None = None,
        *,
        key: int | None = None,
    ) -> list[_Reply]:
        """Make one call and return its replies, `count` at most.

        Raises:
            Refused: The server refuses the call.
        """
        limit = request.max_tokens
        if request.lines:
            limit = sum(request.line_tokens + len(line.encode()) + 1 for line in request.lines)
        if request.answer:
            mode = mode or self._mode(request)
            limit = request.reasoning_tokens + token_limit(mode, request.answer)
        body = {
            "model": model,
            "messages": self._turns(request, messages),
            "temperature": request.temperature,
            "top_p": request.top_p,
            "seed": (request.key if key is None else key) & SEED_MASK,
            **fields,
        }
        if request.stop:
            body["stop"] = list(request.stop[:MOST_STOPS])
        filters = {"top_k": request.top_k, "min_p": request.min_p}  # vLLM's and SGLang's names
        filters = {name: value for name, value in filters.items() if value}
        if extra := {**self.config.extra, **filters, **fields.get("extra_body", {})}:
            body["extra_body"] = extra
        if count > 1:
            body["n"] = count
        home = stable_key(*(m.content for m in messages[:2]))
        try:
            response = await self._transport.call(body | {self._limit: limit}, home)
        except Refused as refusal:
            if self._limit != "max_tokens" or "max_completion_tokens" not in str(refusal):
                raise
            self._limit = "max_completion_tokens"  # what newer hosted models call it
            response = await self._transport.call(body | {self._limit: limit}, home)
        choices = response.choices[:count]
        whole, none = Usage(*usage_of(response)), Usage()
        return [
            _Reply(
                _printable(c.message.content), c.finish_reason or "stop", none if n else whole
            )
            for n, c in enumerate(choices)
        ]

    def _turns(self, request: Request, messages: Sequence[Message]) -> list[dict[str, str]]:
        """Return the messages as they are sent, with the start of the reply if there is one.

        A server that cannot go on with a reply is asked in words to begin with it, and what it
        replies is the whole reply.
        """
        turns = [{"role": m.role, "content": m.content} for m in messages]
        if start := request.reply_start:
            if continues(self.mode):
                return [*turns, {"role": "assistant", "content": start}]
            turns[-1]["content"] += "\n" + BEGIN_WITH.format(start=start)
        return turns


@dataclass(frozen=True)
class _Reply:
    """One choice of a call; the first one carries the call's usage."""

    text: str
    finish_reason: str
    usage: Usage


def _refuse_nonsense(request: Request) -> None:
    try:
        check_request(request)
    except ValueError as error:
        raise Refused(str(error)) from error


def _printable(content: Any) -> str:
    """Return the text without lone surrogates, which no file takes; "" for what is no text."""
    return content.encode(errors="replace").decode() if isinstance(content, str) else ""


def _free_text(reply: _Reply, stop: Sequence[str], start: str) -> Completion:
    """Return the completion of free text that goes on from `start`."""
    if not reply.text and not (stop and reply.finish_reason == "stop"):
        return _error(f"the server's reply is empty ({reply.finish_reason})", reply.usage)
    if reply.finish_reason == "content_filter":
        return _error("the server's content filter cut the reply", reply.usage)
    ends = [at for at in map(reply.text.find, stop) if at >= 0]
    text = reply.text[: min(ends)] if ends else reply.text  # some servers keep stop strings
    cut = reply.finish_reason == "length" and not ends
    return Completion(
        start + text, finish_reason="length" if cut else "stop", usage=reply.usage
    )


def _error(why: str, usage: Usage = Usage()) -> Completion:  # noqa: B008
    return Completion("", finish_reason="error", error=why, usage=usage)
