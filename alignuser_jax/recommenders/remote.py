"""A recommender behind HTTP: each batch comes back answered, refused by name, or stops the run.

`from_http` speaks the JSON of `protocol`, and to a Cornac server its own `GET /recommend`.
A server that is slow, away or broken is asked again, longer apart each time; one that stays
so, or whose answers cannot be trusted, raises `RecommenderUnavailable`, so that the run stops
and the same command goes on later. A request that it refuses while it answers others raises
`RequestRefused`, which fails that one session.
"""

from __future__ import annotations

import asyncio
import os
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache, cached_property
from types import MappingProxyType
from typing import Any, TypeVar

from absl import logging

from alignuser_jax.recommenders.protocol import (
    PROTOCOL,
    WrongForm,
    decode_slates,
    encode_requests,
    read_object,
    shortened,
)
from alignuser_jax.records import (
    RecommendationRequest,
    Recommender,
    RecommenderUnavailable,
    Slate,
)

RETRIED = (408, 425, 429, 500, 502, 503, 504)
LONGEST_WAIT_SECONDS = 30.0
LONGEST_ANSWER_BYTES = 64 << 20
REFUSALS_IN_A_ROW = 8
"""So many refused calls without one that was answered: it is the server, not the requests."""
NO_ANSWER = 0
"""In place of an answer's status."""
FIRST_CONTACT = MappingProxyType({NO_ANSWER: 0, 200: 0})
"""Retries at the start: who is not there, or is another kind of server, is said at once."""
LONGEST_LABEL = 200

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


def from_http(
    url: str,
    *,
    cornac: bool = False,
    fallback: Recommender | None = None,
    config: HttpConfig | None = None,
) -> HttpRecommender | CornacServer:
    """The recommender that answers at `url`; with `cornac`, the Cornac server there.

    It is contacted at once: `RecommenderUnavailable` where nobody answers, `ValueError` where
    `url` is none. `fallback` answers for users that a Cornac server does not know.
    """
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"{url!r} is no URL: expected http://HOST:PORT/… or https://…")
    if fallback is not None and not cornac:
        raise ValueError("a fallback is for the unknown users of a Cornac server only")
    link = _Link(url.rstrip("/") if cornac else url, config or HttpConfig())
    return CornacServer(link, fallback) if cornac else HttpRecommender(link)


class HttpRecommender:
    """`name`, `version` and `stateful` are what the server says of itself at the start. A
    server that says another version in the middle is another recommender: the run stops."""

    def __init__(self, link: _Link):
        self._link = link
        self.url = link.url
        about = link.ask("GET", self.url, self._about, retries=FIRST_CONTACT)
        self.name, self.version = about["name"], about["version"]
        self.stateful = about["stateful"]

    @staticmethod
    def _about(whole: dict[str, Any]) -> dict[str, Any]:
        if whole.get("protocol") != PROTOCOL:
            raise WrongForm(
                f'no "protocol": "{PROTOCOL}" but {shortened(whole)}: is it a recommender? '
                "(A Cornac server is named cornac+http://…)"
            )
        return {
            "name": _label(whole, "name") or "http",
            "version": _label(whole, "version"),
            "stateful": bool(whole.get("stateful", False)),
        }

    def recommend(self, requests: Sequence[RecommendationRequest]) -> list[Slate]:
        slates: list[Slate] = []
        for start in range(0, len(requests), self._link.config.batch):
            part = requests[start : start + self._link.config.batch]
            try:
                slates += self._ask(part)
            except RecommenderUnavailable as error:
                raise RecommenderUnavailable(str(error), dict(enumerate(slates))) from error
        return slates

    def _ask(self, requests: Sequence[RecommendationRequest]) -> list[Slate]:
        version, slates = self._link.ask(
            "POST",
            self.url,
            lambda whole: (_label(whole, "version"), decode_slates(whole, requests)),
            content=encode_requests(requests),
            headers={"Content-Type": "application/json"},
        )
        if version not in ("", self.version):
            raise RecommenderUnavailable(
                f"{self.url} was version {self.version!r} at the start and is {version!r} now: "
                "two recommenders cannot be one arm. Serve the first one again and run the "
                "same command, or start another run"
            )
        return slates


