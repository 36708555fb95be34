"""Text tables of any separator as Arrow columns of strings, with the line each row stood on.

The good path is vectorised Arrow reads, of the whole file or block by block; lines that are
truncated, too long or in another encoding are left out and reported by number.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from alignuser_jax.datasets.report import Report

LINE = "line number"
"""The column that tells where a row stood in its file, from 1, a header counted."""
TRUNCATED = "truncated or too long line"
BLOCK_BYTES = 1 << 25
"""What `stream_delimited` reads at a time, before it ends the block at a line's end."""
MAX_LINE_BYTES = 1 << 28
_UNIT = b"\x1f"
_BOM = b"\xef\xbb\xbf"


class InputError(ValueError):
    """A file that cannot be read as asked, whatever is dropped."""


def find_file(directory: Path, name: str) -> Path:
    """The file `name` in `directory`, plain or gzipped."""
    for candidate in (directory / name, directory / f"{name}.gz"):
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(f"no {name} (plain or .gz) in {directory}")


def has_file(directory: Path, name: str) -> bool:
    return (directory / name).is_file() or (directory / f"{name}.gz").is_file()


def read_bytes(path: Path) -> bytes:
    """The content of a plain or gzipped file. Raises `InputError` for an empty or broken one
    and `FileNotFoundError` for a missing one."""
    data = path.read_bytes()
    if path.suffix == ".gz":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(f"{path} is no complete gzip file: {error}") from error
    if not data.removeprefix(_BOM).strip():
        raise _is_empty(path)
    _refuse_utf16(data, path)
    return data


def _is_empty(path: Path) -> InputError:
    return InputError(f"{path} is empty: expected at least one row")


def _refuse_utf16(data: bytes, path: Path) -> None:
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise InputError(f"{path} is UTF-16: expected UTF-8; convert it first")


def _newlines(data: bytes, mixed: bool = False) -> bytes:
    """`data` with `\\n` alone at the ends of lines: a lone `\\r` is one only in a file that has
    no other (an old Mac's); elsewhere (`mixed`: or where `\\n` was before) it is a blank."""
    data = data.replace(b"\r\n", b"\n")
    if b"\r" in data:
        data = data.replace(b"\r", b" " if mixed or b"\n" in data else b"\n")
    return data


def read_blocks(path: Path, block_bytes: int = BLOCK_BYTES) -> Iterator[bytes]:
    """The content of a plain or gzipped file in blocks of whole lines, ended by newlines alone;
    without a byte order mark and without the empty lines at the end of the file.

    Raises `InputError` and `FileNotFoundError` as `read_bytes` does.
    """
    pending, seen, first = b"", False, True
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        while True:
            try:
                data = file.read(max(block_bytes, len(_BOM)))
            except (OSError, EOFError, zlib.error) as error:
                raise InputError(f"{path} is no complete gzip file: {error}") from error
            whole = pending + data
            if not data:
                break
            if first:
                _refuse_utf16(whole, path)
                whole, first = whole.removeprefix(_BOM), False
            # what may be the end of the file waits: a part of a line, empty lines, half a CRLF
            end = len(whole[: whole.rfind(b"\n") + 1].rstrip(b"\r\n"))
            end = whole.find(b"\n", end) + 1 if end else 0
            pending = whole[end:]
            if len(pending) > max(MAX_LINE_BYTES, block_bytes):
                raise InputError(
                    f"{path} has a line of more than {MAX_LINE_BYTES} bytes: expected a text "
                    "table of one row a line"
                )
            if end:
                seen = seen or bool(whole[:end].strip())
                yield _newlines(whole[:end])
    rest = _newlines(whole, seen).rstrip(b"\n")
    if not seen and not rest.strip():
        raise _is_empty(path)
    if rest:
        yield rest + b"\n"


def decode(
    data: bytes,
    encoding: str,
    file: str,
    report: Report,
    first: int = 1,
    attempts: Sequence[str] = ("utf-8",),
) -> tuple[bytes, np.ndarray]:
    """Lines ended by newlines as UTF-8, and the number of each line kept; `data` begins with
    line `first`.

    UTF-8 is tried first whatever `encoding` says: text that is valid UTF-8 is hardly ever
    meant as anything else. Lines in neither encoding are reported. A lone carriage return is
    an old Mac's line end where the text has no other, else a space.
    """
    if b"\r" in data:
        old_mac = first == 1 and data.count(b"\n") == 1
        data = data.replace(b"\r", b"\n" if old_mac else b" ")
    for attempt in (*attempts, encoding):
        try:
            text = data.decode(attempt)
        except UnicodeDecodeError:
            continue
        data = data if attempt == "utf-8" else text.encode("utf-8")
        return data, np.arange(first, first + data.count(b"\n"))
    lines, bad = data.split(b"\n")[:-1], []
    for number, line in enumerate(lines):
        try:
            line.decode(encoding)
        except UnicodeDecodeError:
            bad.append(number)
    report.add(f"not {encoding}", file, [first + number for number in bad])
    left_out = set(bad)
    kept = [line for number, line in enumerate(lines) if number not in left_out]
    numbers = np.delete(np.arange(first, first + len(lines)), np.array(bad))
    text = b"".join(line + b"\n" for line in kept).decode(encoding)
    return text.encode("utf-8"), numbers


def _drop_open_quotes(
    text: bytes, numbers: np.ndarray, file: str, report: Report
) -> tuple[bytes, np.ndarray]:
    """Without the lines that hold an odd number of quotes: each would swallow those after."""
    lines = text.split(b"\n")[:-1]
    odd = np.array([line.count(b'"') % 2 for line in lines], bool)
    report.add(TRUNCATED, file, numbers[odd])
    kept = [line for line, bad in zip(lines, odd, strict=True) if not bad]
    return b"".join(line + b"\n" for line in kept), numbers[~odd]


