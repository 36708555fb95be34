"""Text tables of any separator as Arrow columns of strings, with the line each row stood on.

The good path is one vectorised Arrow read; lines that are truncated, too long or in another
encoding are left out and reported by number.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from alignuser_jax.datasets.report import Report

LINE = "line number"
"""The column that tells where a row stood in its file, from 1, a header counted."""
TRUNCATED = "truncated or too long line"
_UNIT = "\x1f"


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
    if not data.strip():
        raise InputError(f"{path} is empty: expected at least one row")
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise InputError(f"{path} is UTF-16: expected UTF-8; convert it first")
    return data


def decode(data: bytes, encoding: str, file: str, report: Report) -> tuple[str, np.ndarray]:
    """The text, lines ended by newlines, and the number of each line kept.

    UTF-8 is tried first whatever `encoding` says: text that is valid UTF-8 is hardly ever
    meant as anything else. Lines in neither encoding are reported.
    """
    data = data.replace(b"\r\n", b"\n").removeprefix(b"\xef\xbb\xbf")
    if b"\r" in data:  # an old Mac's line ends, or stray ones inside a text
        data = data.replace(b"\r", b" " if b"\n" in data else b"\n")
    data = data.rstrip(b"\n") + b"\n"
    for attempt in ("utf-8", encoding):
        try:
            return data.decode(attempt), np.arange(1, data.count(b"\n") + 1)
        except UnicodeDecodeError:
            continue
    lines, bad = data.split(b"\n")[:-1], []
    for number, line in enumerate(lines, 1):
        try:
            line.decode(encoding)
        except UnicodeDecodeError:
            bad.append(number)
    report.add(f"not {encoding}", file, bad)
    left_out = set(bad)
    kept = [line for number, line in enumerate(lines, 1) if number not in left_out]
    numbers = np.delete(np.arange(1, len(lines) + 1), np.array(bad) - 1)
    return b"".join(line + b"\n" for line in kept).decode(encoding), numbers


def _drop_open_quotes(
    text: str, numbers: np.ndarray, file: str, report: Report
) -> tuple[str, np.ndarray]:
    """Without the lines that hold an odd number of quotes: each would swallow those after."""
    lines = text.split("\n")[:-1]
    odd = np.array([line.count('"') % 2 for line in lines], bool)
    report.add(TRUNCATED, file, numbers[odd])
    kept = [line for line, bad in zip(lines, odd, strict=True) if not bad]
    return "".join(line + "\n" for line in kept), numbers[~odd]


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
    text, numbers = decode(read_bytes(path), encoding, path.name, report)
    if len(separator) > 1:
        text, separator = text.replace(separator, _UNIT), _UNIT
    if columns is None:
        first, _, text = text.partition("\n")
        numbers = numbers[1:]
        columns = [
            name.strip().strip('"' if quoted else None) for name in first.split(separator)
        ]
        if len(set(columns)) < len(columns):
            raise InputError(f"{path} names a column twice: {columns}")
    names = list(columns)
    if quoted and not multiline and '"' in text:
        text, numbers = _drop_open_quotes(text, numbers, path.name, report)
    if not text.strip():
        raise InputError(f"{path} has no readable rows below its header {names}")
    bad: list[tuple[int, int]] = []  # (record from 1, newlines inside it)

    def invalid(row) -> str:
        bad.append((row.number, row.text.count("\n")))
        return "skip"

    try:
        table = pa.csv.read_csv(
            io.BytesIO(text.encode("utf-8")),
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
    if multiline and newlines[-1] and text.count('"') % 2:
        raise InputError(
            f"{path}: a quote opened in the row of line {starts[-1]} is never closed; close it"
        )
    report.add(TRUNCATED, path.name, starts[bad_rows])
    if not table.num_rows:
        raise InputError(f"{path}: no line has the {len(names)} columns {names}")
    return table.append_column(LINE, pa.array(starts[rows]))