class CornacServer:
    """A server of Cornac's own (`cornac.serving`), which knows users by id only: the live
    session reaches it as items not to show again, nothing else.

    It is asked for as many more items as are excluded, and those are dropped here. It answers
    500 to a user that it does not know; `fallback` then answers instead, or the request is
    refused.
    """

    name, version, stateful = "cornac", "", False

    def __init__(self, link: _Link, fallback: Recommender | None = None):
        self._link, self._fallback = link, fallback
        self.url = link.url
        self._recommend = self.url + "/recommend"
        self._known: set[str] = set()
        self._unknown: set[str] = set()
        try:  # what Cornac answers to a question without a user
            link.ask("GET", self._recommend, lambda whole: None, retries=FIRST_CONTACT)
        except RequestRefused as refused:
            if "uid is required" not in str(refused):
                raise RecommenderUnavailable(f"no Cornac server: {refused}") from refused
        else:
            raise RecommenderUnavailable(
                f"{self._recommend} answers without a uid, which a Cornac server refuses: give "
                "the URL of one, without /recommend"
            )

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self._link.config.concurrency, "cornac")

    def recommend(self, requests: Sequence[RecommendationRequest]) -> list[Slate]:
        pending = [self._pool.submit(self._slate, request) for request in requests]
        slates: dict[int, Slate] = {}
        errors: list[Exception] = []
        for n, done in enumerate(pending):
            try:
                slates[n] = done.result()
            except Exception as error:
                errors.append(error)
                if isinstance(error, RecommenderUnavailable):
                    for later in pending:
                        later.cancel()
                    for m, later in enumerate(pending):
                        if later.done() and not later.cancelled() and not later.exception():
                            slates[m] = later.result()
                    raise RecommenderUnavailable(str(error), slates) from error
        if errors:
            raise errors[0]
        return [slates[n] for n in range(len(requests))]

    def _slate(self, request: RecommendationRequest) -> Slate:
        user = request.user_id
        if self._fallback is not None and user in self._unknown:
            return self._fallback.recommend([request])[0]
        try:
            try:
                ids = self._ranking(user, request.k + len(request.exclude))
            except RequestRefused:  # the user is unknown, or k is more than all items
                ids = self._ranking(user, -1)
        except RequestRefused as refused:
            if user in self._known or self._fallback is None:
                raise RequestRefused(
                    f"{refused}. Cornac refuses users that it was not fitted on: user {user!r} "
                    "may be one; from_http(url, cornac=True, fallback=…) names who answers "
                    "for them"
                ) from refused
            if self._known:  # where that fails too the server is broken, not the user unknown
                self._ranking(min(self._known), 1)
            logging.log_first_n(
                logging.WARNING, "%s does not know user %r: the fallback answers", 1,
                self.url, user,
            )  # fmt: skip
            self._unknown.add(user)
            return self._fallback.recommend([request])[0]
        self._known.add(user)
        return Slate(tuple(i for i in ids if i not in request.exclude)[: request.k])

    def _ranking(self, user: str, k: int) -> list[str]:
        def check(whole: dict[str, Any]) -> list[str]:
            ids, query = whole.get("recommendations"), whole.get("query")
            if not isinstance(ids, list) or not isinstance(query, dict):
                raise WrongForm(f"no recommendations and query: {shortened(whole)}")
            if str(query.get("uid")) != user:
                raise WrongForm(f"the list of user {query.get('uid')!r} for user {user!r}")
            return [str(i) for i in ids]

        query = {"uid": user, "k": str(k), "remove_seen": "false"}
        # a 500 is Cornac's answer to an unknown user, so it is asked only once more
        return self._link.ask("GET", self._recommend, check, params=query, retries={500: 1})


class _Link:
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
                wait = _retry_after(headers)
            except WrongForm as error:
                problem = f"answers {error}"
            except (self._http.HTTPError, TimeoutError) as error:
                problem = f"does not answer ({type(error).__name__}: {error})"
            if status and status != 200 and status not in RETRIED:
                raise self._given_up(url, status, problem)
            allowed = retries.get(status, self.config.retries)
            if attempt >= allowed or (wait or 0) > LONGEST_WAIT_SECONDS:
                raise self._given_up(url, status, f"{problem}, {_times(attempt + 1)}")
            if wait is None:
                doubled = self.config.backoff_seconds * 2**attempt
                wait = min(doubled, LONGEST_WAIT_SECONDS) * random.uniform(0.75, 1.25)
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


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait: the header has them, or a date (RFC 9110, section 10.2.3)."""
    said = headers.get("retry-after", "")
    try:
        return max(0.0, float(said))
    except ValueError:
        pass
    try:
        left = parsedate_to_datetime(said) - datetime.now(UTC)
    except (TypeError, ValueError):
        return None
    return max(0.0, left.total_seconds())


def _label(whole: Mapping[str, Any], name: str) -> str:
    """A name or version, which goes into tables and files. Raises `WrongForm`."""
    value = whole.get(name)
    text = "" if value is None else str(value)
    if not isinstance(value, str | int | float | None) or not text.isprintable():
        raise WrongForm(f"the {name} {shortened(value)}: expected printable text")
    if len(text) > LONGEST_LABEL:
        raise WrongForm(f"a {name} of {len(text)} characters: at most {LONGEST_LABEL}")
    return text


@cache
def _loop() -> asyncio.AbstractEventLoop:
    """Where all calls of this process are made: only there a deadline stops any call."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True, name="recommenders").start()
    return loop


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
