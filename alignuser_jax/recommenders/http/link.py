"""Call a server that may be slow, away or broken: with a deadline, retries and named errors."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any, TypeVar

from absl import logging

from alignuser_jax.recommenders.http.protocol import MalformedMessage, excerpt, read_object
from alignuser_jax.records import RecommenderUnavailable
from alignuser_jax.retrying import backoff_seconds, retry_after_seconds

RETRIED_STATUSES = (408, 425, 429, 500, 502, 503, 504)
"""A call that gets one of these is made again; any other status is final."""
LONGEST_RETRY_AFTER_SECONDS = 30.0
"""A server that asks to wait longer is given up: a run's agents stand still meanwhile."""
LONGEST_ANSWER_BYTES = 64 << 20
"""A longer answer is refused."""
REFUSALS_IN_A_ROW = 8
"""After so many refused calls without an answered one, the server is at fault, not a call."""
NO_ANSWER = 0
"""Stands for the status of a call that got no answer."""

T = TypeVar("T")


class RequestRefused(RuntimeError):
    """The server does not answer this call; it may answer others."""


@dataclass(frozen=True)
class HttpConfig:
    """How patient to be with a recommender server.

    Example:
        >>> patient = HttpConfig(timeout_seconds=120, retries=10)
        >>> recommender = from_http("http://localhost:1", config=patient)  # doctest: +SKIP

    Attributes:
        timeout_seconds: from the start of a call to the last byte of its answer.
        connect_seconds: of that, at most so long for the connection.
        retries: how often a call that failed is made again.
        backoff_seconds: wait before the first retry, doubled for each further one; the server's
            Retry-After comes first.
        batch: requests in one call, at most.
        concurrency: calls at once to a Cornac server, which takes one request a call.
        api_key_env: environment variable whose value is sent as a bearer token.
    """

    timeout_seconds: float = 30.0
    connect_seconds: float = 5.0
    retries: int = 5
    backoff_seconds: float = 0.5
    batch: int = 256
    concurrency: int = 8
    api_key_env: str = "ALIGNUSER_RECOMMENDER_KEY"

    def __post_init__(self) -> None:
        for name in ("timeout_seconds", "connect_seconds", "backoff_seconds", "batch"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected more than 0")
        if self.retries < 0:
            raise ValueError(f"retries is {self.retries}, expected 0 or more")
        if self.concurrency < 1:
            raise ValueError(f"concurrency is {self.concurrency}, expected 1 or more")


class Link:
    """Calls to one server, from any thread.

    Args:
        url: of the server, for messages.
        config: how patient to be.
    """

    def __init__(self, url: str, config: HttpConfig):
        import httpx2

        self._http = httpx2
        self.url, self.config = url, config
        self._refusals = 0
        key = (os.environ.get(config.api_key_env) or "").strip()
        if not (key.isascii() and key.isprintable()):
            raise ValueError(
                f"${config.api_key_env} holds characters that no key may have: set it to the "
                "server's key, or unset it"
            )
        try:
            httpx2.URL(url)
            self._client = httpx2.AsyncClient(
                timeout=httpx2.Timeout(None, connect=config.connect_seconds),
                headers={"Authorization": f"Bearer {key}"} if key else {},
            )
        except (httpx2.InvalidURL, ValueError) as error:
            raise ValueError(f"{url!r} is no URL: {error}") from error

    def call(
        self,
        method: str,
        url: str,
        parse: Callable[[dict[str, Any]], T],
        *,
        retries: Mapping[int, int] = MappingProxyType({}),
        **arguments: Any,
    ) -> T:
        """Make a call, again if need be, and return the parsed answer.

        Args:
            method: GET or POST.
            url: where to.
            parse: from the JSON object of the answer to the result. If it raises
                `MalformedMessage` the call is made again.
            retries: how often a call with a certain status is made again, in place of the
                configuration's number.
            **arguments: what the HTTP client sends: `content`, `headers`, `params`.

        Raises:
            RequestRefused: if the server refuses this call but may answer others.
            RecommenderUnavailable: if the server does not answer, or refuses every call.
        """
        attempt = 0
        while True:
            status, wait, problem = NO_ANSWER, None, ""
            try:
                status, headers, data = self._whole_answer(method, url, arguments)
                if status == 200:
                    result = parse(read_object(data))
                    self._refusals = 0
                    return result
                problem = f"answers {status}: {excerpt(_reason(data))}"
                wait = retry_after_seconds(headers)
            except MalformedMessage as error:
                problem = f"answers {error}"
            except (self._http.HTTPError, TimeoutError) as error:
                problem = f"does not answer ({type(error).__name__}: {error})"
            if status and status != 200 and status not in RETRIED_STATUSES:
                raise self._given_up(url, status, problem)
            allowed = retries.get(status, self.config.retries)
            if attempt >= allowed or (wait or 0) > LONGEST_RETRY_AFTER_SECONDS:
                raise self._given_up(url, status, f"{problem}, {_times(attempt + 1)}")
            if wait is None:
                wait = backoff_seconds(self.config.backoff_seconds, attempt + 1)
            logging.log_every_n_seconds(
                logging.WARNING, "%s %s; asked again in %.1f s", 10, url, problem, wait
            )
            time.sleep(wait)
            attempt += 1

    def _whole_answer(
        self, method: str, url: str, arguments: Mapping[str, Any]
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Return (status, headers, body); raise `TimeoutError` at the deadline.

        The deadline is for the whole answer, so a server that sends a byte now and then is
        stopped too.
        """
        pending = asyncio.run_coroutine_threadsafe(self._send(method, url, arguments), _loop())
        try:
            return pending.result()
        except BaseException:
            pending.cancel()
            raise

    async def _send(
        self, method: str, url: str, arguments: Mapping[str, Any]
    ) -> tuple[int, Mapping[str, str], bytes]:
        seconds = self.config.timeout_seconds
        data = bytearray()
        try:
            async with (
                asyncio.timeout(seconds),
                self._client.stream(method, url, **arguments) as response,
            ):
                async for part in response.aiter_bytes():
                    data += part
                    if len(data) > LONGEST_ANSWER_BYTES:
                        raise MalformedMessage(f"more than {LONGEST_ANSWER_BYTES} bytes")
                return response.status_code, response.headers, bytes(data)
        except TimeoutError:
            raise TimeoutError(f"no whole answer in {seconds:g} s") from None

    def _given_up(self, url: str, status: int, problem: str) -> Exception:
        """Return the error that says what was called, what came back and what to do."""
        message = f"{url} {problem}"
        if status in (401, 403):
            name = self.config.api_key_env
            state = "is set" if os.environ.get(name) else "is not set"
            return RecommenderUnavailable(
                f"{message}. The key is read from ${name}, which {state}"
            )
        if status == 404 or 300 <= status < 400:
            return RecommenderUnavailable(f"{message}. Check the URL (host, port and path)")
        if status and status not in (200, 408, 425, 429, 502, 503, 504):  # this one call's
            self._refusals += 1
            if self._refusals < REFUSALS_IN_A_ROW:
                return RequestRefused(message)
            message += f"; {self._refusals} calls in a row were refused"
        when = "when the server is back" if status != 200 else "when the server is mended"
        return RecommenderUnavailable(
            f"{message}. What was answered is kept: run the same command again {when}"
        )


def _reason(data: bytes) -> Any:
    """Return the error that an answer names, else all of the answer."""
    try:
        return read_object(data)["error"]
    except (MalformedMessage, KeyError):
        return data


@cache
def _loop() -> asyncio.AbstractEventLoop:
    """Return the event loop of this process's calls: only there can a deadline stop a call."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True, name="recommenders").start()
    return loop


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
