"""Make a recommender of a server: each batch is answered, refused by name, or stops the run.

`from_http` speaks the JSON of `protocol`, and to a Cornac server its own `GET /recommend`.
A server that is slow, away or broken is called again, after longer waits each time. If it stays
so, or its answers cannot be trusted, `RecommenderUnavailable` is raised, so that the run stops
and the same command goes on later. A request that it refuses while it answers others raises
`RequestRefused`, which fails that one session.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from types import MappingProxyType
from typing import Any

from absl import logging

from alignuser_jax.recommenders.http.link import NO_ANSWER, HttpConfig, Link, RequestRefused
from alignuser_jax.recommenders.http.protocol import (
    PROTOCOL,
    MalformedMessage,
    decode_slates,
    encode_requests,
    excerpt,
)
from alignuser_jax.records import (
    RecommendationRequest,
    Recommender,
    RecommenderUnavailable,
    Slate,
)

FIRST_CONTACT = MappingProxyType({NO_ANSWER: 0, 200: 0})
"""Retries of the first call: a wrong URL, or another kind of server, is reported at once."""
LONGEST_LABEL = 200
"""Characters of a name or version, at most."""


def from_http(
    url: str,
    *,
    cornac: bool = False,
    fallback: Recommender | None = None,
    config: HttpConfig | None = None,
) -> HttpRecommender | CornacServer:
    """Make a recommender of the server at a URL, which is called once at the start.

    Example:
        >>> recommender = from_http("http://localhost:8090")  # doctest: +SKIP
        >>> others = Popularity().fit(dataset, dataset.log)
        >>> url = "http://localhost:5000"
        >>> server = from_http(url, cornac=True, fallback=others)  # doctest: +SKIP

    Args:
        url: of a server that speaks the JSON of `protocol`, such as `RecommenderServer`.
        cornac: whether it is a server of Cornac's own instead (`cornac.serving`).
        fallback: answers for the users that a Cornac server does not know.
        config: how patient to be.

    Raises:
        ValueError: if `url` is no URL, or a fallback is given without `cornac`.
        RecommenderUnavailable: if no recommender answers there.
    """
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"{url!r} is no URL: expected http://HOST:PORT/… or https://…")
    if fallback is not None and not cornac:
        raise ValueError("a fallback is for the unknown users of a Cornac server only")
    link = Link(url.rstrip("/") if cornac else url, config or HttpConfig())
    return CornacServer(link, fallback) if cornac else HttpRecommender(link)


class HttpRecommender:
    """A recommender behind a server; `from_http` makes one.

    A server that names another version later on is another recommender, so the run is stopped.

    Attributes:
        url: of the server.
        name: what the server called itself at the start.
        version: the version that the server named at the start.
        stateful: whether the server said that it keeps state.
    """

    def __init__(self, link: Link):
        self._link = link
        self.url = link.url
        about = link.call("GET", self.url, self._about, retries=FIRST_CONTACT)
        self.name, self.version = about["name"], about["version"]
        self.stateful = about["stateful"]

    @staticmethod
    def _about(message: dict[str, Any]) -> dict[str, Any]:
        if message.get("protocol") != PROTOCOL:
            raise MalformedMessage(
                f'no "protocol": "{PROTOCOL}" but {excerpt(message)}: is it a recommender? '
                "(A Cornac server is named cornac+http://…)"
            )
        return {
            "name": _label(message, "name") or "http",
            "version": _label(message, "version"),
            "stateful": bool(message.get("stateful", False)),
        }

    def recommend(self, requests: Sequence[RecommendationRequest]) -> list[Slate]:
        """Return one slate for each request, in calls of at most `config.batch` requests."""
        slates: list[Slate] = []
        for start in range(0, len(requests), self._link.config.batch):
            part = requests[start : start + self._link.config.batch]
            try:
                slates += self._call(part)
            except RecommenderUnavailable as error:
                raise RecommenderUnavailable(str(error), dict(enumerate(slates))) from error
        return slates

    def _call(self, requests: Sequence[RecommendationRequest]) -> list[Slate]:
        version, slates = self._link.call(
            "POST",
            self.url,
            lambda message: (_label(message, "version"), decode_slates(message, requests)),
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
    """A server of Cornac's own (`cornac.serving`); `from_http(url, cornac=True)` makes one.

    It knows users by id only: the live session reaches it as items not to show again, nothing
    else. It is asked for as many more items as are excluded, and those are dropped here. It
    answers 500 to a user that it does not know; `fallback` then answers instead, or the request
    is refused.
    """

    name, version, stateful = "cornac", "", False

    def __init__(self, link: Link, fallback: Recommender | None = None):
        self._link, self._fallback = link, fallback
        self.url = link.url
        self._recommend = self.url + "/recommend"
        self._known_users: set[str] = set()
        self._unknown_users: set[str] = set()
        try:  # what Cornac answers to a question without a user
            link.call("GET", self._recommend, lambda message: None, retries=FIRST_CONTACT)
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
        """Return one slate for each request, in one call each, several at once."""
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
        if self._fallback is not None and user in self._unknown_users:
            return self._fallback.recommend([request])[0]
        try:
            try:
                ids = self._ranking(user, request.k + len(request.exclude))
            except RequestRefused:  # the user is unknown, or k is more than all items
                ids = self._ranking(user, -1)
        except RequestRefused as refused:
            if user in self._known_users or self._fallback is None:
                raise RequestRefused(
                    f"{refused}. Cornac refuses users that it was not fitted on: user {user!r} "
                    "may be one; from_http(url, cornac=True, fallback=…) names who answers "
                    "for them"
                ) from refused
            if (
                self._known_users
            ):  # where that fails too the server is broken, not the user unknown
                self._ranking(min(self._known_users), 1)
            logging.log_first_n(
                logging.WARNING, "%s does not know user %r: the fallback answers", 1,
                self.url, user,
            )  # fmt: skip
            self._unknown_users.add(user)
            return self._fallback.recommend([request])[0]
        self._known_users.add(user)
        return Slate(tuple(i for i in ids if i not in request.exclude)[: request.k])

    def _ranking(self, user: str, k: int) -> list[str]:
        def parse(message: dict[str, Any]) -> list[str]:
            ids, query = message.get("recommendations"), message.get("query")
            if not isinstance(ids, list) or not isinstance(query, dict):
                raise MalformedMessage(f"no recommendations and query: {excerpt(message)}")
            if str(query.get("uid")) != user:
                raise MalformedMessage(
                    f"the list of user {query.get('uid')!r} for user {user!r}"
                )
            return [str(i) for i in ids]

        query = {"uid": user, "k": str(k), "remove_seen": "false"}
        # a 500 is Cornac's answer to an unknown user, so the call is made only once more
        return self._link.call("GET", self._recommend, parse, params=query, retries={500: 1})


def _label(message: Mapping[str, Any], name: str) -> str:
    """Return a name or version, which goes into tables and files, or raise if none could."""
    value = message.get(name)
    text = "" if value is None else str(value)
    if not isinstance(value, str | int | float | None) or not text.isprintable():
        raise MalformedMessage(f"the {name} {excerpt(value)}: expected printable text")
    if len(text) > LONGEST_LABEL:
        raise MalformedMessage(f"a {name} of {len(text)} characters: at most {LONGEST_LABEL}")
    return text