def read_delimited(
    path: Path,
    separator: str,
    columns: Sequence[str] | None,
    report: Report,
    *,
    encoding: str = "utf-8",
    quoted: bool = False,
    multiline: bool = False,
) -> pa.Table:
    """All columns as strings plus `LINE` (int64). `columns` None reads the names from the first
    line; otherwise the file has no header and exactly these columns. `quoted`: a field may
    stand in double quotes; `multiline`: a quoted field may hold newlines.

    Raises `InputError` for an empty file, for one that the separator does not fit, and for a
    multi-line quote that is never closed.
    """
    data = _newlines(read_bytes(path).removeprefix(_BOM)).rstrip(b"\n") + b"\n"
    text, numbers = decode(data, encoding, path.name, report)
    if columns is None:
        columns, text, numbers = _header(text, numbers, separator, quoted, path)
    if not multiline:
        text, numbers = _whole_lines(text, numbers, quoted, path, report)
    if not text:
        raise _nothing(path, columns, text)
    table = _parse(text, numbers, separator, columns, report, path, quoted, multiline)
    if not table.num_rows:
        raise _nothing(path, columns, text)
    return table


def stream_delimited(
    path: Path,
    separator: str,
    columns: Sequence[str] | None,
    report: Report,
    *,
    encoding: str = "utf-8",
    quoted: bool = False,
    block_bytes: int = BLOCK_BYTES,
) -> Iterator[pa.Table]:
    """The rows that `read_delimited` gives, block by block: a file of any size passes through
    little memory. A quoted field cannot hold newlines here. Raises `InputError` as it does."""
    if encoding != "utf-8" and _is_utf8(path, block_bytes):
        encoding = "utf-8"  # of the whole file, not of those blocks that happen to be UTF-8
    first, rows, seen = 1, 0, b""
    for data in read_blocks(path, block_bytes):
        text, numbers = decode(data, encoding, path.name, report, first, ())
        first += data.count(b"\n")
        if columns is None:
            if not text:
                continue
            columns, text, numbers = _header(text, numbers, separator, quoted, path)
        text, numbers = _whole_lines(text, numbers, quoted, path, report)
        if not text:
            continue
        seen = seen or text.strip()[:1]
        table = _parse(text, numbers, separator, columns, report, path, quoted, False)
        rows += table.num_rows
        if table.num_rows:
            yield table
    if not rows:
        raise _nothing(path, [""] if columns is None else columns, seen)


def _is_utf8(path: Path, block_bytes: int) -> bool:
    try:
        for data in read_blocks(path, block_bytes):
            data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _nothing(path: Path, columns: Sequence[str], text: bytes) -> InputError:
    """Why no row was read of `text`, what stands below the header."""
    names = list(columns)
    if not text.strip():
        return InputError(f"{path} has no readable rows below its header {names}")
    return InputError(f"{path}: no line has the {len(names)} columns {names}")


def _header(
    text: bytes, numbers: np.ndarray, separator: str, quoted: bool, path: Path
) -> tuple[list[str], bytes, np.ndarray]:
    """The names in the first line, and what follows it."""
    first, _, text = text.partition(b"\n")
    names = [
        name.strip().strip('"' if quoted else None)
        for name in first.decode("utf-8").split(separator)
    ]
    if len(set(names)) < len(names):
        raise InputError(f"{path} names a column twice: {names}")
    return names, text, numbers[1:]


def _whole_lines(
    text: bytes, numbers: np.ndarray, quoted: bool, path: Path, report: Report
) -> tuple[bytes, np.ndarray]:
    if quoted and b'"' in text:
        return _drop_open_quotes(text, numbers, path.name, report)
    return text, numbers


def _parse(
    text: bytes,
    numbers: np.ndarray,
    separator: str,
    columns: Sequence[str],
    report: Report,
    path: Path,
    quoted: bool,
    multiline: bool,
) -> pa.Table:
    names = list(columns)
    if len(separator) > 1:
        text, separator = text.replace(separator.encode(), _UNIT), _UNIT.decode()
    bad: list[tuple[int, int]] = []  # (record from 1, newlines inside it)

    def invalid(row) -> str:
        bad.append((row.number, row.text.count("\n")))
        return "skip"

    try:
        table = pa.csv.read_csv(
            io.BytesIO(text),
            read_options=pa.csv.ReadOptions(column_names=names, use_threads=False),
            parse_options=pa.csv.ParseOptions(
                delimiter=separator,
                quote_char='"' if quoted else False,
                newlines_in_values=multiline,
                ignore_empty_lines=False,
                invalid_row_handler=invalid,
            ),
            convert_options=pa.csv.ConvertOptions(
                column_types={name: pa.string() for name in names}, strings_can_be_null=False
            ),
        )
    except pa.ArrowInvalid as error:
        raise InputError(f"{path}: {error}; expected columns {names}") from error
    bad_rows = np.array([row - 1 for row, _ in bad], np.int64)
    rows = np.delete(np.arange(table.num_rows + len(bad)), bad_rows)
    newlines = np.zeros(table.num_rows + len(bad), np.int64)
    if multiline:
        newlines[bad_rows] = [inside for _, inside in bad]
        for column in table.columns:
            newlines[rows] += pc.count_substring(column, "\n").to_numpy()
    starts = numbers[np.arange(len(newlines)) + np.cumsum(newlines) - newlines]
    if multiline and newlines[-1] and text.count(b'"') % 2:
        raise InputError(
            f"{path}: a quote opened in the row of line {starts[-1]} is never closed; close it"
        )
    report.add(TRUNCATED, path.name, starts[bad_rows])
    return table.append_column(LINE, pa.array(starts[rows]))
