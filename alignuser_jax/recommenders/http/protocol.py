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


class WrongForm(ValueError):
    """What was read is not this protocol; the message says what is wrong with it."""


def encode_requests(requests: Sequence[RecommendationRequest]) -> bytes:
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
    """Raises `WrongForm`. Fields that may be missing: all but `user_id` and `k`."""
    whole = read_object(data)
    if whole.get("protocol", PROTOCOL) != PROTOCOL:
        raise WrongForm(f"protocol {whole['protocol']!r}: this server speaks {PROTOCOL!r}")
    return [_request(n, row) for n, row in enumerate(_list(whole, "requests"))]


def _request(number: int, row: Any) -> RecommendationRequest:
    try:
        made = RecommendationRequest(
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
        raise WrongForm(f"request {number} is wrong: {type(error).__name__} {error}") from error
    if not isinstance(made.user_id, str) or not all(isinstance(i, str) for i in made.exclude):
        raise WrongForm(f"request {number}: user_id and exclude are strings")
    if not all(type(n) is int for n in (made.k, made.page, made.seed)) or made.k < 1:
        raise WrongForm(f"request {number}: k (from 1), page and seed are whole numbers")
    return made


def _interactions(rows: Any) -> tuple[Interaction, ...]:
    made = tuple(Interaction(*row) for row in rows)
    for item_id, rating, timestamp in made:
        numbers = isinstance(rating, int | float) and isinstance(timestamp, int)
        if not isinstance(item_id, str) or not numbers:
            raise ValueError("an interaction is [item_id, rating, seconds]")
    return made


def encode_slates(
    requests: Sequence[RecommendationRequest], slates: Sequence[Slate], version: str
) -> bytes:
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


def _finite(value: Any) -> bool:
    try:
        return type(value) in (int, float) and math.isfinite(value)
    except OverflowError:  # an integer that no float holds
        return False


def decode_slates(
    whole: dict[str, Any], requests: Sequence[RecommendationRequest]
) -> list[Slate]:
    """The slates of an answer that `read_object` has read. Raises `WrongForm`, also where a
    slate is another user's; what is on a slate is checked where it is used."""
    rows = _list(whole, "slates")
    if len(rows) != len(requests):
        raise WrongForm(f"{len(rows)} slates for {len(requests)} requests")
    return [_slate(row, request) for row, request in zip(rows, requests, strict=True)]


def _slate(row: Any, request: RecommendationRequest) -> Slate:
    asked = f"user {request.user_id!r}, page {request.page}"
    if not isinstance(row, dict) or not isinstance(row.get("item_ids"), list):
        raise WrongForm(f"no list item_ids for {asked}: {shortened(row)}")
    if row.get("user_id") != request.user_id:
        raise WrongForm(f"the slate of user {row.get('user_id')!r} was given for {asked}")
    ids = row["item_ids"]
    if not all(isinstance(i, str) for i in ids):
        raise WrongForm(f"item_ids {shortened(ids)} for {asked}: ids are strings")
    columns = {}
    for name in ("scores", "propensities"):
        values = row.get(name)
        if values is not None:
            if not isinstance(values, list) or len(values) != len(ids):
                raise WrongForm(f"{name} {shortened(values)} for {len(ids)} items of {asked}")
            if not all(map(_finite, values)):
                raise WrongForm(f"{name} {shortened(values)} of {asked} are no finite numbers")
            values = tuple(map(float, values))
        columns[name] = values
    return Slate(tuple(ids), **columns)


def read_object(data: bytes) -> dict[str, Any]:
    """A JSON object. Raises `WrongForm`."""
    try:
        whole = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise WrongForm(f"no JSON: {shortened(data)}") from error
    if not isinstance(whole, dict):
        raise WrongForm(f"no JSON object: {shortened(whole)}")
    return whole


def _list(whole: dict[str, Any], name: str) -> list[Any]:
    rows = whole.get(name)
    if not isinstance(rows, list):
        raise WrongForm(f"no list {name!r}: {shortened(whole)}")
    return rows


def shortened(value: Any, limit: int = 160) -> str:
    """What somebody said, in one printable line."""
    text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return repr(text if len(text) <= limit else text[:limit] + "…")
