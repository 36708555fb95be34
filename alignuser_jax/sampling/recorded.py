"""Record in a file what a model answers, and answer from that file without the model.

A recording begins with a description of what answered (`about`). After it comes one record per
completion, checksummed by `durable.frames`: the hashes of the request's fields, and the
completion.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignuser_jax.durable import answers
from alignuser_jax.durable.frames import framed, lock_for_writing, records_in
from alignuser_jax.durable.whole import JournalError, refuse_other
from alignuser_jax.records import Completion, Generator, Request, Ticket
from alignuser_jax.sampling.generate import errors_of

RECORDING_VERSION = 1
"""The version of the file format."""

_KIND = "alignuser recording"


class NotRecorded(RuntimeError):
    """A replay got a request whose answer its recording does not hold."""


class Recording:
    """A generator that passes requests on to another one and records every completion.

    A request that the file already has an answer for is answered from the file and not passed
    on, so that an interrupted run pays for nothing twice. Failures are recorded, but tried
    again. A torn last record of an interrupted run is dropped.

    Args:
        generator: Answers the requests that the file cannot answer.
        path: The file; made if it does not exist.
        about: What answers (model, engine geometry, ...) as plain JSON values. An existing file
            must say the same.

    Attributes:
        generator: The generator that answers.
        reused: How many requests were answered from the file.

    Raises:
        JournalError: The file describes another model, is damaged, or is being written by
            another process.

    Example:
        >>> from alignuser_jax.records import Message
        >>> from alignuser_jax.sampling import ScriptedGenerator, generate
        >>> request = Request((Message.of("user", "Say hello."),), "greet")
        >>> model = ScriptedGenerator(lambda request: "hello")
        >>> recording = Recording(model, "runs/a/answers.bin", {"model": "scripted"})
        >>> generate(recording, [request])[0].text
        'hello'
        >>> recording.close()
        >>> generate(Replay("runs/a/answers.bin"), [request])[0].text
        'hello'
    """

    def __init__(self, generator: Generator, path: str | Path, about: Mapping[str, Any]):
        self.generator = generator
        self.reused = 0
        self._ready: deque[tuple[Ticket, Completion]] = deque()
        self._submitted: dict[Ticket, tuple[Ticket, dict[str, bytes]]] = {}
        self._tickets = 0
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+b")
        lock_for_writing(self._file, path)
        recorded_about, self._answers, whole_bytes = _read(path)
        plain_about = json.loads(json.dumps(dict(about)))
        try:
            if recorded_about is not None:
                refuse_other(recorded_about, plain_about, path, option="file")
        except BaseException:
            self._file.close()
            raise
        self._file.truncate(whole_bytes)
        if recorded_about is None:
            self._append([_KIND, RECORDING_VERSION, plain_about])

    @property
    def answer_count(self) -> int:
        """How many requests the file has an answer for, failures included."""
        return len(self._answers)

    def submit(self, request: Request) -> Ticket:
        """Pass a request on, unless the file has its answer; return its ticket."""
        self._tickets += 1
        hashes = answers.field_hashes(request)
        payload = self._answers.get(_request_hash(hashes))
        answer = payload and _completion(payload)
        if answer and not errors_of(answer):
            self.reused += 1
            self._ready.append((self._tickets, answer))
        else:
            self._submitted[self.generator.submit(request)] = (self._tickets, hashes)
        return self._tickets

    def collect(self) -> list[tuple[Ticket, Completion]]:
        """Return what is answered; completions are in the file before they are returned."""
        if self._ready:
            done, self._ready = list(self._ready), deque()
            return done
        done = []
        for inner_ticket, completion in self.generator.collect():
            ticket, hashes = self._submitted.pop(inner_ticket)
            payload = answers.pack([hashes, answers.encode_answer(completion)])
            self._file.write(framed(payload))
            _add_answer(self._answers, payload)
            done.append((ticket, _completion(payload)))
        self._flush()
        return done

    def cancel(self, ticket: Ticket) -> None:
        """Forget a request; its completion will not come."""
        self._ready = deque(entry for entry in self._ready if entry[0] != ticket)
        for inner_ticket, (outer_ticket, _) in list(self._submitted.items()):
            if outer_ticket == ticket:
                del self._submitted[inner_ticket]
                self.generator.cancel(inner_ticket)

    def close(self) -> None:
        """Close the file, so that other processes can open it."""
        self._file.close()

    def _append(self, values: Any) -> None:
        self._file.write(framed(answers.pack(values)))
        self._flush()

    def _flush(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())


class Replay:
    """A generator that answers from a recording, without a model.

    The same request is answered the same however often it comes: by its last recorded answer,
    or by a recorded failure if it has no answer. A request that is not recorded raises
    `NotRecorded`, which names the fields that differ from the nearest recorded request; a
    failure in its place would go unseen, and the run would no longer be the recorded one.

    Args:
        path: The file that a `Recording` wrote.

    Attributes:
        path: The file.
        about: What answered when the file was recorded.

    Raises:
        FileNotFoundError: There is no such file.
        JournalError: The file is empty, damaged, or no recording of this version.

    Example:
        >>> replay = Replay("runs/a/answers.bin")
        >>> replay.about
        {'model': 'scripted'}
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"no recording {path}: make one with --record={path}")
        about, self._answers, _ = _read(self.path)
        if about is None:
            raise JournalError(
                f"{path} is empty or cut before its first record: there is nothing to replay"
            )
        self.about: dict[str, Any] = about
        self._ready: deque[tuple[Ticket, Completion]] = deque()
        self._tickets = 0

    def submit(self, request: Request) -> Ticket:
        """Look up a request's answer and return its ticket.

        Raises:
            NotRecorded: The recording has no answer to it.
        """
        hashes = answers.field_hashes(request)
        payload = self._answers.get(_request_hash(hashes))
        if payload is None:
            raise NotRecorded(self._explain_missing(request, hashes))
        self._tickets += 1
        self._ready.append((self._tickets, _completion(payload)))
        return self._tickets

    def collect(self) -> list[tuple[Ticket, Completion]]:
        """Return the completions of everything that was submitted since the last call."""
        done, self._ready = list(self._ready), deque()
        return done

    def cancel(self, ticket: Ticket) -> None:
        """Forget a request; its completion will not come."""
        self._ready = deque(entry for entry in self._ready if entry[0] != ticket)

    def _explain_missing(self, request: Request, hashes: dict[str, bytes]) -> str:
        def differing_fields(payload: bytes) -> list[str]:
            other = answers.unpack(payload)[0]
            return sorted(n for n in hashes.keys() | other if hashes.get(n) != other.get(n))

        nearest = min(map(differing_fields, self._answers.values()), key=len, default=None)
        name = f"{request.purpose!r} request"
        if request.subject:
            name += f" about {request.subject!r}"
        reason = "it holds no answers"
        if nearest is not None:
            reason = f"the nearest of {len(self._answers)} differs in {', '.join(nearest)}"
        return (
            f"{self.path} has no answer to this {name}: {reason}. A replay needs the "
            "configuration, data, seed and flags of its recording, and a recording that was "
            "finished; with a model and --record it goes on"
        )


