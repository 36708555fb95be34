"""Check the header of a GGUF file before anything is allocated by what it says.

The header is a list of sizes that the file itself states. The `gguf` package believes them; a
broken or hostile file can state terabytes. So this module walks the header first, by the
specification (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), and refuses whatever
does not fit into the file.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MOST_KEYS = 10_000
MOST_TENSORS = 100_000
MOST_ENTRIES = 4_000_000
"""Elements of an array; the largest vocabularies have some 300,000 tokens."""
LONGEST_TEXT = 8 << 20
"""Bytes of a string; the longest chat templates have some 30,000."""
MOST_DIMENSIONS = 4

_SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Metadata type to bytes: integers of 8 to 64 bits, floats and booleans."""
_STRING, _ARRAY = 8, 9


class GgufError(ValueError):
    """The file is no GGUF file that can be read; the message says where and why."""


@dataclass(frozen=True)
class TensorInfo:
    """A tensor as the header states it.

    Attributes:
        name: Its name, such as "blk.0.attn_q.weight".
        shape: Sizes, the contiguous dimension first (as the format has them).
        type_id: Number of the quantization type.
        offset: Bytes from the start of the tensor data.
    """

    name: str
    shape: tuple[int, ...]
    type_id: int
    offset: int


def check_header(path: Path) -> list[TensorInfo]:
    """Walk the header of one file and return the tensors that it lists.

    Raises:
        FileNotFoundError: If there is no such file.
        GgufError: If the file is not GGUF of version 2 or 3, or states sizes that do not fit.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no GGUF file {path}")
    size = path.stat().st_size
    if size < 24:
        raise GgufError(f"{path} has {size} bytes: too short for a GGUF file")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return _Walk(path, data).header()


class _Walk:
    """A place in the header, which never leaves the file."""

    def __init__(self, path: Path, data: mmap.mmap):
        self.path, self.data, self.at = path, data, 0

    def wrong(self, what: str) -> GgufError:
        return GgufError(f"{self.path}: {what} (at byte {self.at})")

    def take(self, count: int) -> bytes:
        """The next bytes; refuses to leave the file."""
        if count > len(self.data) - self.at:
            raise self.wrong(f"the header asks for {count:,} bytes and the file ends before")
        piece = self.data[self.at : self.at + count]
        self.at += count
        return piece

    def skip(self, count: int) -> None:
        if count > len(self.data) - self.at:
            raise self.wrong(f"the header asks for {count:,} bytes and the file ends before")
        self.at += count

    def number(self, layout: str) -> int:
        return struct.unpack("<" + layout, self.take(struct.calcsize(layout)))[0]

    def text(self) -> bytes:
        length = self.number("Q")
        if length > LONGEST_TEXT:
            raise self.wrong(f"a text of {length:,} bytes: at most {LONGEST_TEXT:,} are read")
        return self.take(length)

    def name(self, what: str) -> str:
        raw = self.text()
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise self.wrong(f"the name of a {what} is not UTF-8: {raw[:40]!r}") from error

    def header(self) -> list[TensorInfo]:
        if (magic := self.take(4)) != MAGIC:
            raise self.wrong(f"no GGUF file: it begins with {magic!r}, expected {MAGIC!r}")
        version = self.number("I")
        if version not in VERSIONS:
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
            kind = "big-endian" if swapped in VERSIONS else f"version {version}"
            raise self.wrong(f"GGUF of {kind}: version 2 and 3, little-endian, are read")
        tensors, keys = self.number("Q"), self.number("Q")
        if tensors > MOST_TENSORS or keys > MOST_KEYS:
            raise self.wrong(
                f"the header states {tensors:,} tensors and {keys:,} keys: at most "
                f"{MOST_TENSORS:,} and {MOST_KEYS:,} are read"
            )
        keys_so_far: set[str] = set()
        for _ in range(keys):
            key = self.name("key")
            if key in keys_so_far:
                raise self.wrong(f"the key {key!r} stands there twice")
            keys_so_far.add(key)
            self.value(key)
        return [self.tensor() for _ in range(tensors)]

    def value(self, key: str) -> None:
        kind = self.number("I")
        if kind in _SCALAR_BYTES:
            self.skip(_SCALAR_BYTES[kind])
        elif kind == _STRING:
            self.text()
        elif kind == _ARRAY:
            self.array(key)
        else:
            raise self.wrong(f"the key {key!r} has the unknown type {kind}")

    def array(self, key: str) -> None:
        kind, length = self.number("I"), self.number("Q")
        if length > MOST_ENTRIES:
            raise self.wrong(
                f"the key {key!r} has {length:,} entries: at most {MOST_ENTRIES:,} are read"
            )
        if kind in _SCALAR_BYTES:
            self.skip(length * _SCALAR_BYTES[kind])
        elif kind == _STRING:
            for _ in range(length):
                self.text()
        else:
            raise self.wrong(f"the key {key!r} is an array of the unread type {kind}")

    def tensor(self) -> TensorInfo:
        name = self.name("tensor")
        dimensions = self.number("I")
        if not 1 <= dimensions <= MOST_DIMENSIONS:
            raise self.wrong(
                f"the tensor {name!r} has {dimensions} dimensions: 1 to {MOST_DIMENSIONS} "
                "are read"
            )
        shape = tuple(self.number("Q") for _ in range(dimensions))
        type_id, offset = self.number("I"), self.number("Q")
        return TensorInfo(name, shape, type_id, offset)
