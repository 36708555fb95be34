"""Stream files of one record a line: JSON or Python literals, plain or gzipped.

Older dumps (Steam, Amazon's metadata of 2014) hold Python literals. They are read with
`ast.literal_eval`, which runs no code.
"""

from __future__ import annotations

import ast
import contextlib
import gzip
import json
import warnings
import zlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import pyarrow as pa
from tqdm import tqdm

from alignuser_jax.datasets.reading.delimited import LINE, InputError
from alignuser_jax.datasets.report import Report

LINE_BYTES = 1 << 24
"""A line longer than this is reported and skipped."""
_BLOCK_ROWS = 1 << 16
NO_RECORD = "line that is no record"
"""The report's name for a line that is neither a JSON object nor a Python dictionary."""
_UNREADABLE = (ValueError, SyntaxError, TypeError, RecursionError, MemoryError)


def read_lines(path: Path, report: Report) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, text) of each line that is not blank.

    Lines that are not UTF-8 or longer than `LINE_BYTES` are reported and skipped.

    Raises:
        FileNotFoundError: If the file does not exist.
        InputError: If the file is empty, UTF-16 or a damaged gzip file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    bad: list[int] = []
    long: list[int] = []
    seen = False
    size = path.stat().st_size
    bar = tqdm(total=size, unit="B", unit_scale=True, desc=path.name, leave=False, delay=1)
    with path.open("rb") as raw, bar as progress:
        file = gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw
        number = 0
        try:
            while line := file.readline(LINE_BYTES):
                number += 1
                if number == 1 and line[:2] in (b"\xff\xfe", b"\xfe\xff"):
                    raise InputError(f"{path} is UTF-16: expected UTF-8; convert it first")
                if len(line) == LINE_BYTES and not line.endswith(b"\n"):
                    while (rest := file.readline(LINE_BYTES)) and not rest.endswith(b"\n"):
                        pass
                    long.append(number)
                    seen = True
                    continue
                if not number % 1024:
                    progress.update(raw.tell() - progress.n)
                if not line.strip():
                    continue
                seen = True
                try:
                    yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError:
                    bad.append(number)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise InputError(f"{path} is not a complete gzip file: {error}") from error
    report.add("not utf-8", path.name, bad)
    report.add(f"line longer than {LINE_BYTES} bytes", path.name, long)
    if not seen:
        raise InputError(f"{path} is empty: expected at least one record")


def _record(text: str) -> object:
    """Read a line as JSON, or else as a Python literal; return `None` if it is neither.

    JSON is tried first, because Python reads the escapes of JSON strings differently.
    """
    with contextlib.suppress(*_UNREADABLE):
        return json.loads(text)
    with contextlib.suppress(*_UNREADABLE), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in old dumps
        return ast.literal_eval(text.strip())
    return None


def records(path: Path, report: Report) -> Iterator[tuple[int, dict]]:
    """Yield (line number, record) of each line that is a JSON object or a Python dictionary.

    Other lines are reported and skipped.

    Raises:
        FileNotFoundError: If the file does not exist.
        InputError: As `read_lines` does, or if no line is a record.
    """
    bad: list[int] = []
    any_record = False
    for number, text in read_lines(path, report):
        record = _record(text)
        if isinstance(record, dict):
            any_record = True
            yield number, record
        else:
            bad.append(number)
    report.add(NO_RECORD, path.name, bad)
    if not any_record:
        raise InputError(
            f"{path}: none of its {len(bad)} lines is a record; expected one JSON object or "
            "Python dictionary a line"
        )


def blocks_of(rows: Iterable[tuple], schema: pa.Schema) -> Iterator[pa.Table]:
    """Yield rows, given in the order of `schema`, as tables of at most `_BLOCK_ROWS` rows.

    Only so many rows are Python objects at a time.
    """
    rows = iter(rows)
    while part := list(islice(rows, _BLOCK_ROWS)):
        columns = zip(*part, strict=True)
        arrays = [pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)]
        yield pa.Table.from_arrays(arrays, schema=schema)


def table_of(rows: Iterable[tuple], schema: pa.Schema) -> pa.Table:
    """Return rows, given in the order of `schema`, as one table."""
    return pa.concat_tables([schema.empty_table(), *blocks_of(rows, schema)])


INTERACTIONS = pa.schema(
    [
        *((name, pa.string()) for name in ("user_id", "item_id", "rating", "timestamp")),
        (LINE, pa.int64()),
    ]
)
"""The interactions that `build_dataset` takes: all as text, and each row's line."""
ITEMS = pa.schema(
    [
        ("item_id", pa.string()),
        ("title", pa.string()),
        ("genres", pa.list_(pa.string())),
        ("description", pa.string()),
        (LINE, pa.int64()),
    ]
)
"""An item table before `unique_rows`."""
USERS = pa.schema(
    [*((name, pa.string()) for name in ("user_id", "age", "occupation")), (LINE, pa.int64())]
)
"""A user table before `unique_rows`."""


def require_fields(path: Path, record: dict, names: Sequence[str]) -> None:
    """Raise `InputError` if the first record of a file lacks one of these fields."""
    if missing := [name for name in names if name not in record]:
        raise InputError(
            f"{path} lacks the fields {missing}: its first record has "
            f"{sorted(map(str, record))}"
        )
