"""Unpack archives that are not trusted: nothing outside the folder, no links, no more bytes.

Every name and size is checked before the first byte is written, what is written is counted
again, and the folder appears as a whole or not at all.
"""

from __future__ import annotations

import gzip
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, cast

from alignuser_jax.durable.whole import replacing

MAX_FILES = 10_000
"""An archive with more files is refused."""
_CHUNK_BYTES = 1 << 20
_MAX_HEADER_BYTES = 1 << 20


class HostileArchive(ValueError):
    """An archive is damaged, or would write outside its folder or more than it may."""


@dataclass(frozen=True)
class _Member:
    """One file of an archive."""

    path: PurePosixPath
    size_bytes: int
    open: Callable[[], IO[bytes]]


def unpack_archive(
    archive: Path, folder: Path, *, max_bytes: int, max_files: int = MAX_FILES
) -> Path:
    """Unpack a .zip, .tar or .tar.gz into a new folder, and return the folder.

    If all files are in one top folder, that folder becomes `folder`.

    Args:
        archive: The archive.
        folder: The folder to make.
        max_bytes: Most bytes that all files may have together.
        max_files: Most files.

    Raises:
        FileExistsError: If `folder` exists.
        HostileArchive: If the archive is damaged or holds an absolute path, `..`, a backslash,
            a drive name, a link, a device, an encrypted file, the same path twice, a file that
            is also another file's folder, or too many files or bytes. Nothing is written then.
    """
    if folder.exists():
        raise FileExistsError(f"{folder} exists: move it away to unpack {archive}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        if zipfile.is_zipfile(archive):
            _write(_zip_members, archive, work / "new", max_bytes, max_files)
        elif ".tar" in archive.suffixes or archive.suffix == ".tgz":
            _write(_tar_members, archive, work / "new", max_bytes, max_files)
        else:
            raise HostileArchive(
                f"{archive} is no zip file, and its name does not end in .tar, .tar.gz or .tgz"
            )
        top = list((work / "new").iterdir())
        only = top[0] if len(top) == 1 and top[0].is_dir() else work / "new"
        only.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder


def gunzip(archive: Path, file: Path, *, max_bytes: int) -> Path:
    """Write the content of a .gz file to `file` as a whole, or not at all.

    Raises:
        HostileArchive: If the archive is damaged or holds more than `max_bytes`.
    """
    with replacing(file) as part, part.open("wb") as out:
        for data in _gzip_chunks(archive, max_bytes):
            out.write(data)
    return file


def check_gzip(archive: Path, *, max_bytes: int) -> int:
    """Check a .gz file against its own checksums, and return the number of bytes in it.

    Raises:
        HostileArchive: If the archive is damaged or holds more than `max_bytes`.
    """
    return sum(len(data) for data in _gzip_chunks(archive, max_bytes))


def _gzip_chunks(archive: Path, max_bytes: int) -> Iterator[bytes]:
    seen = 0
    try:
        with gzip.open(archive) as file:
            while data := file.read(_CHUNK_BYTES):
                seen += len(data)
                if seen > max_bytes:
                    raise _too_much(archive, max_bytes)
                yield data
    except (OSError, EOFError, zlib.error) as error:
        raise HostileArchive(f"{archive} is not a complete gzip file: {error}") from error


def _too_much(archive: Path, max_bytes: int) -> HostileArchive:
    return HostileArchive(
        f"{archive} holds more than the {max_bytes:,} bytes expected of it: not unpacked"
    )


_Members = Callable[[Path, int, int], AbstractContextManager[list[_Member]]]


def _write(
    open_members: _Members, archive: Path, folder: Path, max_bytes: int, max_files: int
) -> None:
    """Write all files of an archive below `folder`, after all of them were checked."""
    try:
        with open_members(archive, max_bytes, max_files) as members:
            written = 0
            for member in _checked(members, archive, max_bytes):
                target = folder.joinpath(*member.path.parts)
                target.parent.mkdir(parents=True, exist_ok=True)
                with member.open() as source, target.open("xb") as out:
                    while data := source.read(_CHUNK_BYTES):
                        written += len(data)
                        if written > max_bytes:
                            raise _too_much(archive, max_bytes)
                        out.write(data)
                if target.stat().st_size != member.size_bytes:
                    raise HostileArchive(f"{archive}: {member.path} is truncated")
    except HostileArchive:
        raise
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error) as error:
        raise HostileArchive(f"{archive} is damaged: {error}") from error
    except (NotImplementedError, RuntimeError, ValueError, gzip.BadGzipFile) as error:
        raise HostileArchive(f"{archive} cannot be unpacked: {error}") from error


