"""Calls to a server that may be slow, away or broken: a deadline, retries, named errors."""

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

from alignuser_jax.recommenders.http.protocol import WrongForm, read_object, shortened
from alignuser_jax.records import RecommenderUnavailable
from alignuser_jax.retrying import backoff_seconds, retry_after_seconds

RETRIED_STATUSES = (408, 425, 429, 500, 502, 503, 504)
"""A call that gets one of these is made again; any other status is final."""
LONGEST_RETRY_AFTER_SECONDS = 30.0
"""A server that asks to wait longer is given up: the agents of a run stand still meanwhile."""
LONGEST_ANSWER_BYTES = 64 << 20
REFUSALS_IN_A_ROW = 8
"""So many refused calls without one that was answered: it is the server, not the requests."""
NO_ANSWER = 0
"""In place of an answer's status."""

Answer = TypeVar("Answer")


class RequestRefused(RuntimeError):
    """The server does not answer this call; it may answer others."""


@dataclass(frozen=True)
class HttpConfig:
    """How patient to be. A call has `timeout_seconds` from its start to the last byte of its
    answer and is made again up to `retries` times, after `backoff_seconds`, doubled each time,
    or what the server's Retry-After says. At most `batch` requests go into one call; to a
    Cornac server, which takes one request a call, `concurrency` calls are under way at once.
    A key in the environment variable `api_key_env` is sent as a bearer token.
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
        if self.retries < 0 or self.concurrency < 1:
            raise ValueError(
                f"retries is {self.retries} and concurrency {self.concurrency}: expected 0 or "
                "more, and 1 or more"
            )


class Link:
    """Calls to one server, from any thread."""

    def __init__(self, url: str, config: HttpConfig):
        import httpx2

        self._http = httpx2
        self.url, self.config = url, config
        self._refusals = 0
        key = (os.environ.get(config.api_key_env) or "").strip()
        if not (key.isascii() and key.isprintable()):
            raise ValueError(f"${config.api_key_env} holds characters that no key may have")
        try:
            httpx2.URL(url)
            self._client = httpx2.AsyncClient(
                timeout=httpx2.Timeout(None, connect=config.connect_seconds),
                headers={"Authorization": f"Bearer {key}"} if key else {},
            )
        except (httpx2.InvalidURL, ValueError) as error:
            raise ValueError(f"{url!r} is no URL: {error}") from error

    def ask(
        self,
        method: str,
        url: str,
        check: Callable[[dict[str, Any]], Answer],
        *,
        retries: Mapping[int, int] = MappingProxyType({}),
        **arguments: Any,
    ) -> Answer:
        """What `check` makes of the JSON object answered; its `WrongForm` is asked again.
        `retries` says, for a status, how often instead of the configuration's number."""
        attempt = 0
        while True:
            status, wait, problem = NO_ANSWER, None, ""
            try:
                status, headers, data = self._whole_answer(method, url, arguments)
                if status == 200:
                    answer = check(read_object(data))
                    self._refusals = 0
                    return answer
                problem = f"answers {status}: {shortened(_reason(data))}"
                wait = retry_after_seconds(headers)
            except WrongForm as error:
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
        """(status, headers, body). Raises `TimeoutError` at the deadline, whatever drips."""
        call = asyncio.run_coroutine_threadsafe(self._call(method, url, arguments), _loop())
        try:
            return call.result()
        except BaseException:
            call.cancel()
            raise

    async def _call(
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
                        raise WrongForm(f"more than {LONGEST_ANSWER_BYTES} bytes")
                return response.status_code, response.headers, bytes(data)
        except TimeoutError:
            raise TimeoutError(f"no whole answer in {seconds:g} s") from None

    def _given_up(self, url: str, status: int, problem: str) -> Exception:
        """The error that says what was asked, what was said and what to do."""
        said = f"{url} {problem}"
        if status in (401, 403):
            name = self.config.api_key_env
            given = "is set" if os.environ.get(name) else "is not set"
            return RecommenderUnavailable(
                f"{said}. The key is read from ${name}, which {given}"
            )
        if status == 404 or 300 <= status < 400:
            return RecommenderUnavailable(f"{said}. Check the URL (host, port and path)")
        if status and status not in (200, 408, 425, 429, 502, 503, 504):  # this one call's
            self._refusals += 1
            if self._refusals < REFUSALS_IN_A_ROW:
                return RequestRefused(said)
            said += f"; {self._refusals} calls in a row were refused"
        todo = "when the server is back" if status != 200 else "when the server is mended"
        return RecommenderUnavailable(
            f"{said}. What was answered is kept: run the same command again {todo}"
        )


def _reason(data: bytes) -> Any:
    """The error that an answer names, else all that it says."""
    try:
        return read_object(data)["error"]
    except (WrongForm, KeyError):
        return data


@cache
def _loop() -> asyncio.AbstractEventLoop:
    """Where all calls of this process are made: only there a deadline stops any call."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True, name="recommenders").start()
    return loop


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
