"""Read item descriptions from a second file and join them to the items by item id.

Most logs have titles only; the paper's prompts show a description of each item.
"""

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
"""Columns of MovieLens' `::` extras; the description is the tenth of eleven."""
ID_NAMES = ("item_id", "movieId", "movie_id", "id", "item", "asin")
TEXT_NAMES = ("description", "plot", "summary", "abstract", "overview", "text")
NO_TEXT = ("", "N/A", "NA", "nan", "None", "null")
"""What files write where there is no description."""


def read_descriptions(path: str | Path, report: Report) -> dict[str, str]:
    """Read descriptions by item id.

    Args:
        path: A CSV, TSV, Parquet or JSON file (an object by item id, or a list of records) or
            MovieLens' `::` extras (`.dat`); text formats plain or gzipped.
        report: Collects the lines that cannot be read.

    Raises:
        InputError: If the format or the columns are not recognised.
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


def _pick(names: Sequence[str], path: Path) -> tuple[str, str]:
    """Return the names of the id column and of the text column."""
    lower = {name.lower(): name for name in names}
    id_name, text_name = (
        next((lower[n.lower()] for n in candidates if n.lower() in lower), None)
        for candidates in (ID_NAMES, TEXT_NAMES)
    )
    if id_name is None or text_name is None:
        raise InputError(
            f"{path} has columns {list(names)}: expected an item id ({', '.join(ID_NAMES)}) "
            f"and a text ({', '.join(TEXT_NAMES)})"
        )
    return id_name, text_name


def _clean(rows: Iterable[tuple[object, object]]) -> dict[str, str]:
    """Return one-line texts by id; rows without an id or a text (`NO_TEXT`) are left out."""

    def one_line(value: object) -> str:
        return "" if value is None else " ".join(str(value).split())

    texts = ((one_line(item_id), one_line(text)) for item_id, text in rows)
    return {item_id: text for item_id, text in texts if item_id and text not in NO_TEXT}


def join_descriptions(items: pa.Table, descriptions: Mapping[str, str]) -> pa.Table:
    """Return `items` with these descriptions; items without one keep their own."""
    joined = [
        descriptions.get(item_id, own or "")
        for item_id, own in zip(
            items["item_id"].to_pylist(), items["description"].to_pylist(), strict=True
        )
    ]
    place = items.column_names.index("description")
    return items.set_column(place, "description", pa.array(joined, pa.string()))


def with_descriptions(
    items: pa.Table | None,
    path: str | Path | None,
    report: Report,
    files: list[Path],
    needs: str = "a file of items",
) -> pa.Table | None:
    """Join the descriptions in `path` to an adapter's items, if there is such a file.

    Args:
        items: The item table, or `None` when the log has none.
        path: The file of descriptions; `None` leaves `items` as they are.
        report: Collects the lines that cannot be read.
        files: The files that were read; `path` is appended.
        needs: What the log lacks when `items` is `None`, for the error message.

    Raises:
        ValueError: If there are descriptions but no items to join them to.
    """
    if path is None:
        return items
    if items is None:
        raise ValueError(f"descriptions need {needs} to be joined to")
    files.append(Path(path))
    return join_descriptions(items, read_descriptions(path, report))
