"""Item descriptions from a second file, joined by item id."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from alignuser_jax.datasets.reading.delimited import (
    LINE,
    InputError,
    read_bytes,
    read_delimited,
)
from alignuser_jax.datasets.report import Report

EXTRA_COLUMNS = (
    *("id", "title", "year", "age_rating", "release", "genres", "director", "writers"),
    *("actors", "description", "poster"),
)
"""MovieLens' `::` extras: the plot is the tenth of eleven columns."""
ID_NAMES = ("item_id", "movieId", "movie_id", "id", "item", "asin")
TEXT_NAMES = ("description", "plot", "summary", "abstract", "overview", "text")
NO_TEXT = ("", "N/A", "NA", "nan", "None", "null")
"""What files write where there is no description."""


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
        table = read_delimited(path, separator, None, report, quoted=True, multiline=True)
        return _from_table(table, path)
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
            {**value, "item_id": key}
            if isinstance(value, Mapping)
            else {"item_id": key, "description": value}
            for key, value in content.items()
        ]
    else:
        rows = content
    if not rows or not isinstance(rows, list) or not all(isinstance(r, Mapping) for r in rows):
        raise InputError(f"{path}: expected an object by item id or a list of records")
    id_name, text_name = _pick(list(dict.fromkeys(key for row in rows for key in row)), path)
    return _clean((row.get(id_name), row.get(text_name)) for row in rows)


def _from_table(table: pa.Table, path: Path) -> dict[str, str]:
    names = [name for name in table.column_names if name != LINE]
    columns = [table[name] for name in _pick(names, path)]
    ids, texts = (pc.cast(column, pa.string()).to_pylist() for column in columns)
    return _clean(zip(ids, texts, strict=True))


def _pick(names: Sequence[str], path: Path) -> list[str]:
    """The names of the id column and the text column."""
    lower = {name.lower(): name for name in names}
    found = [
        next((lower[n.lower()] for n in wanted if n.lower() in lower), None)
        for wanted in (ID_NAMES, TEXT_NAMES)
    ]
    if None in found:
        raise InputError(
            f"{path} has columns {list(names)}: expected an item id ({', '.join(ID_NAMES)}) "
            f"and a text ({', '.join(TEXT_NAMES)})"
        )
    return found


def _clean(rows: Iterable[tuple[object, object]]) -> dict[str, str]:
    """Texts by id, on one line each; rows without an id or a text (`NO_TEXT`) are left out."""

    def text(value: object) -> str:
        return "" if value is None else " ".join(str(value).split())

    texts = ((text(item_id), text(words)) for item_id, words in rows)
    return {item_id: words for item_id, words in texts if item_id and words not in NO_TEXT}


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
