"""What a model answered, kept in a file, and given again without the model.

The file begins with what answered (`about`), then has one checksummed record per completion
(`durable`): the hashes of the request's fields, and the completion.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignuser_jax.durable.answers import (
    decode_answer,
    encode_answer,
    field_hashes,
    pack,
    unpack,
)
from alignuser_jax.durable.frames import framed, lock_for_writing, records_in
from alignuser_jax.durable.whole import JournalError, refuse_other
from alignuser_jax.records import Completion, Generator, Request, Ticket
from alignuser_jax.sampling.generate import errors_of

RECORDING_VERSION = 1
_KIND = "alignuser recording"


class NotRecorded(RuntimeError):
    """A replay was asked what its recording does not hold."""


class Recording:
    """Passes requests to `generator` and keeps every completion in the file at `path`.

    `about` (plain JSON values) says what answers. Where the file is there already it must say
    the same (else `JournalError`), a torn last record is dropped, and a request that has been
    answered in it is answered from it and not asked again: so an interrupted run costs nothing
    twice. Failures are kept but asked again.
    """

    def __init__(self, generator: Generator, path: str | Path, about: Mapping[str, Any]):
        self.generator = generator
        self.reused = 0
        self._ready: deque[tuple[Ticket, Completion]] = deque()
        self._asked: dict[Ticket, tuple[Ticket, dict[str, bytes]]] = {}
        self._tickets = 0
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+b")
        lock_for_writing(self._file, path)
        found, self._answers, whole = _read(path)
        given = json.loads(json.dumps(dict(about)))
        try:
            if found is not None:
                refuse_other(found, given, path, option="file")
        except BaseException:
            self._file.close()
            raise
        self._file.truncate(whole)
        if found is None:
            self._append([_KIND, RECORDING_VERSION, given])

    @property
    def kept(self) -> int:
        """Requests with an answer in the file, failures among them."""
        return len(self._answers)

    def submit(self, request: Request) -> Ticket:
        self._tickets += 1
        hashes = field_hashes(request)
        known = self._answers.get(_name(hashes))
        answer = known and decode_answer(unpack(known)[1])
        if answer and not errors_of(answer):
            self.reused += 1
            self._ready.append((self._tickets, answer))
        else:
            self._asked[self.generator.submit(request)] = (self._tickets, hashes)
        return self._tickets

    def collect(self) -> list[tuple[Ticket, Completion]]:
        if self._ready:
            done, self._ready = list(self._ready), deque()
            return done
        done = []
        for theirs, completion in self.generator.collect():
            ours, hashes = self._asked.pop(theirs)
            encoded = encode_answer(completion)
            payload = pack([hashes, encoded])
            self._file.write(framed(payload))
            _keep(self._answers, payload)
            done.append((ours, decode_answer(unpack(payload)[1])))
        self._flush()
        return done

    def cancel(self, ticket: Ticket) -> None:
        self._ready = deque(entry for entry in self._ready if entry[0] != ticket)
        for theirs, (ours, _) in list(self._asked.items()):
            if ours == ticket:
                del self._asked[theirs]
                self.generator.cancel(theirs)

    def close(self) -> None:
        self._file.close()

    def _append(self, values: Any) -> None:
        self._file.write(framed(pack(values)))
        self._flush()

    def _flush(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())


class Replay:
    """Answers from the recording at `path`, without a model; `about` says what had answered.

    The same request is answered the same however often it is asked: by its last recorded
    answer, by a failure where there is none. A request that is not recorded raises
    `NotRecorded`, which names what differs from the nearest one: the run would no longer be
    the recorded one, and a failure in its place would go unseen.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"no recording {path}: make one with --record={path}")
        about, self._answers, _ = _read(self.path)
        if about is None:
            raise JournalError(f"{path} is empty or cut before its first record: nothing in it")
        self.about: dict[str, Any] = about
        self._ready: deque[tuple[Ticket, Completion]] = deque()
        self._tickets = 0

    def submit(self, request: Request) -> Ticket:
        hashes = field_hashes(request)
        known = self._answers.get(_name(hashes))
        if known is None:
            raise NotRecorded(self._missing(request, hashes))
        self._tickets += 1
        self._ready.append((self._tickets, decode_answer(unpack(known)[1])))
        return self._tickets

    def collect(self) -> list[tuple[Ticket, Completion]]:
        done, self._ready = list(self._ready), deque()
        return done

    def cancel(self, ticket: Ticket) -> None:
        self._ready = deque(entry for entry in self._ready if entry[0] != ticket)

    def _missing(self, request: Request, hashes: dict[str, bytes]) -> str:
        def differing(payload: bytes) -> list[str]:
            other = unpack(payload)[0]
            return sorted(n for n in hashes.keys() | other if hashes.get(n) != other.get(n))

        nearest = min(map(differing, self._answers.values()), key=len, default=None)
        asked = f"{request.purpose!r} request" + f" about {request.subject!r}" * bool(
            request.subject
        )
        told = "it holds no answers"
        if nearest is not None:
            told = f"the nearest of {len(self._answers)} differs in {', '.join(nearest)}"
        return (
            f"{self.path} has no answer to this {asked}: {told}. A replay needs the "
            "configuration, data, seed and flags of its recording, and a recording that was "
            "finished; with a model and --record it goes on"
        )


def _name(hashes: Mapping[str, bytes]) -> bytes:
    whole = b"".join(name.encode() + hashes[name] for name in sorted(hashes))
    return hashlib.blake2b(whole, digest_size=16).digest()


def _keep(answers: dict[bytes, bytes], payload: bytes) -> None:
    """Take up a record of an answer; a failure takes no answer's place."""
    hashes, answer = unpack(payload)
    name = _name(hashes)
    if name not in answers or not errors_of(decode_answer(answer)):
        answers[name] = payload


def _read(path: Path) -> tuple[dict[str, Any] | None, dict[bytes, bytes], int]:
    """(what answered, answers by request, bytes up to a torn last record)."""
    about, answers, whole = None, {}, 0
    for whole, payload in records_in(path.read_bytes(), path):  # noqa: B007
        record = unpack(payload)
        if about is None:
            if not isinstance(record, tuple) or record[:2] != (_KIND, RECORDING_VERSION):
                raise JournalError(f"{path} is no recording of version {RECORDING_VERSION}")
            about = json.loads(json.dumps(record[2]))
        else:
            _keep(answers, payload)
    return about, answers, whole
