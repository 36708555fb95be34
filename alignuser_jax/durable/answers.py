"""Encode questions and answers as bytes, for the journal and for recordings of models."""

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
"""Everything that a coroutine can ask."""

Answer = Completion | Slate | str
"""The answers to the three kinds of `Question`, in the same order."""


LATER_FIELDS = frozenset({"reply_start", "lines", "line_tokens", "no_repeat", "no_repeat_of"})
"""Fields of a question that were added after journals and recordings had been written."""


def _plain(value: Any) -> Any:
    """Encode what msgpack does not know: dataclasses, sets and NumPy values."""
    if dataclasses.is_dataclass(value):
        return [getattr(value, field.name) for field in dataclasses.fields(value)]
    if isinstance(value, frozenset | set):
        return sorted(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"cannot record a {type(value).__name__} ({value!r}) in the journal")


def pack(value: Any) -> bytes:
    """Encode plain values, dataclasses, sets and NumPy values with msgpack."""
    return msgpack.packb(value, default=_plain)


def field_hashes(question: Question) -> dict[str, bytes]:
    """Return an 8-byte hash of the question's type and of each of its fields, by name.

    A field of `LATER_FIELDS` counts only where it is set, so that journals and recordings from
    before it was added are still read.
    """
    values = {
        f.name: getattr(question, f.name)
        for f in dataclasses.fields(question)
        if f.name not in LATER_FIELDS or getattr(question, f.name) != f.default
    }
    values["type"] = type(question).__name__
    return {
        name: hashlib.blake2b(pack(value), digest_size=8).digest()
        for name, value in values.items()
    }


def encode_answer(answer: Answer) -> Any:
    """Return the answer as values that `pack` can encode; default fields are left out."""
    if isinstance(answer, str):
        return answer
    fields: dict[str, Any] = {
        f.name: getattr(answer, f.name)
        for f in dataclasses.fields(answer)
        if getattr(answer, f.name) != f.default
    }
    if isinstance(answer, Completion) and "samples" in fields:
        fields["samples"] = [encode_answer(sample) for sample in answer.samples]
    return [type(answer).__name__, fields]


def decode_answer(data: Any) -> Answer:
    """Return the answer that `encode_answer` encoded."""
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
    """Decode what `pack` encoded, with tuples for lists."""
    return msgpack.unpackb(payload, use_list=False)
