"""Records on disk that survive a kill, and questions and answers as bytes: what the agents'
journal and recordings of models have in common.

A record is a 12-byte header (payload length, CRC-32 of that length, CRC-32 of the payload, all
little-endian uint32) and a msgpack payload. Killing the writer tears at most the last record.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

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

_HEADER = struct.Struct("<III")
_LENGTH = struct.Struct("<I")


class JournalError(RuntimeError):
    """The journal cannot be used: it is damaged, in use, or belongs to another run."""


# --- questions and answers as bytes -----------------------------------------------------


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


# --- records on disk -------------------------------------------------------------------


def lock_for_writing(file: IO, name: str | Path) -> None:
    """One writer at a time; closes the file and raises `JournalError` where there is one."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise JournalError(
            f"{name} is being written by another process; wait for it or use another name"
        ) from error


def framed(payload: bytes) -> bytes:
    """The payload with its header, as it stands on disk."""
    length = _LENGTH.pack(len(payload))
    return _HEADER.pack(len(payload), zlib.crc32(length), zlib.crc32(payload)) + payload


def write_whole(path: Path, text: str) -> None:
    """The file has its old content or its new one, never half of it."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def records_in(data: bytes, path: Path) -> Iterator[tuple[int, bytes]]:
    """(end offset, payload) of each whole record; stops at a torn last one."""
    start = 0
    while start < len(data):
        header = data[start : start + _HEADER.size]
        if len(header) < _HEADER.size:
            return
        if not any(header) and not any(memoryview(data)[start:]):
            return  # a file extended before a power cut
        length, length_crc, payload_crc = _HEADER.unpack_from(data, start)
        first = start + _HEADER.size
        end = first + length
        if zlib.crc32(data[start : start + _LENGTH.size]) != length_crc:
            raise JournalError(_damaged(path, start))
        if end > len(data):
            return
        payload = data[first:end]
        if zlib.crc32(payload) != payload_crc:
            if end == len(data):
                return
            raise JournalError(_damaged(path, start))
        yield end, payload
        start = end


def _damaged(path: Path, offset: int) -> str:
    return (
        f"{path} is damaged at byte {offset}, before its end, so it was not merely cut short; "
        "restore the file from a copy, or use another run folder"
    )


def refuse_other_run(found: Any, given: Any, folder: str | Path) -> None:
    """Raise `JournalError` naming the fields in which two manifests differ."""
    before, now = _flat(found), _flat(given)
    missing = "(absent)"
    differences = [
        f"{name} was {before.get(name, missing)!r}, now {now.get(name, missing)!r}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name, missing) != now.get(name, missing)
    ]
    if differences:
        raise JournalError(
            f"{folder} holds another run: {'; '.join(differences)}. Give the same settings to "
            "resume it, or use another run folder"
        )


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    flat = {}
    for name, inner in value.items():
        flat |= _flat(inner, f"{prefix}.{name}" if prefix else str(name))
    return flat
