"""The journal of a run: one checksummed record per answered question, to resume from.

A record holds who asked (arm, user, session, sequence), a short hash of every field of the
question, and the answer. It is on disk before the answer reaches the agent, so everything that
an agent has ever seen can be sent to it again. Resuming makes the agents anew and sends them
their recorded answers; if a question is no longer the same, the run stops and names the field
that differs.

On disk there are `manifest.json` (which run this is) and `segment-NNNNN.bin`, a new one for
each opening, of records as `durable.frames` writes them. Killing the writer tears at most the
last record of a segment, and that record is dropped. Damage anywhere else is an error, and
nothing is overwritten.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

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
from alignuser_jax.durable.whole import (
    SOFTWARE,
    WRITTEN_BY,
    JournalError,
    refuse_other,
    write_whole,
)

JOURNAL_VERSION = 1
"""The version of the record layout; it is part of the manifest."""


class QuestionId(NamedTuple):
    """Identifies a question in a journal.

    Attributes:
        arm: Which recommender is simulated, or the task.
        user_id: Who asked.
        session: The number of the user's session.
        sequence: The number of the question in its session, from 0.
    """

    arm: str
    user_id: str
    session: int
    sequence: int


class Journal:
    """The open journal of one run in one folder. Make it with `Journal.open`.

    Attributes:
        folder: Where it is.
        recovered: How many answers were recorded when it was opened.
        dropped_bytes: How many bytes of torn records were dropped when it was opened.

    Example:
        >>> from alignuser_jax.records import Message, Request
        >>> question = Request((Message.of("user", "Rate 1."),), "rate")
        >>> asker = QuestionId("arm a", "u1", 0, 0)
        >>> with Journal.open("runs/a/journal", {"seed": 0}) as journal:
        ...     answer = journal.recorded(asker, question)
        ...     if answer is None:
        ...         answer = journal.append(asker, question, "RATING: 4")
        ...         journal.flush()
    """

    def __init__(self, folder: Path, lock: IO[str], segment_bytes: int):
        self.folder = folder
        self.recovered = 0
        self.dropped_bytes = 0
        self._lock = lock
        self._segment_bytes = segment_bytes
        self._recorded: dict[QuestionId, tuple[dict[str, bytes], Any]] = {}
        self._file: IO[bytes] | None = None

    @classmethod
    def open(
        cls, folder: str | Path, manifest: Mapping[str, Any], *, segment_bytes: int = 64 << 20
    ) -> Journal:
        """Open the journal of a run, or start it if there is none.

        Args:
            folder: Where the journal is.
            manifest: Which run it is, as plain JSON values: engine geometry, seed, hashes of
                configuration and data, policy id.
            segment_bytes: The size from which on a new segment is begun.

        Raises:
            JournalError: The folder holds another run (the message names what differs), is open
                in another process, or is damaged before its last record.
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
        plain = json.loads(
            json.dumps({"journal_version": JOURNAL_VERSION, WRITTEN_BY: SOFTWARE, **manifest})
        )
        path = self.folder / "manifest.json"
        if path.exists():
            refuse_other(json.loads(path.read_text()), plain, self.folder)
            return
        if self._segments():
            raise JournalError(
                f"{self.folder} has journal segments but no manifest.json, so it is unknown to "
                "which run they belong; use another run folder"
            )
        write_whole(path, json.dumps(plain, indent=2, sort_keys=True) + "\n")

    def _segments(self) -> list[Path]:
        return sorted(self.folder.glob("segment-*.bin"))

    def _read_segments(self) -> None:
        for path in self._segments():
            data = path.read_bytes()
            whole = 0
            for whole, payload in records_in(data, path):  # noqa: B007
                arm, user_id, session, sequence, hashes, answer = unpack(payload)
                asker = QuestionId(arm, user_id, session, sequence)
                if asker in self._recorded:
                    raise JournalError(f"{path} is damaged: a second answer to {asker}")
                self._recorded[asker] = (hashes, answer)
            self.dropped_bytes += len(data) - whole
        self.recovered = len(self._recorded)

    def recorded(self, asker: QuestionId, question: Question) -> Answer | None:
        """Return the recorded answer, `None` if there is none; each is returned only once.

        Raises:
            JournalError: The recorded question was another one.
        """
        record = self._recorded.get(asker)
        if record is None:
            return None
        hashes, answer = record
        now = field_hashes(question)
        if hashes != now:
            differing = sorted(
                name for name in hashes.keys() | now.keys() if hashes.get(name) != now.get(name)
            )
            raise JournalError(
                f"{self.folder}: question {asker.sequence} of session {asker.session} of user "
                f"{asker.user_id!r} in arm {asker.arm!r} is not the recorded one: "
                f"{', '.join(differing)} differ. Code, configuration or data changed since "
                "the run began; resume with the old ones or use another run folder"
            )
        del self._recorded[asker]
        return decode_answer(answer)

    def append(self, asker: QuestionId, question: Question, answer: Answer) -> Answer:
        """Add a record, and return the answer as a resumed run will read it.

        The answer may only be used after the next `flush`.
        """
        encoded = encode_answer(answer)
        payload = pack([*asker, field_hashes(question), encoded])
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
        """Write everything appended so far to the disk."""
        if self._file is None:
            return
        self._file.flush()
        os.fsync(self._file.fileno())
        if self._file.tell() >= self._segment_bytes:
            self._file.close()
            self._file = None

    def close(self) -> None:
        """Flush, and let other processes open the journal."""
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
