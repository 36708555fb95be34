"""Make chat completions over one or several URLs of OpenAI-compatible servers.

Each call comes back answered or refused. A URL that fails is left alone for a while, and when
none works everything is stopped. All of it runs on one event loop and is not thread-safe.
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
"""Calls with these statuses, or with 5xx, are made again.

401, 402, 403 and 404 stop the run; other statuses from 400 on refuse the call.
"""

LONGEST_RETRY_AFTER_SECONDS = 600.0
"""A server whose Retry-After header asks for a longer wait counts as failed."""


class ServerError(RuntimeError):
    """No server can be worked with: the key or the model is refused, or none answers."""


class Refused(Exception):
    """A server refuses one call; the message is what it said."""


@dataclass(frozen=True)
class TransportConfig:
    """Where the servers are and how patient to be.

    Attributes:
        urls: The servers' addresses; most end in /v1. All must serve the same.
        api_key_env: The environment variable with the key; it may be unset.
        concurrency: The most calls in work at one URL.
        connect_seconds: How long a call waits for a connection.
        read_seconds: How long a call waits for its reply.
        retries: How often a failed call is made again.
        backoff_seconds: The wait before the first retry. It doubles each time; a Retry-After
            header of the server overrides it.

    Raises:
        ValueError: A field has no meaning; the message names it.

    Example:
        >>> TransportConfig(("http://gpu-1:8000/v1", "http://gpu-2:8000/v1"), concurrency=64)
        TransportConfig(urls=('http://gpu-1:8000/v1', 'http://gpu-2:8000/v1'), ...)
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
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected more than 0")
        for name, least in (("concurrency", 1), ("retries", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ValueError(
                    f"{name} is {value}, expected a whole number of at least {least}"
                )


@dataclass(eq=False)
class _Url:
    """One server, and how it has been doing.

    Attributes:
        name: Its address.
        client: Its client of the openai library.
        limit: The most calls at a time. It is halved when the server says that there are too
            many, and grows with each answer.
        outstanding: Calls in work.
        failures: Failures since the last answer.
        failed_by: The calls that failed since then.
        failed_at: When the last failure came, in the loop's time.
        not_before: When the next call may be made, in the loop's time.
    """

    name: str
    client: Any
    limit: float
    outstanding: int = 0
    failures: int = 0
    failed_by: set[_Call] = field(default_factory=set)
    failed_at: float = 0.0
    not_before: float = 0.0


@dataclass(eq=False)
class _Call:
    """One chat completion on its way.

    Attributes:
        body: The fields of the call.
        home: The number of the URL that it prefers.
        done: The response, or the exception.
        attempts: Failures so far, those with status 429 (too many calls) left out.
        answered: How many calls had been answered when this one last failed.
        task: The attempt that is in work.
    """

    body: Mapping[str, Any]
    home: int
    done: asyncio.Future
    attempts: int = 0
    answered: int = 0
    task: asyncio.Task | None = None


class Transport:
    """The calls to all URLs. Construct it on the event loop on which it works, and `check` it.

    Args:
        config: Where the servers are.
        stats: Counts calls, retries and tokens.
        stopped: Is called once with the `ServerError` when no URL works any more; calls that
            are in work then never return.

    Attributes:
        config: Where the servers are.
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
        """Check that some URL answers; one that does not is left alone while another does.

        A server may lack the models route.

        Raises:
            ServerError: A key is refused, or no URL answers.
        """
        errors = await asyncio.gather(*(self._reach(url) for url in self._urls))
        silent = [error for error in errors if error]
        if len(silent) == len(self._urls):
            raise ServerError(
                f"no answer from {'; '.join(silent)}. Start the server, or check the URL "
                "(host, port and path; most end in /v1)"
            )
        for error in silent:
            logging.warning("going on without %s", error)

    async def _reach(self, url: _Url) -> str:
        """Return what is wrong with a URL that does not answer, "" if it does."""
        seconds = self.config.connect_seconds
        try:
            await url.client.models.list(timeout=seconds)
        except self._openai.APIStatusError as error:
            if error.status_code in (401, 402, 403):
                raise self._fatal(url, error, None) from error
        except self._openai.APIConnectionError as error:
            url.failures = 1
            self._pause(url, self.config.backoff_seconds)
            return f"{url.name} ({_reason(error)}, {seconds:g} s)"
        except Exception as error:  # it is an answer, if a strange one
            logging.info("%s: the models route answers %r", url.name, error)
        return ""

    async def served(self) -> list[str]:
        """Return the names of the served models, as far as the servers list them."""
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
        """Return the response to one chat completion.

        Args:
            body: The fields of the call.
            home: The number of the URL to prefer (modulo the number of URLs), so that a
                conversation finds its prefix in the server's cache.

        Raises:
            Refused: The server refuses the call.
        """
        call = _Call(body, home % len(self._urls), self._loop.create_future())
        self._pending.append(call)
        self._dispatch()
        try:
            return await call.done
        finally:
            if call.task is not None:
                call.task.cancel()

    def _dispatch(self) -> None:
        """Start calls that wait, as long as a URL has room."""
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
        """Return the home URL if it has room, else the least busy one.

        A URL whose last call failed gets one call at a time.
        """
        now = self._loop.time()
        free = [
            url
            for url in self._urls
            if url.not_before <= now
            and url.outstanding < (1 if url.failures else int(url.limit))
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
        """Refuse the call, stop everything, or make the call again later or elsewhere."""
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
        too_many = status == 429  # the call itself is not to blame
        call.attempts += not too_many
        url.failed_by.add(call)
        if started >= url.failed_at:  # else a call of the same time was counted already
            url.failures += 1
            url.failed_at = self._loop.time()
            url.limit = max(url.limit / 2, 1) if too_many else url.limit
            headers = getattr(getattr(error, "response", None), "headers", {})
            wait = retry_after_seconds(headers)
            if wait is None:
                wait = backoff_seconds(self.config.backoff_seconds, url.failures)
            if wait > LONGEST_RETRY_AFTER_SECONDS:
                url.failures = self.config.retries + 1
            self._pause(url, min(wait, LONGEST_RETRY_AFTER_SECONDS))
            logging.log_every_n_seconds(
                logging.WARNING, "%s: %s; next call in %.1f s", 10,
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
                    f"error was: {_reason(error)}. All answers so far are kept: run the same "
                    "command again when the server is back"
                )
            )
        else:
            self._stats["retries"] += 1
            self._pending.appendleft(call)

    def _pause(self, url: _Url, seconds: float) -> None:
        url.not_before = self._loop.time() + seconds
        self._loop.call_later(seconds + 0.001, self._dispatch)

    async def _stop_naming_models(self, call: _Call, url: _Url, error: Exception) -> None:
        self._stop(self._fatal(url, error, call.body.get("model"), await self.served()))

    def _stop(self, error: ServerError) -> None:
        self._pending.clear()
        self._stopped(error)

    def _fatal(
        self, url: _Url, error: Exception, model: str | None, served: list[str] | None = None
    ) -> ServerError:
        """Return the error that says what was given, what the server said and what to do."""
        variable = self.config.api_key_env
        key_state = "is set" if os.environ.get(variable) else "is not set"
        status = getattr(error, "status_code", 0)
        said = f"{url.name} says {_reason(error)}"
        if status == 404:
            return refused_model(url.name, model or "", _reason(error), served or [])
        if status in (401, 403):
            return ServerError(
                f"{said}. The key is read from ${variable}, which {key_state}: set it to a key "
                "of this server, or name another variable with --api_key_env"
            )
        return ServerError(f"{said}. Add credit to the account of the key in ${variable}")

    async def close(self) -> None:
        """Cancel everything that runs on the event loop, and close the clients."""
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for url in self._urls:
            await url.client.close()


def refused_model(url: str, model: str, said: str, served: list[str]) -> ServerError:
    """Return the error of a server that does not serve the model.

    Args:
        url: The server.
        model: The model that was requested.
        said: What the server said.
        served: The names of the models that it serves, as far as they are known.
    """
    near = get_close_matches(model, served, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    listing = f"it serves {', '.join(served[:8])}" if served else "it does not list its models"
    return ServerError(
        f"{url} refuses model {model!r}: {said}; {hint}{listing}. Give --model one that is "
        "served, or check the URL (most end in /v1)"
    )


def _surface(call: _Call, task: asyncio.Task) -> None:
    """Pass an error of this file on to the call, which would wait for ever."""
    if not task.cancelled() and (error := task.exception()) and not call.done.done():
        call.done.set_exception(error)


class _Malformed(Exception):
    """A response is no chat completion."""


def _check_shape(response: Any) -> None:
    choices = getattr(response, "choices", None)
    if not isinstance(choices, list) or not choices:
        raise _Malformed(f"an answer without choices: {str(response)[:200]!r}")
    for choice in choices:
        if not hasattr(getattr(choice, "message", None), "content"):
            raise _Malformed(f"a choice without a message: {str(choice)[:200]!r}")


def usage_of(response: Any) -> tuple[int, int, int]:
    """Return the (prompt, cached, generated) tokens; 0 where the server does not say."""

    def count(source: Any, name: str) -> int:
        value = getattr(source, name, None)
        return value if type(value) is int and value > 0 else 0

    usage = getattr(response, "usage", None)
    details = getattr(usage, "prompt_tokens_details", None)
    return (
        count(usage, "prompt_tokens"),
        count(details, "cached_tokens"),
        count(usage, "completion_tokens"),
    )


def _is_status(openai: Any, error: Exception) -> bool:
    return isinstance(error, openai.APIStatusError)


def _is_unreachable(openai: Any, error: Exception) -> bool:
    """Return whether the call did not arrive or the server went away, unlike a late reply."""
    if isinstance(error, openai.APITimeoutError):
        return type(error.__cause__).__name__ == "ConnectTimeout"
    return isinstance(error, openai.APIConnectionError)


def _reason(error: Exception) -> str:
    """Return what happened, in one line."""
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
