"""Item descriptions from a second file, joined by item id."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from alignuser_jax.datasets.delimited import InputError, read_bytes, read_delimited
from alignuser_jax.datasets.report import Report

EXTRA_COLUMNS = (
    *("id", "title", "year", "age_rating", "release", "genres", "director", "writers"),
    *("actors", "description", "poster"),
)
"""MovieLens' `::` extras: the plot is the tenth of eleven columns."""
ID_NAMES = ("item_id", "movieId", "movie_id", "id", "item", "asin")
TEXT_NAMES = ("description", "plot", "summary", "abstract", "overview", "text")


def read_descriptions(path: str | Path, report: Report) -> dict[str, str]:
    """item id -> description, from CSV, Parquet, JSON (an object by id, or a list of records)
    or MovieLens' `::` extras; text formats plain or gzipped.

    Raises `InputError` where the format or the columns are not recognised.
    """
    path = Path(path)
    suffixes = [s for s in path.suffixes if s != ".gz"]
    kind = suffixes[-1] if suffixes else ""
    if kind == ".parquet":
        return _from_table(pq.read_table(path), path)
    if kind == ".json":
        return _from_json(read_bytes(path), path)
    if kind in (".csv", ".tsv"):
        separator = "\t" if kind == ".tsv" else ","
        return _from_table(read_delimited(path, separator, None, report, quoted=True), path)
    if kind == ".dat":
        table = read_delimited(path, "::", EXTRA_COLUMNS, report, encoding="latin-1")
        return _from_table(table, path)
    raise InputError(
        f"{path}: descriptions are read from .csv, .tsv, .parquet, .json or MovieLens .dat "
        f"(plain or .gz), not {kind or 'a file without suffix'}"
    )


def _from_json(data: bytes, path: Path) -> dict[str, str]:
    try:
        content = json.loads(data)
    except ValueError as error:
        raise InputError(f"{path} is no JSON: {error}") from error
    if isinstance(content, Mapping):
        rows = [
            {"id": key, **value} if isinstance(value, Mapping) else {"id": key, "text": value}
            for key, value in content.items()
        ]
    else:
        rows = content
    if not rows or not all(isinstance(row, Mapping) for row in rows):
        raise InputError(f"{path}: expected an object by item id or a list of records")
    return _from_table(pa.Table.from_pylist([dict(row) for row in rows]), path)


def _from_table(table: pa.Table, path: Path) -> dict[str, str]:
    names = {name.lower(): name for name in table.column_names}
    found = [
        next((names[n.lower()] for n in wanted if n.lower() in names), None)
        for wanted in (ID_NAMES, TEXT_NAMES)
    ]
    if None in found:
        raise InputError(
            f"{path} has columns {table.column_names}: expected an item id ({', '.join(ID_NAMES)})"
            f" and a text ({', '.join(TEXT_NAMES)})"
        )
    ids, texts = (pc.cast(table[name], pa.string()).to_pylist() for name in found)
    return {i: t.strip() for i, t in zip(ids, texts, strict=True) if i and t and t.strip()}


def join_descriptions(items: pa.Table, descriptions: Mapping[str, str]) -> pa.Table:
    """`items` with the descriptions that its ids have; others keep theirs."""
    joined = [
        descriptions.get(item_id, own or "")
        for item_id, own in zip(
            items["item_id"].to_pylist(), items["description"].to_pylist(), strict=True
        )
    ]
    place = items.column_names.index("description")
    return items.set_column(place, "description", pa.array(joined, pa.string()))
