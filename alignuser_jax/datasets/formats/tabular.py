"""Read any CSV, TSV or Parquet log whose columns you name.

Example:
    >>> from alignuser_jax.datasets.formats import tabular
    >>> from alignuser_jax.datasets.formats.tabular import TableFile
    >>> dataset = tabular.read(
    ...     TableFile("log.csv", {"user": "uid", "timestamp": "ts"}),
    ...     items=TableFile("items.parquet", {"item": "asin"}),
    ... )
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from alignuser_jax.datasets.dataset import Dataset
from alignuser_jax.datasets.formats.descriptions import with_descriptions
from alignuser_jax.datasets.reading.cleaning import (
    INTERACTION_COLUMNS,
    RawLog,
    build_dataset,
    unique_rows,
)
from alignuser_jax.datasets.reading.delimited import (
    LINE,
    InputError,
    read_delimited,
    stream_delimited,
)
from alignuser_jax.datasets.report import Report
from alignuser_jax.datasets.sources import source_of
from alignuser_jax.datasets.splits import SplitKind

ITEM_COLUMNS = {
    **{"item": "item_id", "title": "title"},
    **{"genres": "genres", "description": "description"},
}
"""Role -> name of the column of items, unless a `TableFile` names another."""
USER_COLUMNS = {"user": "user_id", "age": "age", "occupation": "occupation"}
"""Role -> name of the column of users. Names, gender and anything else are never read (the
paper's privacy rule)."""

PARQUET_ROWS = 1 << 18
"""Rows of a Parquet file that are read at a time."""


@dataclass(frozen=True)
class TableFile:
    """A CSV, TSV or Parquet file, and how its columns are named.

    Attributes:
        path: The file; CSV and TSV may be gzipped.
        columns: Role -> column name; other roles keep the names of `INTERACTION_COLUMNS`,
            `ITEM_COLUMNS` or `USER_COLUMNS`.
        genre_separator: Separates the genres of an item in a column of text.

    Example:
        >>> TableFile("log.csv", {"user": "uid"}).columns
        {'user': 'uid'}
    """

    path: str | Path
    columns: Mapping[str, str] = field(default_factory=dict)
    genre_separator: str = "|"


def read(
    interactions: str | Path | TableFile,
    *,
    items: str | Path | TableFile | None = None,
    users: str | Path | TableFile | None = None,
    descriptions: str | Path | None = None,
    name: str = "",
    strict: bool = False,
    split: SplitKind = "per_user",
) -> Dataset:
    """Read a log from a table of interactions, and maybe tables of its items and users.

    Args:
        interactions: The file of interactions, with the roles of `INTERACTION_COLUMNS`.
        items: The file of items, with the roles of `ITEM_COLUMNS`; only the id is required.
        users: The file of users, with the roles of `USER_COLUMNS`; only the id is required.
        descriptions: File with a description of each item (`read_descriptions`).
        name: Name of the dataset; by default that of the file.
        strict: Whether to refuse dirty lines instead of dropping and counting them.
        split: How to split.

    Raises:
        InputError: If a file cannot be read, a role does not exist or a column is missing.
        FileNotFoundError: If a file does not exist.
        DirtyInput: If the import is strict and a line would be dropped.
        ValueError: If no usable interaction is left.
    """
    report, log = Report(strict), _table_file(interactions)
    path = Path(log.path)
    _require_file(path)
    files = [path]
    item_table = user_table = None
    if items is not None:
        file = _table_file(items)
        files.append(Path(file.path))
        item_table = _item_table(file, report)
    if users is not None:
        file = _table_file(users)
        files.append(Path(file.path))
        user_table = _user_table(file, report)
    if descriptions is not None and item_table is None:
        ids = _item_ids(_interactions(log, Report()))
        item_table = _items(pa.table({"item": ids}), log.genre_separator)
    raw = RawLog(
        _interactions(log, report),
        user_table,
        with_descriptions(item_table, descriptions, report, files),
        file=path.name,
        name=name or path.name.split(".")[0],
        source=source_of("tabular", files),
        split=split,
    )
    return build_dataset(raw, report)


def _table_file(file: str | Path | TableFile) -> TableFile:
    return file if isinstance(file, TableFile) else TableFile(file)


def _interactions(log: TableFile, report: Report) -> Iterator[pa.Table]:
    """Yield the interactions in blocks under the names that `build_dataset` takes."""
    path = Path(log.path)
    for block in _blocks(path, report):
        block = _select(block, INTERACTION_COLUMNS, log.columns, path, INTERACTION_COLUMNS)
        names = [INTERACTION_COLUMNS.get(n, n) for n in block.column_names]
        yield block.rename_columns(names)


def _item_table(file: TableFile, report: Report) -> pa.Table:
    path = Path(file.path)
    rows = _read(path, report, multiline=True)
    rows = _select(rows, ITEM_COLUMNS, file.columns, path, ("item",))
    return _items(unique_rows(rows, "item", path.name, report), file.genre_separator)


def _user_table(file: TableFile, report: Report) -> pa.Table:
    path = Path(file.path)
    rows = _select(_read(path, report), USER_COLUMNS, file.columns, path, ("user",))
    rows = unique_rows(rows, "user", path.name, report)
    blank = pa.array([""] * rows.num_rows, pa.string())
    facts = {n: rows[n] if n in rows.column_names else blank for n in ("age", "occupation")}
    return pa.table({"user_id": rows["user"], **facts})


def _read(path: Path, report: Report, multiline: bool = False) -> pa.Table:
    """Read all columns as strings (lists stay lists), and `LINE`: a Parquet row's number."""
    _require_file(path)
    if path.suffix == ".parquet":
        return pa.concat_tables(_parquet_blocks(path))
    return read_delimited(
        path, _separator(path), None, report, quoted=True, multiline=multiline
    )


def _blocks(path: Path, report: Report) -> Iterator[pa.Table]:
    """Yield what `_read` returns in blocks; a quoted field cannot hold a newline here."""
    _require_file(path)
    if path.suffix == ".parquet":
        yield from _parquet_blocks(path)
    else:
        yield from stream_delimited(path, _separator(path), None, report, quoted=True)


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")


def _separator(path: Path) -> str:
    return "\t" if ".tsv" in path.suffixes else ","


def _parquet_blocks(path: Path) -> Iterator[pa.Table]:
    first = 1
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(PARQUET_ROWS):
                table = pa.Table.from_batches([batch])
                table.validate(full=True)  # refuses text that is no UTF-8
                columns = dict(
                    zip(table.column_names, map(_as_text, table.columns), strict=True)
                )
                yield pa.table({**columns, LINE: np.arange(first, first + table.num_rows)})
                first += table.num_rows
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise InputError(f"{path}: {error}") from error
    if first == 1:
        raise InputError(f"{path} is empty: expected at least one row")


def _item_ids(blocks: Iterable[pa.Table]) -> pa.Array:
    """Return the distinct trimmed ids of all blocks, in order of appearance."""
    ids = [pc.unique(pc.utf8_trim_whitespace(block["item_id"])) for block in blocks]
    return pc.unique(pa.chunked_array(ids))


def _as_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column as text: times become Unix seconds.

    Lists and structures stay as they are; `_select` refuses them for every role but genres.
    """
    if pa.types.is_timestamp(column.type):
        column = pc.cast(pc.cast(column, pa.timestamp("s"), safe=False), pa.int64())
    if pa.types.is_nested(column.type):
        return column
    return pc.fill_null(pc.cast(column, pa.string()), "")


def _select(
    table: pa.Table,
    defaults: Mapping[str, str],
    renamed: Mapping[str, str],
    path: Path,
    required: Iterable[str],
) -> pa.Table:
    """Return the columns of every role under the roles' names, and `LINE`.

    The columns of roles that are `required` or `renamed` must exist; others may be missing.
    """
    if unknown := [role for role in renamed if role not in defaults]:
        raise InputError(f"unknown roles {unknown} for {path}: expected {list(defaults)}")
    mapping = {**defaults, **renamed}
    missing = {
        role: mapping[role]
        for role in {**dict.fromkeys(required), **renamed}
        if mapping[role] not in table.column_names
    }
    if missing:
        lacking = ", ".join(f"{role}={column}" for role, column in missing.items())
        raise InputError(
            f"{path} lacks the columns {lacking}: it has "
            f"{[n for n in table.column_names if n != LINE]}; name yours with role=column"
            + " (a log without ratings needs a column of one number)"
            * ("rating" in missing)
        )
    present = {role: name for role, name in mapping.items() if name in table.column_names}
    nested = [n for r, n in present.items() if pa.types.is_nested(table[n].type)]
    if unfit := [n for n in nested if n != mapping.get("genres")]:
        raise InputError(f"{path}: the columns {unfit} hold lists: expected one value a row")
    for name in nested:  # genres
        kind = table[name].type
        if not (pa.types.is_list(kind) and pa.types.is_string(kind.value_type)):
            raise InputError(f"{path}: the column {name} holds {kind}: expected lists of text")
    return pa.table({**{r: table[n] for r, n in present.items()}, LINE: table[LINE]})


def _items(rows: pa.Table, genre_separator: str) -> pa.Table:
    ids = rows["item"]

    def text(role: str, default: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
        return rows[role] if role in rows.column_names else default

    blank = pa.array([""] * rows.num_rows, pa.string())
    genres = text("genres", blank)
    if not pa.types.is_list(genres.type):
        parts = [
            [g.strip() for g in value.split(genre_separator) if g.strip()]
            for value in genres.to_pylist()
        ]
        genres = pa.array(parts, pa.list_(pa.string()))
    return pa.table(
        {
            "item_id": ids,
            "title": text("title", ids),
            "genres": genres,
            "description": text("description", blank),
        }
    )
