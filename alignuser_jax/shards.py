"""Write and read shards: training examples as versioned msgpack in ArrayRecord files.

A shard directory holds `TASK-00000-of-00002.arrayrecord` files and one `manifest.json`, which
is written last: a directory without it is an interrupted write and is refused. Shards hold text
spans, not token ids, so that any backbone can train on them.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import json
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import msgpack
from array_record.python import array_record_module

from alignuser_jax.durable.whole import write_whole
from alignuser_jax.language.prompts import PROMPT_LAYOUT_VERSION
from alignuser_jax.records import Example, Message, Span

RECORD_VERSION = 1
"""Version of the msgpack layout of one example; another version is refused."""

MANIFEST = "manifest.json"

REQUIRED_ENTRIES = ("dataset_hash", "policy_id")
"""What whoever writes shards must say about them."""

_TRAINED, _ACTION = 1, 2


class ShardError(ValueError):
    """Shards that cannot be written or read as asked; the message says what to do."""


def encode_example(example: Example) -> bytes:
    """Return an example as msgpack.

    The layout is `[version, task, id, user, [[role, [[text, flags], ...]], ...]]`.
    """
    messages = [
        [m.role, [[s.text, _TRAINED * s.trained | _ACTION * s.action] for s in m.spans]]
        for m in example.messages
    ]
    return msgpack.packb(
        [RECORD_VERSION, example.task, example.example_id, example.user_id, messages]
    )


def decode_example(record: bytes) -> Example:
    """Return the example in a record of `encode_example`.

    Raises:
        ShardError: If the record is of another version, or no example.
    """
    try:
        version, *rest = msgpack.unpackb(record)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise ShardError(
            f"a record of {len(record)} bytes is not an example ({error}): the shard is damaged"
            " or was not written by write_shards; build the shards again"
        ) from error
    _check_version("record version", version, RECORD_VERSION, "a record")
    task, example_id, user_id, messages = rest
    return Example(
        task=task,
        messages=tuple(
            Message(
                role,
                tuple(
                    Span(text, bool(flags & _TRAINED), bool(flags & _ACTION))
                    for text, flags in spans
                ),
            )
            for role, spans in messages
        ),
        example_id=example_id,
        user_id=user_id,
    )


def write_shards(
    examples: Iterable[Example],
    directory: str | os.PathLike[str],
    *,
    manifest: dict[str, Any],
    shard_size: int = 20_000,
) -> dict[str, Any]:
    """Write examples, in their order within each task, and return the finished manifest.

    Files get their names when all are written, the manifest last. Earlier shards of the same
    directory are replaced.

    Args:
        examples: The examples.
        directory: The shard directory.
        manifest: Entries to keep; must name `dataset_hash` and `policy_id`. Added are
            `record_version`, `prompt_layout_version` and, per task, its `count`, `files` and
            the `hash` of its records.
        shard_size: Examples in one file, at most.

    Raises:
        ShardError: If an example has no trained span or repeats an id; the directory stays as
            it was.

    Example:
        >>> write_shards(examples, "shards", manifest={"dataset_hash": "d", "policy_id": "p"})
        >>> len(list(read_examples("shards", "reflection")))
    """
    missing = [name for name in REQUIRED_ENTRIES if name not in manifest]
    if missing:
        raise ShardError(f"the manifest lacks {missing}: pass them in `manifest`")
    if shard_size < 1:
        raise ShardError(f"shard_size is {shard_size}: expected 1 or more")
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    for unfinished in directory.glob("*.arrayrecord.tmp"):
        unfinished.unlink()
    open_shards: dict[str, _TaskWriter] = {}
    ids: set[str] = set()
    try:
        for example in examples:
            _check_example(example, ids)
            if example.task not in open_shards:
                open_shards[example.task] = _TaskWriter(directory, example.task, shard_size)
            open_shards[example.task].write(encode_example(example))
    except BaseException:
        for writer in open_shards.values():
            writer.discard()
        raise
    (directory / MANIFEST).unlink(missing_ok=True)
    for earlier in directory.glob("*.arrayrecord"):
        earlier.unlink()
    finished = {
        **manifest,
        "record_version": RECORD_VERSION,
        "prompt_layout_version": PROMPT_LAYOUT_VERSION,
        "tasks": {task: open_shards[task].finish() for task in sorted(open_shards)},
    }
    write_whole(directory / MANIFEST, json.dumps(finished, indent=1, sort_keys=True) + "\n")
    return finished


def read_manifest(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the manifest of a shard directory, checked.

    Raises:
        ShardError: If shards are missing, or of another record or prompt-layout version.
    """
    directory = Path(directory)
    path = directory / MANIFEST
    if not path.is_file():
        raise ShardError(
            f"{directory} has no {MANIFEST}: not a shard directory, or its writing was"
            " interrupted; build the shards again"
        )
    manifest = json.loads(path.read_text())
    _check_version(
        "record version", manifest.get("record_version"), RECORD_VERSION, str(directory)
    )
    _check_version(
        "prompt-layout version",
        manifest.get("prompt_layout_version"),
        PROMPT_LAYOUT_VERSION,
        str(directory),
    )
    for task, entry in manifest["tasks"].items():
        for name in entry["files"]:
            if not (directory / name).is_file():
                raise ShardError(
                    f"{directory} lacks {name}, which its manifest lists for task {task!r}:"
                    " copy the directory whole or build the shards again"
                )
    return manifest


