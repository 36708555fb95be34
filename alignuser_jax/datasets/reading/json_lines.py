"""Files of one record a line, JSON or Python literals, plain or gzipped, read as a stream.

Python literals are what older dumps (Steam, Amazon 2014 metadata) hold; they are read with
`ast.literal_eval`, which runs nothing.
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
"""A longer line is no record."""
_BLOCK_ROWS = 1 << 16
NO_RECORD = "line that is no record"
_UNREADABLE = (ValueError, SyntaxError, TypeError, RecursionError, MemoryError)


def read_lines(path: Path, report: Report) -> Iterator[tuple[int, str]]:
    """(line number from 1, text) of each line that is not blank. Lines that are not UTF-8 or
    longer than `LINE_BYTES` are reported.

    Raises `InputError` for an empty file, a broken gzip file or UTF-16, `FileNotFoundError`.
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
            raise InputError(f"{path} is no complete gzip file: {error}") from error
    report.add("not utf-8", path.name, bad)
    report.add(f"line longer than {LINE_BYTES} bytes", path.name, long)
    if not seen:
        raise InputError(f"{path} is empty: expected at least one record")


def _record(text: str) -> object:
    """The line as JSON, else as a Python literal: JSON first, as a literal reads the escapes of
    JSON strings otherwise. `None` where it is neither."""
    with contextlib.suppress(*_UNREADABLE):
        return json.loads(text)
    with contextlib.suppress(*_UNREADABLE), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in old dumps
        return ast.literal_eval(text.strip())
    return None


def records(path: Path, report: Report) -> Iterator[tuple[int, dict]]:
    """(line number, record) of each line that holds a dictionary, as JSON or as a Python
    literal; other lines are reported. Raises as `read_lines` does, and `InputError` where no
    line holds one."""
    bad: list[int] = []
    found = False
    for number, text in read_lines(path, report):
        record = _record(text)
        if isinstance(record, dict):
            found = True
            yield number, record
        else:
            bad.append(number)
    report.add(NO_RECORD, path.name, bad)
    if not found:
        raise InputError(
            f"{path}: none of its {len(bad)} lines is a record; expected one JSON object or "
            "Python dictionary a line"
        )


def blocks_of(rows: Iterable[tuple], schema: pa.Schema) -> Iterator[pa.Table]:
    """Rows in the order of `schema` as tables of `_BLOCK_ROWS`: so many are Python objects at
    a time."""
    rows = iter(rows)
    while part := list(islice(rows, _BLOCK_ROWS)):
        columns = zip(*part, strict=True)
        arrays = [pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)]
        yield pa.Table.from_arrays(arrays, schema=schema)


def table_of(rows: Iterable[tuple], schema: pa.Schema) -> pa.Table:
    """Rows in the order of `schema` as one table."""
    return pa.concat_tables([schema.empty_table(), *blocks_of(rows, schema)])


INTERACTIONS = pa.schema(
    [
        *((name, pa.string()) for name in ("user_id", "item_id", "rating", "timestamp")),
        (LINE, pa.int64()),
    ]
)
"""What `build_dataset` takes: everything as text, and where it stood."""
ITEMS = pa.schema(
    [
        ("item_id", pa.string()),
        ("title", pa.string()),
        ("genres", pa.list_(pa.string())),
        ("description", pa.string()),
        (LINE, pa.int64()),
    ]
)
USERS = pa.schema(
    [*((name, pa.string()) for name in ("user_id", "age", "occupation")), (LINE, pa.int64())]
)


def require_fields(path: Path, record: dict, names: Sequence[str]) -> None:
    """Raises `InputError` where the first record of a file lacks fields it must have."""
    if missing := [name for name in names if name not in record]:
        raise InputError(
            f"{path} lacks the fields {missing}: its first record has "
            f"{sorted(map(str, record))}"
        )
