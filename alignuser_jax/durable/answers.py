"""Encode questions and answers as bytes for the journal and for recordings."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import msgpack

from alignuser_jax.records import (
    Completion,
    NextPageRequest,
    RecommendationRequest,
    Request,
    Slate,
    Usage,
)

Question = Request | RecommendationRequest | NextPageRequest


Answer = Completion | Slate | str


def _plain(value: Any) -> Any:
    """What msgpack does not know: dataclasses, sets and NumPy values."""
    if dataclasses.is_dataclass(value):
        return [getattr(value, field.name) for field in dataclasses.fields(value)]
    if isinstance(value, frozenset | set):
        return sorted(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"cannot record a {type(value).__name__} ({value!r}) in the journal")


def pack(value: Any) -> bytes:
    return msgpack.packb(value, default=_plain)


def field_hashes(question: Question) -> dict[str, bytes]:
    """8-byte hashes of the question's type and of each of its fields."""
    values = {f.name: getattr(question, f.name) for f in dataclasses.fields(question)}
    values["type"] = type(question).__name__
    return {
        name: hashlib.blake2b(pack(value), digest_size=8).digest()
        for name, value in values.items()
    }


def encode_answer(answer: Answer) -> Any:
    if isinstance(answer, str):
        return answer
    fields = {
        f.name: getattr(answer, f.name)
        for f in dataclasses.fields(answer)
        if getattr(answer, f.name) != f.default
    }
    if "samples" in fields:
        fields["samples"] = [encode_answer(sample) for sample in answer.samples]
    return [type(answer).__name__, fields]


def decode_answer(data: Any) -> Answer:
    if isinstance(data, str):
        return data
    name, fields = data
    if name == "Slate":
        return Slate(**fields)
    if "usage" in fields:
        fields["usage"] = Usage(*fields["usage"])
    if "samples" in fields:
        fields["samples"] = tuple(decode_answer(sample) for sample in fields["samples"])
    return Completion(**fields)


def unpack(payload: bytes) -> Any:
    return msgpack.unpackb(payload, use_list=False)
