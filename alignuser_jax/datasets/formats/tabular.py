"""Any CSV or Parquet log with a column mapping."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from alignuser_jax.datasets.dataset import Dataset
from alignuser_jax.datasets.formats.descriptions import join_descriptions, read_descriptions
from alignuser_jax.datasets.reading.cleaning import SplitKind, build_dataset, unique_rows
from alignuser_jax.datasets.reading.delimited import (
    LINE,
    InputError,
    read_delimited,
    stream_delimited,
)
from alignuser_jax.datasets.report import Report
from alignuser_jax.datasets.sources import source_of

COLUMNS = {"user": "user_id", "item": "item_id", "rating": "rating", "timestamp": "timestamp"}
ITEM_COLUMNS = {
    **{"item": "item_id", "title": "title"},
    **{"genres": "genres", "description": "description"},
}
USER_COLUMNS = {"user": "user_id", "age": "age", "occupation": "occupation"}
"""What is read of users; names, gender and anything else are not (the paper's privacy rule)."""

PARQUET_ROWS = 1 << 18
"""Rows of a Parquet file that are read at a time."""


def read(
    interactions: str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    items: str | Path | None = None,
    item_columns: Mapping[str, str] | None = None,
    users: str | Path | None = None,
    user_columns: Mapping[str, str] | None = None,
    genre_separator: str = "|",
    descriptions: str | Path | None = None,
    name: str = "",
    strict: bool = False,
    split: SplitKind = "per_user",
) -> Dataset:
    """The dataset in a CSV, TSV or Parquet file.

    columns: role -> column name, for the roles user, item, rating, timestamp; roles that are
    not named keep the names of `COLUMNS`. `items` (roles item, title, genres, description) and
    `users` (user, age, occupation) are files of their own; only their id is required.

    Raises `InputError` for unreadable files, unknown roles and missing columns, and
    `DirtyInput` (strict) or `ValueError` as `build_dataset` does.
    """
    report = Report(strict)
    path, files = Path(interactions), [Path(interactions)]
    _require_file(path)

    def interactions_in(report: Report) -> Iterator[pa.Table]:
        names = {"user": "user_id", "item": "item_id"}
        for block in _blocks(path, report):
            block = _select(block, COLUMNS, columns or {}, path, required=COLUMNS)
            yield block.rename_columns([names.get(n, n) for n in block.column_names])

    item_table = user_table = None
    if items is not None:
        files.append(Path(items))
        rows = _read(files[-1], report, multiline=True)
        rows = _select(rows, ITEM_COLUMNS, item_columns or {}, files[-1], ("item",))
        item_table = _items(unique_rows(rows, "item", files[-1].name, report), genre_separator)
    if users is not None:
        files.append(Path(users))
        rows = _read(files[-1], report)
        rows = _select(rows, USER_COLUMNS, user_columns or {}, files[-1], ("user",))
        rows = unique_rows(rows, "user", files[-1].name, report)
        blank = pa.array([""] * rows.num_rows, pa.string())
        user_table = pa.table(
            {
                "user_id": rows["user"],
                **{
                    n: rows[n] if n in rows.column_names else blank
                    for n in ("age", "occupation")
                },
            }
        )
    if descriptions is not None:
        if item_table is None:
            ids = _item_ids(interactions_in(Report()))
            item_table = _items(pa.table({"item": ids}), genre_separator)
        item_table = join_descriptions(item_table, read_descriptions(descriptions, report))
        files.append(Path(descriptions))
    return build_dataset(
        interactions_in(report),
        user_table,
        item_table,
        report,
        file=path.name,
        name=name or path.name.split(".")[0],
        source=source_of("tabular", files),
        split=split,
    )


def _read(path: Path, report: Report, multiline: bool = False) -> pa.Table:
    """All columns as strings (lists stay lists), and `LINE`; a Parquet row's is its number."""
    _require_file(path)
    if path.suffix == ".parquet":
        return pa.concat_tables(_parquet_blocks(path))
    return read_delimited(
        path, _separator(path), None, report, quoted=True, multiline=multiline
    )


def _blocks(path: Path, report: Report) -> Iterator[pa.Table]:
    """What `_read` gives, block by block; no quoted field holds a newline."""
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
                table.validate(full=True)  # text that is no UTF-8
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
    """The trimmed ids of all blocks, in order of appearance."""
    ids = [pc.unique(pc.utf8_trim_whitespace(block["item_id"])) for block in blocks]
    return pc.unique(pa.chunked_array(ids))


def _as_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Moments in time become Unix seconds; lists stay lists, as do structures, which no role
    can name."""
    if pa.types.is_timestamp(column.type):
        column = pc.cast(pc.cast(column, pa.timestamp("s"), safe=False), pa.int64())
    if pa.types.is_nested(column.type):
        return column
    return pc.fill_null(pc.cast(column, pa.string()), "")


def _select(
    table: pa.Table,
    defaults: Mapping[str, str],
    given: Mapping[str, str],
    path: Path,
    required: Iterable[str],
) -> pa.Table:
    """The columns of every role under the roles' names, and `LINE`; those `required` or
    `given` must be there."""
    if unknown := [role for role in given if role not in defaults]:
        raise InputError(f"unknown roles {unknown} for {path}: expected {list(defaults)}")
    mapping = {**defaults, **given}
    missing = {
        role: mapping[role]
        for role in {**dict.fromkeys(required), **given}
        if mapping[role] not in table.column_names
    }
    if missing:
        wanted = ", ".join(f"{role}={column}" for role, column in missing.items())
        raise InputError(
            f"{path} lacks the columns {wanted}: it has "
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

    def text(role: str, default) -> pa.ChunkedArray | pa.Array:
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