def manifest_hash(manifest: Mapping[str, Any]) -> str:
    """Return a hash of all that the manifest says, of the records too (by their hashes)."""
    text = json.dumps(dict(manifest), sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def task_files(directory: str | os.PathLike[str], task: str) -> list[str]:
    """Return the paths of one task's files, in order.

    Raises:
        ShardError: If there is no such task.
    """
    tasks = read_manifest(directory)["tasks"]
    if task not in tasks:
        raise ShardError(f"{directory} has no task {task!r}; it has {sorted(tasks)}")
    return [str(Path(directory) / name) for name in tasks[task]["files"]]


class TaskRecords(Sequence[bytes]):
    """The records of one task by number, over its files; many threads may read at once.

    It is a random-access source for Grain, which asks for `len(records)` and `records[number]`.

    Raises:
        ShardError: If a file is truncated or damaged, or the files hold another number of
            records than the manifest says; names the file.
    """

    def __init__(self, directory: str | os.PathLike[str], task: str):
        """Open the files of `task` in a shard directory."""
        self._paths = task_files(directory, task)
        self._task = task
        readers = [self._reader(path) for path in self._paths]
        self._ends = list(itertools.accumulate(count for _, count in readers))
        self._readers = [reader for reader, _ in readers]
        self._lock = threading.Lock()
        expected = read_manifest(directory)["tasks"][task]["count"]
        if len(self) != expected:
            raise ShardError(
                f"the files of task {task!r} in {directory} hold {len(self)} records, their"
                f" manifest says {expected}: copy the directory whole or build the shards again"
            )

    def _reader(self, path: str) -> tuple[Any, int]:
        try:
            reader = array_record_module.ArrayRecordReader(path)
            count = reader.num_records()
        except Exception as error:  # what a damaged file raises is not documented
            raise self._damaged(path, str(error)) from error
        if not count:  # no file is written without records
            raise self._damaged(path, "it has no index of records")
        return reader, count

    def _damaged(self, path: str, what: str) -> ShardError:
        return ShardError(
            f"{path} (task {self._task!r}) cannot be read: {what.strip()[:300]}; it is"
            " truncated or damaged: copy it again or build the shards again"
        )

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, number: int) -> bytes: ...

    @overload
    def __getitem__(self, number: slice) -> list[bytes]: ...

    def __getitem__(self, number: int | slice) -> bytes | list[bytes]:
        if isinstance(number, slice):
            return [self[n] for n in range(*number.indices(len(self)))]
        if not 0 <= number < len(self):
            raise IndexError(f"record {number} of {len(self)}")
        file = bisect.bisect_right(self._ends, number)
        begin = self._ends[file - 1] if file else 0
        try:
            with self._lock:
                (record,) = self._readers[file].read([number - begin])
        except Exception as error:
            raise self._damaged(
                self._paths[file], f"record {number - begin}: {error}"
            ) from error
        return record


def read_examples(
    directory: str | os.PathLike[str], task: str | None = None
) -> Iterator[Example]:
    """Yield the examples of one task, or of all tasks by name, in the order of writing."""
    tasks = [task] if task is not None else sorted(read_manifest(directory)["tasks"])
    for name in tasks:
        for record in TaskRecords(directory, name):
            yield decode_example(record)


class _TaskWriter:
    """The growing files of one task, under temporary names until `finish`."""

    def __init__(self, directory: Path, task: str, shard_size: int):
        self.directory, self.task, self.shard_size = directory, task, shard_size
        self.paths: list[Path] = []
        self.count = 0
        self.digest = hashlib.blake2b(digest_size=16)
        self.writer: Any = None

    def write(self, record: bytes) -> None:
        if self.count % self.shard_size == 0:
            self._close()
            self.paths.append(
                self.directory / f"{self.task}-{len(self.paths):05d}.arrayrecord.tmp"
            )
            # One record a group: training reads single records in random order.
            self.writer = array_record_module.ArrayRecordWriter(
                str(self.paths[-1]), "group_size:1"
            )
        self.writer.write(record)
        self.digest.update(len(record).to_bytes(8, "big") + record)
        self.count += 1

    def _close(self) -> None:
        if self.writer is not None:
            self.writer.close()
            self.writer = None

    def finish(self) -> dict[str, Any]:
        self._close()
        names = []
        for number, path in enumerate(self.paths):
            names.append(f"{self.task}-{number:05d}-of-{len(self.paths):05d}.arrayrecord")
            path.replace(self.directory / names[-1])
        return {"count": self.count, "files": names, "hash": self.digest.hexdigest()}

    def discard(self) -> None:
        self._close()
        for path in self.paths:
            path.unlink(missing_ok=True)


def _check_example(example: Example, ids: set[str]) -> None:
    where = f"example {example.example_id!r} of task {example.task!r}"
    if not example.task.replace("_", "").isalnum():
        raise ShardError(f"{where}: a task name is letters, digits and underscores")
    if example.example_id in ids:
        raise ShardError(f"{where}: another example has this id; give every example its own")
    ids.add(example.example_id)
    if not any(span.trained and span.text for m in example.messages for span in m.spans):
        raise ShardError(f"{where} has no trained span: it would teach nothing; leave it out")


def _check_version(what: str, version: object, expected: int, where: str) -> None:
    if version != expected:
        raise ShardError(
            f"{where} has {what} {version!r}, this code reads {expected}: build the shards"
            " again with this version of alignuser_jax, or use the version that wrote them"
        )