def _request_hash(hashes: Mapping[str, bytes]) -> bytes:
    """Return one hash of all fields of a request."""
    whole = b"".join(name.encode() + hashes[name] for name in sorted(hashes))
    return hashlib.blake2b(whole, digest_size=16).digest()


def _completion(payload: bytes) -> Completion:
    """Return the completion in a record of an answer."""
    answer = answers.decode_answer(answers.unpack(payload)[1])
    if not isinstance(answer, Completion):
        raise JournalError(
            f"a recording holds a {type(answer).__name__} where a model's answer should be: "
            "it was not written by this software"
        )
    return answer


def _add_answer(answers_by_request: dict[bytes, bytes], payload: bytes) -> None:
    """Add a record of an answer; a failure does not replace an answer."""
    key = _request_hash(answers.unpack(payload)[0])
    if key not in answers_by_request or not errors_of(_completion(payload)):
        answers_by_request[key] = payload


def _read(path: Path) -> tuple[dict[str, Any] | None, dict[bytes, bytes], int]:
    """Read a recording: what answered, its answers by request, the bytes of whole records.

    What answered is `None` for an empty file. A torn last record is left out.
    """
    about: dict[str, Any] | None = None
    answers_by_request: dict[bytes, bytes] = {}
    whole_bytes = 0
    for whole_bytes, payload in records_in(path.read_bytes(), path):  # noqa: B007
        record = answers.unpack(payload)
        if about is None:
            if not isinstance(record, tuple) or record[:2] != (_KIND, RECORDING_VERSION):
                raise JournalError(f"{path} is no recording of version {RECORDING_VERSION}")
            about = json.loads(json.dumps(record[2]))
        else:
            _add_answer(answers_by_request, payload)
    return about, answers_by_request, whole_bytes
