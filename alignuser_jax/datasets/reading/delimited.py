"""Read text tables of any separator as Arrow columns of strings, with each row's line number.

Arrow parses the whole file or block by block. Lines that are truncated, too long or in another
encoding are left out and reported by number, so that one bad line does not stop an import.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from alignuser_jax.datasets.report import Report

LINE = "line number"
"""Name of the column that holds each row's line in its file, from 1, counting a header."""
TRUNCATED = "truncated or too long line"
"""The report's name for a line with another number of fields."""
BLOCK_BYTES = 1 << 25
"""Bytes that `stream_delimited` reads at a time; a block ends at the end of a line."""
MAX_LINE_BYTES = 1 << 28
"""A line longer than this is refused: the file is no text table."""
_UNIT = b"\x1f"  # stands for a separator of several characters, which Arrow does not take
_BOM = b"\xef\xbb\xbf"


class InputError(ValueError):
    """A file cannot be read at all, whatever lines are dropped."""


def find_file(directory: Path, name: str) -> Path:
    """Return the file `name` in `directory`, plain or gzipped.

    Raises:
        FileNotFoundError: If there is neither.
    """
    for candidate in (directory / name, directory / f"{name}.gz"):
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(f"no {name} (plain or .gz) in {directory}")


def has_file(directory: Path, name: str) -> bool:
    """Whether `directory` has the file `name`, plain or gzipped."""
    return (directory / name).is_file() or (directory / f"{name}.gz").is_file()


def read_bytes(path: Path) -> bytes:
    """Return the content of a plain or gzipped file.

    Raises:
        FileNotFoundError: If the file does not exist.
        InputError: If it is empty, UTF-16 or a damaged gzip file.
    """
    data = path.read_bytes()
    if path.suffix == ".gz":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(f"{path} is not a complete gzip file: {error}") from error
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
    """Return `data` with newlines alone at the ends of lines.

    A lone carriage return ends a line only in a file that has no other line end (an old Mac's).
    Elsewhere, and if `mixed` says that newlines came before, it becomes a space.
    """
    data = data.replace(b"\r\n", b"\n")
    if b"\r" in data:
        data = data.replace(b"\r", b" " if mixed or b"\n" in data else b"\n")
    return data


def read_blocks(path: Path, block_bytes: int = BLOCK_BYTES) -> Iterator[bytes]:
    """Yield the content of a plain or gzipped file in blocks of whole lines.

    Lines end with newlines alone; a byte order mark and the empty lines at the end of the file
    are left out.

    Args:
        path: The file.
        block_bytes: Bytes read at a time.

    Raises:
        FileNotFoundError: If the file does not exist.
        InputError: As `read_bytes` does, or if a line is longer than `MAX_LINE_BYTES`.
    """
    pending, seen, first = b"", False, True
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        while True:
            try:
                data = file.read(max(block_bytes, len(_BOM)))
            except (OSError, EOFError, zlib.error) as error:
                raise InputError(f"{path} is not a complete gzip file: {error}") from error
            whole = pending + data
            if not data:
                break
            if first:
                _refuse_utf16(whole, path)
                whole, first = whole.removeprefix(_BOM), False
            # Hold back what may be the end of the file: a part of a line, empty lines, half a
            # CRLF.
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


