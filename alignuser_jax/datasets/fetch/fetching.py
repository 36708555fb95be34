"""Fetch one file from a web server: resumable, checked, and safe against a changed file.

What has arrived is in NAME.part, and what the server said of it in NAME.part.json. The file
gets its own name only when it is complete and its checksum, if one is known, is right.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

ATTEMPTS = 5
"""Failures in a row, without a new byte, after which a download stops."""
RESTARTS = 3
"""How often a download may start again because the server sends another file."""
OVERLAP_BYTES = 1 << 16
"""Bytes that a resume reads again and compares, to notice another file even without an ETag."""
TIMEOUT_SECONDS = 60.0
"""Longest silence of a server."""
MAX_WAIT_SECONDS = 60.0
"""Longest wait before another attempt, whatever the server asks for."""
_CHUNK_BYTES = 1 << 18


class DownloadFailed(ConnectionError):
    """The file did not arrive; the same call goes on where it stopped."""


class _Retry(Exception):
    """This attempt failed; the server may have asked to wait `wait_seconds`."""

    def __init__(self, reason: str, wait_seconds: float | None = None) -> None:
        super().__init__(reason)
        self.wait_seconds = wait_seconds

    def wait(self, failures: int) -> float:
        """Return the seconds until the next attempt: the server's, or doubled each failure."""
        wait = 2.0**failures if self.wait_seconds is None else self.wait_seconds
        return min(wait, MAX_WAIT_SECONDS)


class _AnotherFile(Exception):
    """What arrives does not continue what has been fetched."""


@dataclass(frozen=True)
class Fetched:
    """A file that has arrived.

    Attributes:
        path: Where it is.
        bytes: Its size.
        sha256: Its checksum.
        checked: What it was checked against: "md5" (the publisher's), "size" (the server's
            Content-Length), or "nothing" if the server gave no length either.
    """

    path: Path
    bytes: int
    sha256: str
    checked: str


@dataclass
class _State:
    """What the server said of the file that the part belongs to."""

    url: str
    etag: str = ""
    last_modified: str = ""
    total: int | None = None


def fetch(
    url: str,
    path: Path,
    *,
    md5: str = "",
    quiet: bool = False,
    sleep: Callable[[float], None] = time.sleep,
) -> Fetched:
    """Fetch the file at `url` into `path`, going on with what an earlier call left.

    Args:
        url: An http or https URL.
        path: Where the file will be.
        md5: The publisher's MD5; "" if none is known.
        quiet: Whether to show no progress bar.
        sleep: Waits for so many seconds between attempts; tests replace it.

    Raises:
        DownloadFailed: If the file does not arrive; what did is kept.
        FileNotFoundError: If the server answers 404 or 410.
        PermissionError: If the server answers 401 or 403.
        ValueError: If `url` is no http or https URL, or the MD5 is not `md5`; the file is
            removed then.
    """
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"cannot download {url}: expected an http:// or https:// URL")
    part = path.with_name(path.name + ".part")
    state_file = path.with_name(path.name + ".part.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file():
        return _checked(path, path, url, md5, None)
    failures = restarts = 0
    while True:
        before = part.stat().st_size if part.is_file() else 0
        try:
            total = _attempt(url, part, state_file, path.name, quiet)
            break
        except _AnotherFile as error:
            restarts += 1
            part.unlink(missing_ok=True)
            state_file.unlink(missing_ok=True)
            if restarts > RESTARTS:
                raise DownloadFailed(
                    f"{url}: the server sends another file each time ({error}): try later, or "
                    "another --url"
                ) from error
        except _Retry as error:
            arrived = part.stat().st_size if part.is_file() else 0
            failures = 0 if arrived > before else failures + 1
            if failures >= ATTEMPTS:
                kept = f"; {arrived:,} bytes are kept" if arrived else ""
                raise DownloadFailed(
                    f"{url}: {error}{kept}: run the same command again to go on, or give "
                    "another --url"
                ) from error
            sleep(error.wait(failures))
    fetched = _checked(part, path, url, md5, total)
    part.rename(path)
    state_file.unlink(missing_ok=True)
    return fetched


def _checked(part: Path, path: Path, url: str, md5: str, total: int | None) -> Fetched:
    digests = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with part.open("rb") as file:
        while data := file.read(_CHUNK_BYTES):
            for digest in digests:
                digest.update(data)
    size, (sha256, own_md5) = part.stat().st_size, (d.hexdigest() for d in digests)
    if md5 and own_md5 != md5.lower():
        part.unlink()
        raise ValueError(
            f"{url}: the file that arrived ({size:,} bytes) has the MD5 {own_md5}, its "
            f"publisher says {md5}: it was removed; run again, or check the --url"
        )
    checked = "md5" if md5 else "nothing" if total is None else "size"
    return Fetched(path, size, sha256, checked)


def _attempt(url: str, part: Path, state_file: Path, name: str, quiet: bool) -> int | None:
    """Read until the file is complete; return its length if the server gave one."""
    state, have = _resumable(url, part, state_file), 0
    if state is not None:
        have = part.stat().st_size
        if have == state.total:
            return have
    start = max(have - OVERLAP_BYTES, 0)
    headers = {"User-Agent": "alignuser-jax", "Accept-Encoding": "identity"}
    if state is not None and have:
        headers["Range"] = f"bytes={start}-"
        strong = state.etag if not state.etag.startswith("W/") else ""
        if validator := strong or state.last_modified:
            headers["If-Range"] = validator
    try:
        answer = urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=TIMEOUT_SECONDS
        )
    except urllib.error.HTTPError as error:
        raise _refused(error, url, have) from error
    except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
        raise _Retry(f"cannot be reached ({_reason(error)})") from error
    with answer:
        resumed = state is not None and have > 0 and answer.status == 206
        total = _total(answer, start) if resumed else _length(answer)
        now = _State(
            url,
            answer.headers.get("ETag", ""),
            answer.headers.get("Last-Modified", ""),
            total,
        )
        if answer.status == 206 and not resumed:
            raise _Retry("answers with another part of the file than requested")
        if state is not None and resumed:
            _same_file(state, now)
        else:  # the server ignores ranges, or its file is a new one
            start = have = 0
            state_file.write_text(json.dumps(asdict(now)))
            part.write_bytes(b"")
        with part.open("r+b") as out:
            if have:
                _compare(answer, out, start, have)
            _copy(answer, out, have, total, name, quiet)
    return total


