"""The durable log: one checksummed record per answered question, from which a run resumes.

A record says who asked (arm, user, session, sequence), a short hash of every field of the
question, and the answer. It is on disk before the answer reaches the agent, so whatever an
agent has ever seen can be given to it again. Resuming re-creates the agents and feeds them
their recorded answers; a question that is no longer the same stops the run and names the field.

On disk: `manifest.json` (what run this is) and `segment-NNNNN.bin`, a new one for each opening.
A record is a 12-byte header (payload length, CRC-32 of that length, CRC-32 of the payload, all
little-endian uint32) and a msgpack payload. Killing the writer tears at most the last record of
a segment; that one is dropped. Damage anywhere else is an error and nothing is overwritten.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

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

JOURNAL_VERSION = 1
_HEADER = struct.Struct("<III")
_LENGTH = struct.Struct("<I")


class JournalError(RuntimeError):
    """The journal cannot be used: it is damaged, in use, or belongs to another run."""


class Asked(NamedTuple):
    """Who asked: `sequence` counts a session's questions from 0."""

    arm: str
    user_id: str
    session: int
    sequence: int


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


def _pack(value: Any) -> bytes:
    return msgpack.packb(value, default=_plain)


def field_hashes(question: Question) -> dict[str, bytes]:
    """8-byte hashes of the question's type and of each of its fields."""
    values = {f.name: getattr(question, f.name) for f in dataclasses.fields(question)}
    values["type"] = type(question).__name__
    return {
        name: hashlib.blake2b(_pack(value), digest_size=8).digest()
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


def _unpack(payload: bytes) -> Any:
    return msgpack.unpackb(payload, use_list=False)


# --- the log ----------------------------------------------------------------------------


class Journal:
    """The open log of one run in one folder; one writer at a time. Use `Journal.open`.

    `recovered` is the number of answers found, `dropped_bytes` what torn records took.
    """

    def __init__(self, folder: Path, lock, segment_bytes: int):
        self.folder = folder
        self.recovered = 0
        self.dropped_bytes = 0
        self._lock = lock
        self._segment_bytes = segment_bytes
        self._recorded: dict[Asked, tuple[dict[str, bytes], Any]] = {}
        self._file = None

    @classmethod
    def open(
        cls, folder: str | Path, manifest: Mapping[str, Any], *, segment_bytes: int = 64 << 20
    ) -> Journal:
        """Open the journal of the run described by `manifest` (plain JSON values: geometry,
        seed, configuration and data hashes, policy id), or start it where there is none.

        Raises `JournalError` where the folder holds another run (naming what differs), is
        open in another process, or is damaged before its last record.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("a")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.close()
            raise JournalError(
                f"{folder} is being written by another process; wait for it or use another "
                "run folder"
            ) from error
        journal = cls(folder, lock, segment_bytes)
        try:
            journal._check_manifest(manifest)
            journal._read_segments()
        except BaseException:
            journal.close()
            raise
        return journal

    def _check_manifest(self, manifest: Mapping[str, Any]) -> None:
        given = json.loads(json.dumps({"journal_version": JOURNAL_VERSION, **manifest}))
        path = self.folder / "manifest.json"
        if path.exists():
            refuse_other_run(json.loads(path.read_text()), given, self.folder)
            return
        if self._segments():
            raise JournalError(
                f"{self.folder} has journal segments but no manifest.json, so it is not known "
                "which run they belong to; use another run folder"
            )
        partial = path.with_name("manifest.json.partial")
        partial.write_text(json.dumps(given, indent=2, sort_keys=True) + "\n")
        os.replace(partial, path)

    def _segments(self) -> list[Path]:
        return sorted(self.folder.glob("segment-*.bin"))

    def _read_segments(self) -> None:
        for path in self._segments():
            data = path.read_bytes()
            whole = 0
            for whole, payload in _records(data, path):  # noqa: B007
                arm, user_id, session, sequence, hashes, answer = _unpack(payload)
                asked = Asked(arm, user_id, session, sequence)
                if asked in self._recorded:
                    raise JournalError(f"{path} is damaged: a second answer to {asked}")
                self._recorded[asked] = (hashes, answer)
            self.dropped_bytes += len(data) - whole
        self.recovered = len(self._recorded)

    def recorded(self, asked: Asked, question: Question) -> Answer | None:
        """The answer on record, `None` where there is none; each is handed out once.

        Raises `JournalError` where the recorded question was another one.
        """
        record = self._recorded.get(asked)
        if record is None:
            return None
        hashes, answer = record
        now = field_hashes(question)
        if hashes != now:
            differing = sorted(
                name for name in hashes.keys() | now.keys() if hashes.get(name) != now.get(name)
            )
            raise JournalError(
                f"{self.folder}: question {asked.sequence} of session {asked.session} of user "
                f"{asked.user_id!r} in arm {asked.arm!r} is not the recorded one: "
                f"{', '.join(differing)} differ. Code, configuration or data changed since "
                "the run began; resume with the old ones or use another run folder"
            )
        del self._recorded[asked]
        return decode_answer(answer)

    def append(self, asked: Asked, question: Question, answer: Answer) -> Answer:
        """Add a record and return the answer as a resumed run will read it; the answer may be
        used after the next `flush`."""
        encoded = encode_answer(answer)
        payload = _pack([*asked, field_hashes(question), encoded])
        length = _LENGTH.pack(len(payload))
        header = _HEADER.pack(len(payload), zlib.crc32(length), zlib.crc32(payload))
        if self._file is None:
            self._file = self._next_segment().open("xb")
            _sync_folder(self.folder)
        self._file.write(header + payload)
        return decode_answer(_unpack(_pack(encoded)))

    def _next_segment(self) -> Path:
        last = self._segments()[-1:]
        number = int(last[0].stem.split("-")[1]) + 1 if last else 0
        return self.folder / f"segment-{number:05d}.bin"

    def flush(self) -> None:
        """Put everything appended so far on disk."""
        if self._file is None:
            return
        self._file.flush()
        os.fsync(self._file.fileno())
        if self._file.tell() >= self._segment_bytes:
            self._file.close()
            self._file = None

    def close(self) -> None:
        if self._file is not None:
            self.flush()
        if self._file is not None:
            self._file.close()
            self._file = None
        self._lock.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _records(data: bytes, path: Path) -> Iterator[tuple[int, bytes]]:
    """(end offset, payload) of each whole record; stops at a torn last one."""
    start = 0
    while start < len(data):
        rest = len(data) - start
        torn_by_zeros = not any(data[start:])  # a file extended before a power cut
        if rest < _HEADER.size or torn_by_zeros:
            return
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
