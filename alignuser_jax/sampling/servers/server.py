"""A `Generator` over OpenAI-compatible servers: vLLM, SGLang, `transformers serve`, hosted.

A reply that cannot be read is asked for once more (METHOD.md section 3), whoever the caller is,
and then is an error completion; so an agent's session, which asks again only after replies
that came back unread, does not do so a second time.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, Literal

from absl import logging

from alignuser_jax.language.parsing import REPROMPT, ReplyError, parse_answer
from alignuser_jax.randomness import stable_key
from alignuser_jax.records import Completion, Message, Request, Ticket, Usage
from alignuser_jax.sampling.generate import errors_of, with_samples
from alignuser_jax.sampling.servers.structured import (
    MODES,
    PROBE,
    Mode,
    as_lines,
    constraint,
    room,
)
from alignuser_jax.sampling.servers.transport import (
    Refused,
    Transport,
    TransportConfig,
    refused_model,
    usage_of,
)

SEED_MASK = 0x7FFFFFFF
"""Seeds are the last 31 bits of a request's key: servers read them as signed 32-bit numbers."""
MOST_STOPS = 4
"""So many stop strings are sent, as hosted models take; replies are cut at all of them here."""


@dataclass(frozen=True)
class ServerConfig:
    """What is asked of the servers at `transport.urls`.

    `model` is the served model's name, `adapters` maps the name in `Request.adapter` to that of
    a served one. `structured` says how answers are constrained (sampling/structured.py); "auto"
    tries each way once at the start. `extra` goes into every call's body as it is, such as
    `{"chat_template_kwargs": {"enable_thinking": False}}`. Prices are per million tokens.
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


class ServerGenerator:
    """The servers at work, all of one kind; `mode` is how they constrain answers.

    Raises `ServerError` at once where no URL answers, the key or the model is refused; later
    from `collect`, after what was answered before has been collected.

    `stats`: requests, calls, retries, reprompts, errors, prompt_tokens, cached_tokens,
    generated_tokens (all of answered calls), cost, and seconds in which anything was asked.
    A `scored` request's alternative is drawn by the server; its distribution is not known.
    """

    def __init__(self, config: ServerConfig):
        self.config = config
        self.mode: Mode = "none"
        self._stats: Counter[str] = Counter()
        self._many = True  # the servers give several choices in one call
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
        """What decides the answers besides the request; a run goes on under the same only."""
        config = self.config
        return {
            "server_model": config.model,
            "adapters": dict(config.adapters),
            "structured": self.mode,
            "extra": dict(config.extra),
        }

    @property
    def stats(self) -> dict[str, float]:
        stats = dict(self._stats)
        prompt = stats.get("prompt_tokens", 0) * self.config.prompt_price
        generated = stats.get("generated_tokens", 0) * self.config.generated_price
        running = time.perf_counter() - self._since if self._open else 0.0
        return stats | {"cost": (prompt + generated) / 1e6, "seconds": self._seconds + running}

    def close(self) -> None:
        """Stops asking; nothing may be submitted afterwards."""
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

    def _run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    # --- Generator ----------------------------------------------------------------------

    def submit(self, request: Request) -> Ticket:
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
        """Forgets a request and closes its connection."""
        if future := self._open.get(ticket):
            future.cancel()
            self._forget(ticket)

    def collect(self) -> list[tuple[Ticket, Completion]]:
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
        while not first.done():  # a stop while calls are under way comes by the queue
            await asyncio.wait([first], timeout=0.02)
            if not self._ready.empty():
                first.cancel()
                raise self._ready.get()
        await first

    async def _first_calls(self) -> None:
        """Asks the model for a word, and finds out how answers can be constrained."""
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
            "%s constrains no answers: they are read strictly and asked for once more",
            ", ".join(config.transport.urls),
        )

    # --- one request, on the loop -------------------------------------------------------

    async def _answer(self, ticket: Ticket, request: Request, model: str) -> None:
        try:
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
        except Exception as error:  # a defect of this file: no request may wait for ever
            self._ready.put(error)
            return
        self._stats["requests"] += 1
        self._stats["errors"] += bool(errors_of(completion))
        self._ready.put((ticket, completion))

    async def _samples(self, request: Request, model: str) -> list[_Reply | Refused]:
        """`request.samples` replies, in one call where the server can; `Refused` in place of
        those that it does not give. Raises `Refused` where it gives none."""
        count = max(request.samples, 1)
        fields = self._constraint(request)
        replies: list[_Reply | Refused] = []
        single = False
        if count > 1 and self._many:
            try:
                replies = await self._call(request, request.messages, model, fields, count)
            except Refused as refusal:
                logging.info("several replies in one call are refused: %s", refusal)
            single = len(replies) < count
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
        for one in more:
            if isinstance(one, BaseException) and not isinstance(one, Refused):
                raise one
            replies.append(one if isinstance(one, Refused) else one[0])
        if all(isinstance(reply, Refused) for reply in replies):
            raise replies[0]
        if single and self._many:  # else it was the request that was refused
            self._many = False
            logging.warning("the server gives one reply a call: each sample is a call")
        return replies[:count]

    async def _read(
        self, request: Request, model: str, n: int, reply: _Reply | Refused
    ) -> Completion:
        """The reply as a completion; where it cannot be read, asked for once more."""
        if isinstance(reply, Refused):
            return _error(str(reply))
        if not request.answer:
            return _free_text(reply, request.stop)
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
            again = (
                *request.messages,
                Message.of("assistant", reply.text),
                Message.of("user", REPROMPT),
            )
            self._stats["reprompts"] += 1
            key = stable_key(request.key, "again", n)
            fields = self._constraint(request)
            try:
                (reply, *_) = await self._call(request, again, model, fields, 1, key=key)
            except Refused as refusal:
                return _error(f"{refusal} (asked once more)", usage)
            usage = Usage(*(a + b for a, b in zip(usage, reply.usage, strict=True)))
        raise AssertionError("unreachable")

    def _mode(self, request: Request) -> Mode:
        """Reasoning before an answer is free text, so the whole is not constrained then."""
        return "none" if request.reasoning_tokens else self.mode

    def _constraint(self, request: Request) -> dict[str, Any]:
        return constraint(self._mode(request), request.answer) if request.answer else {}

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
        """At most `count` replies of one call. Raises `Refused`."""
        limit = request.max_tokens
        if request.answer:
            mode = mode or self._mode(request)
            limit = request.reasoning_tokens + room(mode, request.answer)
        body = {
            "model": model,
            "messages": [{"role": m.role, "content": m.content} for m in messages],
            "temperature": request.temperature,
            "top_p": request.top_p,
            "seed": (request.key if key is None else key) & SEED_MASK,
            **fields,
        }
        if request.stop:
            body["stop"] = list(request.stop[:MOST_STOPS])
        cuts = {"top_k": request.top_k, "min_p": request.min_p}  # vLLM's and SGLang's names
        asked = {name: value for name, value in cuts.items() if value}
        if extra := {**self.config.extra, **asked, **fields.get("extra_body", {})}:
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


@dataclass(frozen=True)
class _Reply:
    """One choice of a call; its usage is the call's, told at the first choice only."""

    text: str
    finish_reason: str
    usage: Usage


def _printable(content: Any) -> str:
    """What can be written down: "" for what is no text, no lone surrogates."""
    return content.encode(errors="replace").decode() if isinstance(content, str) else ""


def _free_text(reply: _Reply, stop: Sequence[str]) -> Completion:
    if not reply.text and not (stop and reply.finish_reason == "stop"):
        return _error(f"the server's reply is empty ({reply.finish_reason})", reply.usage)
    if reply.finish_reason == "content_filter":
        return _error("the server's content filter cut the reply", reply.usage)
    ends = [at for at in map(reply.text.find, stop) if at >= 0]
    text = reply.text[: min(ends)] if ends else reply.text  # where a server keeps or ignores it
    reason = "length" if reply.finish_reason == "length" and not ends else "stop"
    return Completion(text, finish_reason=reason, usage=reply.usage)


def _error(why: str, usage: Usage = Usage()) -> Completion:  # noqa: B008
    return Completion("", finish_reason="error", error=why, usage=usage)