def _resumable(url: str, part: Path, state_file: Path) -> _State | None:
    """Return what the server said of the part, or `None` if there is none to go on with."""
    try:
        state = _State(**json.loads(state_file.read_text()))
    except (OSError, ValueError, TypeError):
        return None
    if state.url != url or not part.is_file() or not part.stat().st_size:
        return None
    if state.total is not None and part.stat().st_size > state.total:
        return None
    return state


def _refused(error: urllib.error.HTTPError, url: str, have: int) -> Exception:
    status = error.code
    if status in (404, 410):
        return FileNotFoundError(f"{url}: {status}, there is no such file; give another --url")
    if status in (401, 403):
        return PermissionError(f"{url}: {status}, the server refuses it; give another --url")
    if status == 416 and have:
        return _AnotherFile("it is shorter than what has arrived")
    if status == 429 or status >= 500:
        after = error.headers.get("Retry-After", "")
        return _Retry(f"answers {status}", float(after) if after.isdecimal() else None)
    return DownloadFailed(f"{url}: answers {status} {error.reason}; give another --url")


def _reason(error: Exception) -> str:
    return str(getattr(error, "reason", "") or error) or type(error).__name__


def _length(answer: http.client.HTTPResponse) -> int | None:
    length = answer.headers.get("Content-Length", "")
    return int(length) if length.isdecimal() else None


def _total(answer: http.client.HTTPResponse, start: int) -> int | None:
    """Return the whole file's length from `Content-Range: bytes START-END/TOTAL`."""
    content = answer.headers.get("Content-Range", "")
    first, _, total = content.removeprefix("bytes ").partition("/")
    if first.partition("-")[0] != str(start):
        raise _AnotherFile(f"a request for bytes from {start} is answered by {content!r}")
    return int(total) if total.isdecimal() else None


def _same_file(then: _State, now: _State) -> None:
    for name in ("etag", "last_modified", "total"):
        old, new = getattr(then, name), getattr(now, name)
        if old and new and old != new:
            raise _AnotherFile(f"its {name} was {old}, now {new}")


def _compare(answer: http.client.HTTPResponse, out: BinaryIO, start: int, have: int) -> None:
    """Compare the bytes from `start` to `have` with those that the server sends again."""
    out.seek(start)
    old, new = out.read(have - start), b""
    while len(new) < len(old) and (data := _read(answer, len(old) - len(new))):
        new += data
    if not old.startswith(new):
        raise _AnotherFile("its bytes differ")
    if len(new) < len(old):
        raise _Retry("breaks off")
    out.seek(have)


def _copy(
    answer: http.client.HTTPResponse,
    out: BinaryIO,
    have: int,
    total: int | None,
    name: str,
    quiet: bool,
) -> None:
    bar = tqdm(
        total=total,
        initial=have,
        desc=name,
        unit="B",
        unit_scale=True,
        disable=True if quiet else None,  # None: shown on a terminal only
    )
    with bar:
        while data := _read(answer, _CHUNK_BYTES):
            out.write(data)
            have += len(data)
            bar.update(len(data))
    if total is not None and have != total:
        raise _Retry(f"breaks off after {have:,} of {total:,} bytes")


def _read(answer: http.client.HTTPResponse, size: int) -> bytes:
    try:
        return answer.read(size)
    except http.client.IncompleteRead as error:
        if error.partial:
            return error.partial
        raise _Retry("breaks off") from error
    except (OSError, http.client.HTTPException) as error:
        raise _Retry(f"breaks off ({_reason(error)})") from error
