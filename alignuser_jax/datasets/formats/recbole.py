"""RecBole's atomic files: `.inter`, `.user`, `.item`, and `.kg` with `.link`, tab-separated.

The header names each column's type: `user_id:token`, `rating:float`, `genres:token_seq` (parts
separated by spaces). The graph becomes the table `graph`: head, relation, tail, where the
entities that `.link` gives to items are called by their item ids.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from alignuser_jax.datasets.dataset import Dataset, with_extra_tables
from alignuser_jax.datasets.formats.descriptions import join_descriptions, read_descriptions
from alignuser_jax.datasets.reading.cleaning import build_dataset, unique_rows
from alignuser_jax.datasets.reading.delimited import LINE, InputError, has_file, read_delimited
from alignuser_jax.datasets.reading.files import matching_file, the_file
from alignuser_jax.datasets.report import Report
from alignuser_jax.datasets.sources import source_of
from alignuser_jax.datasets.splits import SplitKind

TYPES = ("token", "token_seq", "float", "float_seq")
COLUMNS = {"user": "user_id", "item": "item_id", "rating": "rating", "timestamp": "timestamp"}
TITLES = ("title", "movie_title", "item_name", "name", "book_title", "app_name")
GENRES = ("genres", "genre", "class", "categories", "category", "tags")
DESCRIPTIONS = ("description", "summary", "plot")


def read(
    source: str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    descriptions: str | Path | None = None,
    strict: bool = False,
    split: SplitKind = "per_user",
) -> Dataset:
    """The dataset in a folder of atomic files, or of a `.inter` file and those beside it.

    columns: role -> column name, for the roles of `COLUMNS`. Titles, genres and descriptions
    are the first of `TITLES`, `GENRES` and `DESCRIPTIONS` that the `.item` file has; of users
    only age and occupation are read.

    Raises `FileNotFoundError`, `InputError` (a header without types, a missing column),
    `DirtyInput` (strict) or `ValueError` as `build_dataset` does.
    """
    report, source = Report(strict), Path(source)
    path = matching_file(source, ("*.inter", "*.inter.gz"), ".inter file")
    folder, name = path.parent, path.name.partition(".inter")[0]
    mapping = COLUMNS | dict(columns or {})
    if unknown := sorted(set(mapping) - set(COLUMNS)):
        raise InputError(f"unknown roles {unknown}: expected {list(COLUMNS)}")
    table = _read(path, report, mapping.values())
    interactions = pa.table(
        {
            "user_id": table[mapping["user"]],
            "item_id": table[mapping["item"]],
            "rating": table[mapping["rating"]],
            "timestamp": table[mapping["timestamp"]],
            LINE: table[LINE],
        }
    )
    files, items, users = [path], None, None
    if has_file(folder, f"{name}.item"):
        files.append(the_file(folder, (f"{name}.item",), ".item file"))
        items = _items(files[-1], mapping["item"], report)
    if has_file(folder, f"{name}.user"):
        files.append(the_file(folder, (f"{name}.user",), ".user file"))
        rows = _read(files[-1], report, (mapping["user"],))
        rows = unique_rows(rows, mapping["user"], files[-1].name, report)
        users = pa.table(
            {
                "user_id": rows[mapping["user"]],
                **{key: _first(rows, (key,)) for key in ("age", "occupation")},
            }
        )
    if descriptions is not None:
        if items is None:
            raise ValueError("descriptions need an .item file to be joined to")
        items = join_descriptions(items, read_descriptions(descriptions, report))
        files.append(Path(descriptions))
    graph = None
    if has_file(folder, f"{name}.kg"):
        files.append(the_file(folder, (f"{name}.kg",), ".kg file"))
        link = None
        if has_file(folder, f"{name}.link"):
            link = the_file(folder, (f"{name}.link",), ".link file")
            files.append(link)
        graph = _graph(files[-1 if link is None else -2], link, report)
    dataset = build_dataset(
        interactions,
        users,
        items,
        report,
        file=path.name,
        name=name,
        source=source_of("recbole", files),
        split=split,
    )
    return dataset if graph is None else with_extra_tables(dataset, {"graph": graph})


def _read(path: Path, report: Report, required) -> pa.Table:
    """The columns without their types, and `LINE`."""
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
    name = next((name for name in names if name in rows.column_names), None)
    return rows[name] if name else pa.array([""] * rows.num_rows, pa.string())


def _items(path: Path, key: str, report: Report) -> pa.Table:
    rows = unique_rows(_read(path, report, (key,)), key, path.name, report)
    titles = _first(rows, TITLES)
    genres = [
        [part.strip(",") for part in text.split() if part.strip(",")]
        for text in _first(rows, GENRES).to_pylist()
    ]
    return pa.table(
        {
            "item_id": rows[key],
            "title": pc.if_else(pc.equal(titles, ""), rows[key], titles),
            "genres": pa.array(genres, pa.list_(pa.string())),
            "description": _first(rows, DESCRIPTIONS),
        }
    )


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