def _checked(members: list[_Member], archive: Path, max_bytes: int) -> list[_Member]:
    if not members:
        raise HostileArchive(f"{archive} holds no file")
    if sum(member.size_bytes for member in members) > max_bytes:
        raise _too_much(archive, max_bytes)
    paths = {str(member.path).casefold() for member in members}
    if len(paths) < len(members):
        raise HostileArchive(f"{archive} names a path twice")
    for member in members:
        if paths & {str(parent).casefold() for parent in member.path.parents}:
            raise HostileArchive(f"{archive}: {member.path} is inside what is also a file")
    return members


def _safe(name: str, archive: Path) -> PurePosixPath:
    """Return a member's name as a path, if it stays inside the folder."""
    path = PurePosixPath(name)
    bad = (
        path.is_absolute()
        or ".." in path.parts
        or not path.parts
        or any(c in name for c in "\\\0")
        or (len(name) > 1 and name[1] == ":")
        or any(len(part.encode()) > 255 for part in path.parts)
    )
    if bad:
        raise HostileArchive(
            f"{archive} holds {name[:200]!r}, which does not stay inside its folder: nothing "
            "was unpacked"
        )
    return path


def _refuse_kind(name: str, kind: str, archive: Path) -> HostileArchive:
    return HostileArchive(f"{archive}: {name[:200]!r} is {kind}: nothing was unpacked")


def _too_many(archive: Path, max_files: int) -> HostileArchive:
    return HostileArchive(f"{archive} holds more than {max_files} files: not unpacked")


@contextmanager
def _zip_members(archive: Path, max_bytes: int, max_files: int) -> Iterator[list[_Member]]:
    with zipfile.ZipFile(archive) as file:
        infos, members = file.infolist(), []
        if len(infos) > max_files:
            raise _too_many(archive, max_files)
        for info in infos:
            name = info.orig_filename  # `filename` ends at a zero byte
            path, kind = _safe(name, archive), stat.S_IFMT(info.external_attr >> 16)
            if info.flag_bits & 1:
                raise _refuse_kind(name, "encrypted", archive)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _refuse_kind(name, "a link or a device", archive)
            if not info.is_dir():
                members.append(_Member(path, info.file_size, partial(file.open, info)))
        yield members


@contextmanager
def _tar_members(archive: Path, max_bytes: int, max_files: int) -> Iterator[list[_Member]]:
    most = max_bytes + max_files * 2048  # every file has a header, and padding
    zipped = archive.suffix in (".gz", ".tgz")
    if zipped:
        check_gzip(archive, max_bytes=most)  # tar stops reading before the checksum at the end
    with (
        gzip.open(archive) if zipped else archive.open("rb") as raw,
        tarfile.open(fileobj=_measured(raw, archive, 2 * most), mode="r:") as file,
    ):
        members: list[_Member] = []
        total = 0
        for number, info in enumerate(file):
            if number >= max_files:
                raise _too_many(archive, max_files)
            path = _safe(info.name, archive)
            if not (info.isreg() or info.isdir()) or info.issparse():
                raise _refuse_kind(info.name, "a link, a device or sparse", archive)
            total += info.size
            if total > max_bytes:  # before tar seeks past this file for the next header
                raise _too_much(archive, max_bytes)
            if info.isreg():
                members.append(_Member(path, info.size, partial(_extract, file, info)))
        yield members


def _extract(file: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    stream = file.extractfile(info)
    assert stream is not None  # only regular files are listed
    return stream


def _measured(file: IO[bytes] | gzip.GzipFile, archive: Path, max_bytes: int) -> IO[bytes]:
    return cast(IO[bytes], _Measured(cast(IO[bytes], file), archive, max_bytes))


class _Measured:
    """A file that reads at most `max_bytes` in all, and no header that could fill the memory.

    A tar is read twice: once to list it, and once to unpack it.
    """

    def __init__(self, file: IO[bytes], archive: Path, max_bytes: int) -> None:
        self.file, self.archive, self.left = file, archive, max_bytes

    def read(self, size: int = -1) -> bytes:
        if size < 0 or size > max(_CHUNK_BYTES, _MAX_HEADER_BYTES):
            raise HostileArchive(f"{self.archive} has a header of {size} bytes")
        data = self.file.read(size)
        self.left -= len(data)
        if self.left < 0:
            raise HostileArchive(f"{self.archive} holds more bytes than expected")
        return data

    def seek(self, place: int) -> int:
        return self.file.seek(place)

    def tell(self) -> int:
        return self.file.tell()
