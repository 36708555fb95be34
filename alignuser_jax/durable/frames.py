"""Write and read framed records, of which a kill of the writer tears at most the last.

A record is a 12-byte header (payload length, CRC-32 of that length, CRC-32 of the payload, all
little-endian uint32) and a msgpack payload. The journal of a run and the recordings of models
are files of such records.
"""

from __future__ import annotations

import fcntl
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from alignuser_jax.durable.whole import JournalError

_HEADER = struct.Struct("<III")
_LENGTH = struct.Struct("<I")


def lock_for_writing(file: IO, name: str | Path) -> None:
    """Lock an open file, so that only one process writes it.

    Raises:
        JournalError: Another process holds the lock; `file` is closed then.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise JournalError(
            f"{name} is being written by another process; wait for it or use another name"
        ) from error


def framed(payload: bytes) -> bytes:
    """Return the payload with its header, as it is on disk."""
    length = _LENGTH.pack(len(payload))
    return _HEADER.pack(len(payload), zlib.crc32(length), zlib.crc32(payload)) + payload


def sync_folder(folder: Path) -> None:
    """Write a folder's entries to the disk, so that a new file in it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def records_in(data: bytes, path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield (end offset, payload) of each whole record, up to a torn last one.

    Args:
        data: The bytes of a file.
        path: Its name, for messages.

    Raises:
        JournalError: A record before the last one is damaged.
    """
    start = 0
    while start < len(data):
        header = data[start : start + _HEADER.size]
        if len(header) < _HEADER.size:
            return
        if not any(header) and not any(memoryview(data)[start:]):
            return  # the file was extended, and a power cut came before the data
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
