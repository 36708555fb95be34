"""Text tables of any separator as Arrow columns of strings, with the line each row stood on.

The good path is one vectorised Arrow read; lines that are truncated, too long or in another
encoding are left out and reported by number.
"""

from __future__ import annotations

import gzip
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv

from alignuser_jax.datasets.report import Report

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
    """The content of a plain or gzipped file. Raises `InputError` for an empty or broken one."""
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError) as error:
        raise InputError(f"{path} cannot be read: {error}; is it complete?") from error
    if not data.strip():
        raise InputError(f"{path} is empty: expected at least one row")
    return data


def decode(data: bytes, encoding: str, file: str, report: Report) -> tuple[str, np.ndarray]:
    """The text and the line number of each line kept; undecodable lines are reported."""
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        kept, numbers, bad = [], [], []
        for number, line in enumerate(data.splitlines(), 1):
            try:
                kept.append(line.decode(encoding))
                numbers.append(number)
            except UnicodeDecodeError:
                bad.append(number)
        report.add(f"not {encoding}", file, bad)
        return "\n".join(kept) + "\n", np.array(numbers, np.int64)
    return text, np.arange(1, text.count("\n") + 2, dtype=np.int64)


def read_delimited(
    path: Path,
    separator: str,
    columns: Sequence[str] | None,
    report: Report,
    *,
    encoding: str = "utf-8",
    quoted: bool = False,
) -> pa.Table:
    """All columns as strings plus `line` (int64). `columns` None reads the names from the first
    line; otherwise the file has no header and exactly these columns.

    Raises `InputError` for an empty file and for one that the separator does not fit.
    """
    text, numbers = decode(read_bytes(path), encoding, path.name, report)
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    if len(separator) > 1:
        text, separator = text.replace(separator, _UNIT), _UNIT
    header = columns is None
    if header:
        first, _, text = text.partition("\n")
        numbers = numbers[1:]
        quote = '"' if quoted else ""
        columns = [name.strip().strip(quote or None) for name in first.split(separator)]
        if not text.strip():
            raise InputError(f"{path} has a header but no rows")
    bad: list[int] = []

    def invalid(row) -> str:
        bad.append(row.number)
        return "skip"

    names = list(columns)
    try:
        table = pa.csv.read_csv(
            io.BytesIO(text.encode("utf-8")),
            read_options=pa.csv.ReadOptions(column_names=names, use_threads=False),
            parse_options=pa.csv.ParseOptions(
                delimiter=separator,
                quote_char='"' if quoted else False,
                ignore_empty_lines=False,
                invalid_row_handler=invalid,
            ),
            convert_options=pa.csv.ConvertOptions(
                column_types={name: pa.string() for name in names}, strings_can_be_null=False
            ),
        )
    except pa.ArrowInvalid as error:
        raise InputError(f"{path}: {error}; expected columns {names}") from error
    places = np.setdiff1d(np.arange(table.num_rows + len(bad)), np.array(bad, np.int64) - 1)
    report.add("truncated or too long line", path.name, numbers[np.array(bad, np.int64) - 1])
    if not table.num_rows:
        raise InputError(f"{path}: no line has the {len(names)} columns {names}")
    return table.append_column("line", pa.array(numbers[places]))
