"""The durable log: one checksummed record per answered question, from which a run resumes.

A record says who asked (arm, user, session, sequence), a short hash of every field of the
question, and the answer. It is on disk before the answer reaches the agent, so whatever an
agent has ever seen can be given to it again. Resuming re-creates the agents and feeds them
their recorded answers; a question that is no longer the same stops the run and names the field.

On disk: `manifest.json` (what run this is) and `segment-NNNNN.bin`, a new one for each opening.
Records are those of `durable`. Killing the writer tears at most the last record of a segment;
that one is dropped. Damage anywhere else is an error and nothing is overwritten.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from alignuser_jax.durable.answers import (
    Answer,
    Question,
    decode_answer,
    encode_answer,
    field_hashes,
    pack,
    unpack,
)
from alignuser_jax.durable.frames import framed, lock_for_writing, records_in, sync_folder
from alignuser_jax.durable.whole import JournalError, refuse_other, write_whole

JOURNAL_VERSION = 1


class Asked(NamedTuple):
    """Who asked: `sequence` counts a session's questions from 0."""

    arm: str
    user_id: str
    session: int
    sequence: int


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
        lock_for_writing(lock, folder)
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
            refuse_other(json.loads(path.read_text()), given, self.folder)
            return
        if self._segments():
            raise JournalError(
                f"{self.folder} has journal segments but no manifest.json, so it is not known "
                "which run they belong to; use another run folder"
            )
        write_whole(path, json.dumps(given, indent=2, sort_keys=True) + "\n")

    def _segments(self) -> list[Path]:
        return sorted(self.folder.glob("segment-*.bin"))

    def _read_segments(self) -> None:
        for path in self._segments():
            data = path.read_bytes()
            whole = 0
            for whole, payload in records_in(data, path):  # noqa: B007
                arm, user_id, session, sequence, hashes, answer = unpack(payload)
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
        payload = pack([*asked, field_hashes(question), encoded])
        if self._file is None:
            self._file = self._next_segment().open("xb")
            sync_folder(self.folder)
        self._file.write(framed(payload))
        return decode_answer(unpack(pack(encoded)))

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