def decode_lines(
    data: bytes,
    encoding: str,
    file: str,
    report: Report,
    first: int = 1,
    attempts: Sequence[str] = ("utf-8",),
) -> tuple[bytes, np.ndarray]:
    """Return the lines of `data` as UTF-8, and the number of each line.

    UTF-8 is tried first, whatever `encoding` says: text that is valid UTF-8 is hardly ever
    meant as anything else. Lines in neither encoding are left out and reported. A lone carriage
    return is an old Mac's line end if the text has no other, otherwise a space.

    Args:
        data: Lines, each ended by a newline.
        encoding: Tried after `attempts`.
        file: Name of the file, for the report.
        report: Collects the lines that are left out.
        first: Number of the first line of `data` in its file.
        attempts: Encodings tried first, for all of `data`.
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
    readable = [line for number, line in enumerate(lines) if number not in left_out]
    numbers = np.delete(np.arange(first, first + len(lines)), np.array(bad))
    text = b"".join(line + b"\n" for line in readable).decode(encoding)
    return text.encode("utf-8"), numbers


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
    """Read a whole text table: all columns as strings, plus `LINE` as int64.

    Args:
        path: The file, plain or gzipped.
        separator: One character or more between the fields.
        columns: The names of the columns of a file without a header; `None` reads the names
            from the first line.
        report: Collects the lines that are left out.
        encoding: Tried for a file that is not UTF-8.
        quoted: Whether a field may stand in double quotes.
        multiline: Whether a quoted field may hold newlines.

    Raises:
        InputError: If the file is empty, the separator does not fit it, or a quote that may
            span lines is never closed.
    """
    table = _TextTable(path, separator, quoted, multiline, report)
    data = _newlines(read_bytes(path).removeprefix(_BOM)).rstrip(b"\n") + b"\n"
    text, numbers = decode_lines(data, encoding, path.name, report)
    if columns is None:
        columns, text, numbers = table.header(text, numbers)
    text, numbers = table.whole_lines(text, numbers)
    rows = table.parse(text, numbers, columns) if text else None
    if rows is None or not rows.num_rows:
        raise table.no_rows(columns, text)
    return rows


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
    """Yield the rows that `read_delimited` returns block by block, in little memory.

    A quoted field cannot hold newlines here.

    Args:
        path: The file, plain or gzipped, of any size.
        separator: One character or more between the fields.
        columns: The names of the columns of a file without a header; `None` reads the names
            from the first line.
        report: Collects the lines that are left out.
        encoding: Tried for a file that is not UTF-8.
        quoted: Whether a field may stand in double quotes.
        block_bytes: Bytes read at a time.

    Raises:
        InputError: As `read_delimited` does.
    """
    table = _TextTable(path, separator, quoted, False, report)
    if encoding != "utf-8" and _is_utf8(path, block_bytes):
        encoding = "utf-8"  # decided for the whole file: single blocks may happen to be UTF-8
    first, n_rows, seen = 1, 0, b""
    for data in read_blocks(path, block_bytes):
        text, numbers = decode_lines(data, encoding, path.name, report, first, ())
        first += data.count(b"\n")
        if columns is None:
            if not text:
                continue
            columns, text, numbers = table.header(text, numbers)
        text, numbers = table.whole_lines(text, numbers)
        if not text:
            continue
        seen = seen or text.strip()[:1]
        rows = table.parse(text, numbers, columns)
        n_rows += rows.num_rows
        if rows.num_rows:
            yield rows
    if not n_rows:
        raise table.no_rows([""] if columns is None else columns, seen)


def _is_utf8(path: Path, block_bytes: int) -> bool:
    try:
        for data in read_blocks(path, block_bytes):
            data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


@dataclass(frozen=True)
class _TextTable:
    """How one file is read; its methods take lines as UTF-8 and the number of each line."""

    path: Path
    separator: str
    quoted: bool
    multiline: bool
    report: Report

    def no_rows(self, columns: Sequence[str], text: bytes) -> InputError:
        """Return an error that says why no row was read of `text`, what follows the header."""
        names = list(columns)
        if not text.strip():
            return InputError(f"{self.path} has no readable rows below its header {names}")
        return InputError(f"{self.path}: no line has the {len(names)} columns {names}")

    def header(self, text: bytes, numbers: np.ndarray) -> tuple[list[str], bytes, np.ndarray]:
        """Return the names in the first line, and what follows it."""
        first, _, text = text.partition(b"\n")
        names = [
            name.strip().strip('"' if self.quoted else None)
            for name in first.decode("utf-8").split(self.separator)
        ]
        if len(set(names)) < len(names):
            raise InputError(f"{self.path} names a column twice: {names}")
        return names, text, numbers[1:]

    def whole_lines(self, text: bytes, numbers: np.ndarray) -> tuple[bytes, np.ndarray]:
        """Drop lines with an odd number of quotes: each would swallow the lines after it."""
        if self.multiline or not self.quoted or b'"' not in text:
            return text, numbers
        lines = text.split(b"\n")[:-1]
        odd = np.array([line.count(b'"') % 2 for line in lines], bool)
        self.report.add(TRUNCATED, self.path.name, numbers[odd])
        whole = [line for line, bad in zip(lines, odd, strict=True) if not bad]
        return b"".join(line + b"\n" for line in whole), numbers[~odd]

    def parse(self, text: bytes, numbers: np.ndarray, columns: Sequence[str]) -> pa.Table:
        """Parse the lines into columns of strings and `LINE`; bad lines are reported."""
        names, separator = list(columns), self.separator
        if len(separator) > 1:
            text, separator = text.replace(separator.encode(), _UNIT), _UNIT.decode()
        bad: list[tuple[int, int]] = []  # (record from 1, newlines inside it)

        def invalid(row: pa.csv.InvalidRow) -> str:
            bad.append((row.number, row.text.count("\n")))
            return "skip"

        try:
            table = pa.csv.read_csv(
                io.BytesIO(text),
                read_options=pa.csv.ReadOptions(column_names=names, use_threads=False),
                parse_options=pa.csv.ParseOptions(
                    delimiter=separator,
                    quote_char='"' if self.quoted else False,
                    newlines_in_values=self.multiline,
                    ignore_empty_lines=False,
                    invalid_row_handler=invalid,
                ),
                convert_options=pa.csv.ConvertOptions(
                    column_types={name: pa.string() for name in names},
                    strings_can_be_null=False,
                ),
            )
        except pa.ArrowInvalid as error:
            raise InputError(f"{self.path}: {error}; expected columns {names}") from error
        bad_rows = np.array([row - 1 for row, _ in bad], np.int64)
        rows = np.delete(np.arange(table.num_rows + len(bad)), bad_rows)
        newlines = np.zeros(table.num_rows + len(bad), np.int64)  # inside each record
        if self.multiline:
            newlines[bad_rows] = [inside for _, inside in bad]
            for column in table.columns:
                newlines[rows] += pc.count_substring(column, "\n").to_numpy()
        starts = numbers[np.arange(len(newlines)) + np.cumsum(newlines) - newlines]
        if self.multiline and newlines[-1] and text.count(b'"') % 2:
            raise InputError(
                f"{self.path}: a quote opened in the row of line {starts[-1]} is never closed; "
                "close it"
            )
        self.report.add(TRUNCATED, self.path.name, starts[bad_rows])
        return table.append_column(LINE, pa.array(starts[rows]))
