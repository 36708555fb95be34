"""Read RecBole's atomic files: `.inter`, `.user`, `.item`, and `.kg` with `.link`.

The files are tab-separated, and their header names each column's type: `user_id:token`,
`rating:float`, `genres:token_seq` (parts separated by spaces). The graph becomes the extra
table `graph` with the columns head, relation and tail; an entity that `.link` maps to an item
goes by its item id.

Example:
    >>> from alignuser_jax.datasets.formats import recbole
    >>> dataset = recbole.read("ml-100k", columns={"rating": "stars"})
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from alignuser_jax.datasets.dataset import Dataset, with_extra_tables
from alignuser_jax.datasets.formats.descriptions import with_descriptions
from alignuser_jax.datasets.reading.cleaning import (
    INTERACTION_COLUMNS,
    RawLog,
    build_dataset,
    unique_rows,
)
from alignuser_jax.datasets.reading.delimited import LINE, InputError, has_file, read_delimited
from alignuser_jax.datasets.reading.files import matching_file, the_file
from alignuser_jax.datasets.report import Report
from alignuser_jax.datasets.sources import source_of
from alignuser_jax.datasets.splits import SplitKind

TYPES = ("token", "token_seq", "float", "float_seq")
"""The column types of RecBole's headers."""
TITLE_COLUMNS = ("title", "movie_title", "item_name", "name", "book_title", "app_name")
GENRE_COLUMNS = ("genres", "genre", "class", "categories", "category", "tags")
DESCRIPTION_COLUMNS = ("description", "summary", "plot")


def read(
    source: str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    descriptions: str | Path | None = None,
    strict: bool = False,
    split: SplitKind = "per_user",
) -> Dataset:
    """Read a folder of atomic files, or a `.inter` file and those beside it.

    An item's title, genres and description come from the first of `TITLE_COLUMNS`,
    `GENRE_COLUMNS` and `DESCRIPTION_COLUMNS` that the `.item` file has. Of users only age and
    occupation are read (the paper's privacy rule).

    Args:
        source: The folder or the `.inter` file, plain or gzipped.
        columns: Role -> column name, for roles of `INTERACTION_COLUMNS` whose column has
            another name.
        descriptions: File with a description of each item (`read_descriptions`).
        strict: Whether to refuse dirty lines instead of dropping and counting them.
        split: How to split.

    Raises:
        FileNotFoundError: If there is no `.inter` file.
        InputError: If a file cannot be read, a header has no types or a column is missing.
        DirtyInput: If the import is strict and a line would be dropped.
        ValueError: If no usable interaction is left.
    """
    report, source = Report(strict), Path(source)
    path = matching_file(source, ("*.inter", "*.inter.gz"), ".inter file")
    name = path.name.partition(".inter")[0]
    mapping = INTERACTION_COLUMNS | dict(columns or {})
    interactions = _interactions(path, mapping, report)
    files = [path]

    def beside(ending: str) -> Path | None:
        """Return the file of this log with another ending, and note that it is read."""
        if not has_file(path.parent, f"{name}.{ending}"):
            return None
        files.append(the_file(path.parent, (f"{name}.{ending}",), f".{ending} file"))
        return files[-1]

    item_file = beside("item")
    items = None if item_file is None else _items(item_file, mapping["item"], report)
    user_file = beside("user")
    users = None if user_file is None else _users(user_file, mapping["user"], report)
    items = with_descriptions(items, descriptions, report, files, "an .item file")
    graph_file = beside("kg")
    graph = None if graph_file is None else _graph(graph_file, beside("link"), report)
    raw = RawLog(
        interactions,
        users,
        items,
        file=path.name,
        name=name,
        source=source_of("recbole", files),
        split=split,
    )
    dataset = build_dataset(raw, report)
    return dataset if graph is None else with_extra_tables(dataset, {"graph": graph})


def _interactions(path: Path, mapping: Mapping[str, str], report: Report) -> pa.Table:
    if unknown := sorted(set(mapping) - set(INTERACTION_COLUMNS)):
        raise InputError(f"unknown roles {unknown}: expected {list(INTERACTION_COLUMNS)}")
    table = _read(path, report, mapping.values())
    columns = {name: table[mapping[role]] for role, name in INTERACTION_COLUMNS.items()}
    return pa.table({**columns, LINE: table[LINE]})


def _read(path: Path, report: Report, required: Iterable[str]) -> pa.Table:
    """Read an atomic file: its columns under their names without types, and `LINE`."""
    table = read_delimited(path, "\t", None, report)
    headers = [name for name in table.column_names if name != LINE]
    untyped = [name for name in headers if name.rpartition(":")[2] not in TYPES]
    if untyped:
        raise InputError(
            f"{path}: the columns {untyped} name no type: expected name:type with a type of "
            f"{', '.join(TYPES)}"
        )
    names = [name.rpartition(":")[0] for name in headers]
    if len(set(names)) < len(names):
        raise InputError(f"{path} names a column twice: {names}")
    if missing := [name for name in required if name not in names]:
        raise InputError(
            f"{path} lacks the columns {missing}: it has {names}; name yours with role=column"
        )
    return table.rename_columns([*names, LINE])


def _first(rows: pa.Table, names: Sequence[str]) -> pa.ChunkedArray | pa.Array:
    """Return the first of these columns that there is, or a column of empty texts."""
    name = next((name for name in names if name in rows.column_names), None)
    return rows[name] if name else pa.array([""] * rows.num_rows, pa.string())


def _items(path: Path, key: str, report: Report) -> pa.Table:
    rows = unique_rows(_read(path, report, (key,)), key, path.name, report)
    titles = _first(rows, TITLE_COLUMNS)
    genres = [
        [part.strip(",") for part in text.split() if part.strip(",")]
        for text in _first(rows, GENRE_COLUMNS).to_pylist()
    ]
    return pa.table(
        {
            "item_id": rows[key],
            "title": pc.if_else(pc.equal(titles, ""), rows[key], titles),
            "genres": pa.array(genres, pa.list_(pa.string())),
            "description": _first(rows, DESCRIPTION_COLUMNS),
        }
    )


def _users(path: Path, key: str, report: Report) -> pa.Table:
    rows = unique_rows(_read(path, report, (key,)), key, path.name, report)
    facts = {name: _first(rows, (name,)) for name in ("age", "occupation")}
    return pa.table({"user_id": rows[key], **facts})


def _graph(path: Path, link: Path | None, report: Report) -> pa.Table:
    rows = _read(path, report, ("head_id", "relation_id", "tail_id"))
    item_of: dict[str, str] = {}
    if link is not None:
        pairs = _read(link, report, ("item_id", "entity_id"))
        item_of = dict(
            zip(pairs["entity_id"].to_pylist(), pairs["item_id"].to_pylist(), strict=True)
        )
    return pa.table(
        {
            "head": [item_of.get(name, name) for name in rows["head_id"].to_pylist()],
            "relation": rows["relation_id"].combine_chunks(),
            "tail": [item_of.get(name, name) for name in rows["tail_id"].to_pylist()],
        }
    )
