"""The JSON that a recommender speaks over HTTP: requests and slates, written and read.

    GET  URL   -> {"protocol": …, "name": …, "version": …, "stateful": …}
    POST URL   {"protocol": …, "requests": [{"user_id", "history", "session", "k", "page",
               "exclude", "seed", "purpose"}, …]}
               -> {"protocol": …, "version": …, "slates": [{"user_id", "item_ids",
               "scores", "propensities"}, …]}   one per request, in their order

`history` and `session` are lists of [item_id, rating, Unix seconds], oldest first; `scores` and
`propensities` may be missing. An error is another status with {"error": why}.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from alignuser_jax.records import Interaction, RecommendationRequest, Slate

PROTOCOL = "alignuser-recommend/1"
"""Name and version of the protocol; `data_prep/recbole_side.py` holds a copy of it."""


class MalformedMessage(ValueError):
    """What was read is not of this protocol; the message says what is wrong with it."""


def encode_requests(requests: Sequence[RecommendationRequest]) -> bytes:
    """Return the body of a POST."""
    rows = [
        {
            "user_id": r.user_id,
            "history": [list(i) for i in r.history],
            "session": [list(i) for i in r.session],
            "k": r.k,
            "page": r.page,
            "exclude": sorted(r.exclude),
            "seed": r.seed,
            "purpose": r.purpose,
        }
        for r in requests
    ]
    return json.dumps({"protocol": PROTOCOL, "requests": rows}).encode()


def decode_requests(data: bytes) -> list[RecommendationRequest]:
    """Return the requests of a POST; every field but `user_id` and `k` may be missing.

    Raises:
        MalformedMessage: if the body is not of this protocol.
    """
    message = read_object(data)
    if message.get("protocol", PROTOCOL) != PROTOCOL:
        raise MalformedMessage(
            f"protocol {message['protocol']!r}: this server speaks {PROTOCOL!r}"
        )
    return [_request(n, row) for n, row in enumerate(_list(message, "requests"))]


def _request(number: int, row: Any) -> RecommendationRequest:
    try:
        request = RecommendationRequest(
            user_id=row["user_id"],
            history=_interactions(row.get("history", ())),
            session=_interactions(row.get("session", ())),
            k=row["k"],
            page=row.get("page", 1),
            exclude=frozenset(row.get("exclude", ())),
            seed=row.get("seed", 0),
            purpose=row.get("purpose", "browse"),
        )
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise MalformedMessage(
            f"request {number} is wrong: {type(error).__name__} {error}"
        ) from error
    strings = (request.user_id, *request.exclude)
    if not all(isinstance(value, str) for value in strings):
        raise MalformedMessage(f"request {number}: user_id and exclude are strings")
    integers = (request.k, request.page, request.seed)
    if not all(type(n) is int for n in integers) or request.k < 1:
        raise MalformedMessage(f"request {number}: k (from 1), page and seed are whole numbers")
    return request


def _interactions(rows: Any) -> tuple[Interaction, ...]:
    interactions = tuple(Interaction(*row) for row in rows)
    for item_id, rating, timestamp in interactions:
        numbers = isinstance(rating, int | float) and isinstance(timestamp, int)
        if not isinstance(item_id, str) or not numbers:
            raise ValueError("an interaction is [item_id, rating, seconds]")
    return interactions


def encode_slates(
    requests: Sequence[RecommendationRequest], slates: Sequence[Slate], version: str
) -> bytes:
    """Return the body of the answer to a POST."""
    rows = [
        {
            "user_id": request.user_id,
            "item_ids": list(slate.item_ids),
            "scores": _numbers(slate.scores),
            "propensities": _numbers(slate.propensities),
        }
        for request, slate in zip(requests, slates, strict=True)
    ]
    return json.dumps({"protocol": PROTOCOL, "version": version, "slates": rows}).encode()


def _numbers(values: Sequence[float] | None) -> list[float] | None:
    return None if values is None else [float(v) for v in values]  # NumPy's are no JSON


def _is_finite(value: Any) -> bool:
    try:
        return type(value) in (int, float) and math.isfinite(value)
    except OverflowError:  # an integer that no float holds
        return False


def decode_slates(
    message: dict[str, Any], requests: Sequence[RecommendationRequest]
) -> list[Slate]:
    """Return the slates of an answer that `read_object` has read.

    Whether a slate keeps the contract is checked where it is used.

    Raises:
        MalformedMessage: if the answer is not of this protocol, or a slate is another user's.
    """
    rows = _list(message, "slates")
    if len(rows) != len(requests):
        raise MalformedMessage(f"{len(rows)} slates for {len(requests)} requests")
    return [_slate(row, request) for row, request in zip(rows, requests, strict=True)]


def _slate(row: Any, request: RecommendationRequest) -> Slate:
    whose = f"user {request.user_id!r}, page {request.page}"
    if not isinstance(row, dict) or not isinstance(row.get("item_ids"), list):
        raise MalformedMessage(f"no list item_ids for {whose}: {excerpt(row)}")
    if row.get("user_id") != request.user_id:
        raise MalformedMessage(
            f"the slate of user {row.get('user_id')!r} was given for {whose}"
        )
    ids = row["item_ids"]
    if not all(isinstance(i, str) for i in ids):
        raise MalformedMessage(f"item_ids {excerpt(ids)} for {whose}: ids are strings")
    scores, propensities = (
        _column(row, name, len(ids), whose) for name in ("scores", "propensities")
    )
    return Slate(tuple(ids), scores=scores, propensities=propensities)


def _column(row: dict[str, Any], name: str, items: int, whose: str) -> tuple[float, ...] | None:
    values = row.get(name)
    if values is None:
        return None
    if not isinstance(values, list) or len(values) != items:
        raise MalformedMessage(f"{name} {excerpt(values)} for {items} items of {whose}")
    if not all(map(_is_finite, values)):
        raise MalformedMessage(f"{name} {excerpt(values)} of {whose} are no finite numbers")
    return tuple(map(float, values))


def read_object(data: bytes) -> dict[str, Any]:
    """Return the JSON object in `data`.

    Raises:
        MalformedMessage: if it is none.
    """
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise MalformedMessage(f"no JSON: {excerpt(data)}") from error
    if not isinstance(value, dict):
        raise MalformedMessage(f"no JSON object: {excerpt(value)}")
    return value


def _list(message: dict[str, Any], name: str) -> list[Any]:
    rows = message.get(name)
    if not isinstance(rows, list):
        raise MalformedMessage(f"no list {name!r}: {excerpt(message)}")
    return rows


def excerpt(value: Any, limit: int = 160) -> str:
    """Return what a server sent as one printable, quoted line of at most `limit` characters."""
    text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return repr(text if len(text) <= limit else text[:limit] + "…")
