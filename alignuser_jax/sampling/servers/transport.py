"""Chat completions over one or several URLs of OpenAI-compatible servers: each call comes back
answered or refused, a failing URL is set aside, and where none works the whole is stopped.

Everything but `check` runs on one event loop; `Transport` is its caller's, not thread-safe.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from typing import Any

from absl import logging

from alignuser_jax.retrying import backoff_seconds, retry_after_seconds

RETRIED_REFUSALS = (408, 409, 429)
"""Calls with these statuses and 5xx are made again; 401, 402, 403 and 404 stop the run; others
are refusals."""

LONGEST_RETRY_AFTER_SECONDS = 600.0
"""A server that asks to wait longer has failed."""


class ServerError(RuntimeError):
    """No server can be worked with: a wrong key, a refused model, nobody there."""


class Refused(Exception):
    """One call that the server does not answer; the reason says what it said."""


@dataclass(frozen=True)
class TransportConfig:
    """Where the servers are and how patient to be.

    The key is read from the environment variable `api_key_env`, which may be unset. At most
    `concurrency` calls are under way per URL. A call waits `connect_seconds` for a connection
    and `read_seconds` for its reply; it is asked again up to `retries` times, after
    `backoff_seconds`, doubled each time, or what the server's Retry-After says.
    """

    urls: tuple[str, ...]
    api_key_env: str = "OPENAI_API_KEY"
    concurrency: int = 16
    connect_seconds: float = 5.0
    read_seconds: float = 300.0
    retries: int = 5
    backoff_seconds: float = 0.5

    def __post_init__(self) -> None:
        if not self.urls:
            raise ValueError("no server URL: give one such as http://localhost:8000/v1")
        for url in self.urls:
            if not url.startswith(("http://", "https://")):
                raise ValueError(
                    f"{url!r} is no URL: expected http://HOST:PORT/v1 or https://…"
                )
        if len(set(self.urls)) < len(self.urls):
            raise ValueError(f"the URLs {', '.join(self.urls)} are not different")
        for name in ("concurrency", "connect_seconds", "read_seconds", "backoff_seconds"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected more than 0")
        if self.retries < 0:
            raise ValueError(f"retries is {self.retries}, expected 0 or more")


@dataclass(eq=False)
class _Url:
    """`failures` since the last answer, by the calls `failed_by`; not used before `aside`.
    `limit` calls at once: half where it says that there are too many, more with each answer."""

    name: str
    client: Any
    limit: float
    outstanding: int = 0
    failures: int = 0
    failed_by: set[_Call] = field(default_factory=set)
    failed_at: float = 0.0
    aside: float = 0.0


@dataclass(eq=False)
class _Call:
    """`answered`: how many calls had been answered when this one last failed."""

    body: Mapping[str, Any]
    home: int
    done: asyncio.Future
    attempts: int = 0
    answered: int = 0
    task: asyncio.Task | None = None


class Transport:
    """Make it on the event loop that it works on, `check` it, then `await call(...)`.

    `stopped` is called once with the `ServerError` where no URL works any more; calls under
    way then never return. `stats` counts calls, retries and tokens.
    """

    def __init__(
        self,
        config: TransportConfig,
        stats: Counter[str],
        stopped: Callable[[ServerError], None],
    ):
        import openai

        self._openai = openai
        self.config = config
        self._stats = stats
        self._stopped = stopped
        self._loop = asyncio.get_running_loop()
        self._pending: deque[_Call] = deque()
        self._answered = 0
        key = os.environ.get(config.api_key_env) or "none"
        timeout = openai.Timeout(config.read_seconds, connect=config.connect_seconds)
        self._urls = [
            _Url(
                url,
                openai.AsyncOpenAI(api_key=key, base_url=url, timeout=timeout, max_retries=0),
                config.concurrency,
            )
            for url in config.urls
        ]

    # --- at the start -------------------------------------------------------------------

    async def check(self) -> None:
        """Raises `ServerError` where a key is refused or no URL answers; a URL that does not
        answer is set aside while another does. A server may lack the models route."""
        found = await asyncio.gather(*(self._reach(url) for url in self._urls))
        silent = [error for error in found if error]
        if len(silent) == len(self._urls):
            raise ServerError(
                f"no answer from {'; '.join(silent)}. Start the server, or check the URL "
                "(host, port and path; most end in /v1)"
            )
        for error in silent:
            logging.warning("going on without %s", error)

    async def _reach(self, url: _Url) -> str:
        """What is wrong with a URL that does not answer, "" where it does."""
        seconds = self.config.connect_seconds
        try:
            await url.client.models.list(timeout=seconds)
        except self._openai.APIStatusError as error:
            if error.status_code in (401, 402, 403):
                raise self._fatal(url, error, None) from error
        except self._openai.APIConnectionError as error:
            url.failures = 1
            self._set_aside(url, self.config.backoff_seconds)
            return f"{url.name} ({_reason(error)}, {seconds:g} s)"
        except Exception as error:  # an answer, if an odd one
            logging.info("%s: the models route answers %r", url.name, error)
        return ""

    async def served(self) -> list[str]:
        """The names of the models that are served, as far as the servers tell."""
        names: list[str] = []
        for url in self._urls:
            try:
                page = await url.client.models.list(timeout=self.config.connect_seconds)
                names += [str(model.id) for model in page.data]
            except Exception as error:
                logging.info("%s does not list its models: %r", url.name, error)
        return list(dict.fromkeys(names))

    # --- calls --------------------------------------------------------------------------

    async def call(self, body: Mapping[str, Any], home: int) -> Any:
        """The answer to one chat completion, from URL number `home` (modulo their number)
        where it has room. Raises `Refused`."""
        call = _Call(body, home % len(self._urls), self._loop.create_future())
        self._pending.append(call)
        self._dispatch()
        try:
            return await call.done
        finally:
            if call.task is not None:
                call.task.cancel()

    def _dispatch(self) -> None:
        """Starts what waits while a URL has room."""
        while self._pending:
            if self._pending[0].done.done():  # cancelled
                self._pending.popleft()
            elif url := self._free(self._pending[0].home):
                call = self._pending.popleft()
                url.outstanding += 1
                call.task = self._loop.create_task(self._attempt(call, url))
                call.task.add_done_callback(partial(_surface, call))
            else:
                return

    def _free(self, home: int) -> _Url | None:
        """The home URL where it has room, else the least busy one. A URL whose last call
        failed is tried by one call at a time."""
        now = self._loop.time()
        free = [
            url
            for url in self._urls
            if url.aside <= now and url.outstanding < (1 if url.failures else int(url.limit))
        ]
        if self._urls[home] in free:
            return self._urls[home]
        return min(free, key=lambda url: url.outstanding, default=None)

    async def _attempt(self, call: _Call, url: _Url) -> None:
        started = self._loop.time()
        try:
            response = await url.client.chat.completions.create(**call.body)
            _check_shape(response)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            self._failed(call, url, error, started)
        else:
            self._answered += 1
            url.failures = 0
            url.failed_by.clear()
            url.limit = min(url.limit + 1 / url.limit, self.config.concurrency)
            self._count(response)
            if not call.done.done():
                call.done.set_result(response)
        finally:
            url.outstanding -= 1
            self._dispatch()

    def _count(self, response: Any) -> None:
        prompt, cached, generated = usage_of(response)
        self._stats["calls"] += 1
        self._stats["prompt_tokens"] += prompt
        self._stats["cached_tokens"] += cached
        self._stats["generated_tokens"] += generated

    # --- failures -----------------------------------------------------------------------

    def _failed(self, call: _Call, url: _Url, error: Exception, started: float) -> None:
        """Refuse the call, stop everything, or ask again later or elsewhere."""
        if call.done.done():
            return
        status = getattr(error, "status_code", 0) if _is_status(self._openai, error) else 0
        out_of_money = status == 402 or getattr(error, "code", "") == "insufficient_quota"
        if out_of_money or status in (401, 403, 404):
            self._loop.create_task(self._stop_naming_models(call, url, error))
            return
        if 400 <= status < 500 and status not in RETRIED_REFUSALS:
            call.done.set_exception(Refused(_reason(error)))
            return
        too_many = status == 429  # says nothing of the call
        call.attempts += not too_many
        url.failed_by.add(call)
        if started >= url.failed_at:  # else a call of the same time has counted it already
            url.failures += 1
            url.failed_at = self._loop.time()
            url.limit = max(url.limit / 2, 1) if too_many else url.limit
            headers = getattr(getattr(error, "response", None), "headers", {})
            wait = retry_after_seconds(headers)
            if wait is None:
                wait = backoff_seconds(self.config.backoff_seconds, url.failures)
            if wait > LONGEST_RETRY_AFTER_SECONDS:
                url.failures = self.config.retries + 1
            self._set_aside(url, min(wait, LONGEST_RETRY_AFTER_SECONDS))
            logging.log_every_n_seconds(
                logging.WARNING, "%s: %s; asked again in %.1f s", 10,
                url.name, _reason(error), wait,
            )  # fmt: skip
        came = not _is_unreachable(self._openai, error)
        its_own = self._answered > call.answered or url.failed_by == {call}
        call.answered = self._answered
        if call.attempts > self.config.retries and came and its_own and not too_many:
            tried = f"{_reason(error)}, {call.attempts} times"
            call.done.set_exception(Refused(tried))
        elif all(url.failures > self.config.retries for url in self._urls):
            names = ", ".join(url.name for url in self._urls)
            self._stop(
                ServerError(
                    f"no answer from {names} after {self.config.retries} retries; the last "
                    f"was: {_reason(error)}. What was answered is kept: run the same command "
                    "again when the server is back"
                )
            )
        else:
            self._stats["retries"] += 1
            self._pending.appendleft(call)

    def _set_aside(self, url: _Url, seconds: float) -> None:
        url.aside = self._loop.time() + seconds
        self._loop.call_later(seconds + 0.001, self._dispatch)

    async def _stop_naming_models(self, call: _Call, url: _Url, error: Exception) -> None:
        self._stop(self._fatal(url, error, call.body.get("model"), await self.served()))

    def _stop(self, error: ServerError) -> None:
        self._pending.clear()
        self._stopped(error)

    def _fatal(
        self, url: _Url, error: Exception, model: str | None, served: list[str] | None = None
    ) -> ServerError:
        """The error that says what was given, what the server said and what to do."""
        variable = self.config.api_key_env
        given = "is set" if os.environ.get(variable) else "is not set"
        status = getattr(error, "status_code", 0)
        said = f"{url.name} says {_reason(error)}"
        if status == 404:
            return refused_model(url.name, model or "", _reason(error), served or [])
        if status in (401, 403):
            return ServerError(
                f"{said}. The key is read from ${variable}, which {given}: set it to a key "
                "of this server, or name another variable with --api_key_env"
            )
        return ServerError(f"{said}. Add credit to the account of the key in ${variable}")

    async def close(self) -> None:
        """Ends everything that is under way on the event loop."""
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for url in self._urls:
            await url.client.close()


def refused_model(url: str, model: str, said: str, served: list[str]) -> ServerError:
    """The error of a server that does not serve the model."""
    near = get_close_matches(model, served, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    shown = f"it serves {', '.join(served[:8])}" if served else "it does not list its models"
    return ServerError(
        f"{url} refuses model {model!r}: {said}; {hint}{shown}. Give --model one that is "
        "served, or check the URL (most end in /v1)"
    )


def _surface(call: _Call, task: asyncio.Task) -> None:
    """An error of this file must not leave the call waiting for ever."""
    if not task.cancelled() and (error := task.exception()) and not call.done.done():
        call.done.set_exception(error)


class _Malformed(Exception):
    """An answer that is no chat completion."""


def _check_shape(response: Any) -> None:
    choices = getattr(response, "choices", None)
    if not isinstance(choices, list) or not choices:
        raise _Malformed(f"an answer without choices: {str(response)[:200]!r}")
    for choice in choices:
        if not hasattr(getattr(choice, "message", None), "content"):
            raise _Malformed(f"a choice without a message: {str(choice)[:200]!r}")


def usage_of(response: Any) -> tuple[int, int, int]:
    """(prompt, cached, generated) tokens, 0 where the server does not tell."""
    usage = getattr(response, "usage", None)
    details = getattr(usage, "prompt_tokens_details", None)
    told = (
        getattr(usage, "prompt_tokens", None),
        getattr(details, "cached_tokens", None),
        getattr(usage, "completion_tokens", None),
    )
    return tuple(n if type(n) is int and n > 0 else 0 for n in told)


def _is_status(openai: Any, error: Exception) -> bool:
    return isinstance(error, openai.APIStatusError)


def _is_unreachable(openai: Any, error: Exception) -> bool:
    """The request did not get there, or the server went away; a late reply is no such case."""
    if isinstance(error, openai.APITimeoutError):
        return type(error.__cause__).__name__ == "ConnectTimeout"
    return isinstance(error, openai.APIConnectionError)


def _reason(error: Exception) -> str:
    """What happened, in one line."""
    status = getattr(error, "status_code", None)
    body = getattr(error, "body", None)
    if status is None:
        cause = error.__cause__
        why = f": {cause}" if cause is not None and str(cause) else ""
        text = f"{str(error).rstrip('.') or type(error).__name__}{why}"
    else:
        if isinstance(body, dict):
            body = body.get("message") or body.get("detail") or body
        text = f"{status}: {body or error}"
    return " ".join(text.split())[:500]
