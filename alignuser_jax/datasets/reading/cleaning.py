"""From columns of strings to a clean, sorted, split `Dataset`, and a report of what was not.

The strings pass by in blocks; what stays of a row is 28 bytes of codes and numbers until the
tables are made, so a log may be larger than memory would hold as text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from alignuser_jax.datasets.dataset import (
    FORMAT_VERSION,
    Dataset,
    content_hash,
    describe_log,
    interaction_table,
)
from alignuser_jax.datasets.log import Log
from alignuser_jax.datasets.reading.delimited import LINE
from alignuser_jax.datasets.reading.values import plain_columns, plain_genres, unusable_ids
from alignuser_jax.datasets.report import Report
from alignuser_jax.datasets.splits import SHARES, SplitKind, split_log

RATING_RANGE = (0.5, 5.0)
MAX_TIMESTAMP = 4_102_444_800
"""2100-01-01: a later time is milliseconds or nonsense."""
EXPECTED = {
    "rating": "a number from 0.5 to 5 (a log without ratings: a column of one number)",
    "timestamp": "seconds since 1970 (milliseconds: divide by 1000; dates: convert)",
}
BLOCK_ROWS = 1 << 20
"""Rows that are cleaned at a time, and rows of a chunk of the interaction table."""
UNUSABLE = "id with control characters or over 512 bytes"
_NUMBER = r"^\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*$"


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    """float64, NaN where the text is no number."""
    try:
        return pc.cast(column, pa.float64()).to_numpy()
    except pa.ArrowInvalid:  # some line is dirty: look at each
        pass
    good = pc.match_substring_regex(column, _NUMBER)
    text = pc.if_else(good, pc.utf8_trim_whitespace(column), pa.scalar("nan"))
    return pc.cast(text, pa.float64()).to_numpy()


def build_dataset(
    interactions: pa.Table | Iterable[pa.Table],
    users: pa.Table | None,
    items: pa.Table | None,
    report: Report,
    *,
    file: str,
    name: str,
    source: dict[str, Any],
    split: SplitKind = "per_user",
    shares: tuple[float, float, float] = SHARES,
    synthetic: bool = False,
    truth: dict[str, np.ndarray] | None = None,
) -> Dataset:
    """interactions: user_id, item_id, rating, timestamp as strings, `LINE` int64, in one table
    or in blocks in the order of the file (`stream_delimited`). users: user_id, age, occupation.
    items: item_id, title, genres, description; without it the items are those interacted with,
    titled by their ids. Ids of users and items are unique there (`unique_rows`). Users without
    interactions are left out, items without are not.

    Dropped and counted, each with its line: an empty or unusable id, a rating that is no
    number or outside 0.5 to 5, a timestamp that is no number or not in 1970 to 2100, an item
    that the item file does not know, a second rating of the same item by the same user (the
    first in the file stays). Raises `DirtyInput` where the report is strict, `ValueError` where
    nothing is left.
    """
    user_ids, item_ids = _Ids(), _Ids()
    known = None if items is None else items["item_id"].combine_chunks()
    clean = [
        _clean_block(block, user_ids, item_ids, known, report, file)
        for block in _blocks(interactions)
    ]
    columns = []
    while clean and clean[0]:  # column by column, so that little is held twice
        columns.append(np.concatenate([block.pop(0) for block in clean]))
    user, item, rating, time, line = columns or [np.zeros(0, np.int32)] * 5
    if (first := _first_of_pairs(user, item, len(item_ids))) is not None:
        report.add("duplicate rating", file, line[~first])
        user, item, rating, time = user[first], item[first], rating[first], time[first]
    del line, columns
    report.check()
    if not len(user):
        raise ValueError(f"{file}: no usable interaction is left\n{report}")
    user_order = np.flatnonzero(np.bincount(user, minlength=len(user_ids)))
    code_of = np.full(len(user_ids), -1, np.int32)  # codes are in order of appearance
    code_of[user_order] = np.arange(len(user_order), dtype=np.int32)
    user = code_of[user]
    order = np.lexsort((time, user))  # stable: ties in file order
    names = item_ids.array()
    if items is None:
        ids = names.take(pa.array(np.flatnonzero(np.bincount(item)))).to_pylist()
        empty_text = [""] * len(ids)
        items = pa.table(
            {"item_id": ids, "title": ids, "genres": [[]] * len(ids), "description": empty_text}
        )
    log = Log(
        user[order],
        item[order],
        rating[order],
        time[order].astype(np.int64),
        np.zeros(len(order), np.int8),
        len(user_order),
        len(item_ids),
    )
    del user, item, rating, time, order
    items = plain_columns(plain_genres(items, report), ("title", "description"), report)
    if users is not None:
        users = plain_columns(users, ("age", "occupation"), report)
    log = split_log(log, split, shares)
    user_names = user_ids.array().take(pa.array(user_order))
    del user_ids, item_ids
    tables = (
        _user_table(user_names.to_pylist(), users),
        _item_table(items),
        interaction_table(log, user_names, names),
    )
    manifest = {
        "format_version": FORMAT_VERSION,
        "name": name,
        "synthetic": synthetic,
        "hash": content_hash(*tables),
        "source": source,
        **describe_log(log, tables[1].num_rows, split, shares),
        "report": report.describe(),
    }
    return Dataset(*tables, manifest=manifest, truth=truth or {})


def _blocks(interactions: pa.Table | Iterable[pa.Table]) -> Iterator[pa.Table]:
    tables = [interactions] if isinstance(interactions, pa.Table) else interactions
    for table in tables:
        for start in range(0, table.num_rows, BLOCK_ROWS):
            yield table.slice(start, BLOCK_ROWS)


class _Ids:
    """Codes of strings in order of appearance, over many blocks."""

    def __init__(self):
        self._codes: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._codes)

    def encode(self, column: pa.DictionaryArray) -> np.ndarray:
        codes = self._codes
        here = [codes.setdefault(name, len(codes)) for name in column.dictionary.to_pylist()]
        return np.array(here, np.int32)[column.indices.to_numpy()]

    def array(self) -> pa.Array:
        return pa.array(self._codes, pa.string())


def _clean_block(
    block: pa.Table,
    user_ids: _Ids,
    item_ids: _Ids,
    known: pa.Array | None,
    report: Report,
    file: str,
) -> list[np.ndarray]:
    """User and item codes, ratings, times and lines of the rows that are good by themselves."""
    report.read += block.num_rows
    line = block[LINE].to_numpy()
    keep = np.ones(len(line), bool)

    def drop(problem: str, bad: np.ndarray, column: str = "") -> None:
        bad = bad & keep
        report.add(problem, file, line[bad])
        keep[bad] = False
        if column and bad.any():
            value = block[column][int(bad.argmax())].as_py()
            report.example(problem, value, EXPECTED[column])

    user, item = (
        pc.utf8_trim_whitespace(pc.fill_null(block[name], ""))
        .combine_chunks()
        .dictionary_encode()
        for name in ("user_id", "item_id")
    )
    rating, time = _numbers(block["rating"]), _numbers(block["timestamp"])
    drop("empty user or item id", _where(user, _is_empty) | _where(item, _is_empty))
    drop(UNUSABLE, _where(user, unusable_ids) | _where(item, unusable_ids))
    with np.errstate(invalid="ignore"):
        drop(
            "bad rating", ~((rating >= RATING_RANGE[0]) & (rating <= RATING_RANGE[1])), "rating"
        )
        drop("bad timestamp", ~((time >= 0) & (time < MAX_TIMESTAMP)), "timestamp")
    if known is not None:
        drop("unknown item id", ~_where(item, lambda ids: pc.is_in(ids, value_set=known)))
    columns = user_ids.encode(user), item_ids.encode(item), rating.astype(np.float32), time
    return [column[keep] for column in (*columns, line)]


def _is_empty(ids: pa.Array) -> pa.Array:
    return pc.equal(ids, "")


def _where(column: pa.DictionaryArray, holds) -> np.ndarray:
    """bool[rows]: where `holds` is true of the string."""
    of_distinct = holds(column.dictionary).to_numpy(zero_copy_only=False).astype(bool)
    return of_distinct[column.indices.to_numpy()]


def _first_of_pairs(user: np.ndarray, item: np.ndarray, n_items: int) -> np.ndarray | None:
    """bool[rows], False where an earlier row has the same user and item; None where none."""
    pairs = user * np.int64(n_items) + item
    order = np.argsort(pairs, kind="stable")
    pairs = pairs[order]
    repeated = order[1:][pairs[1:] == pairs[:-1]]
    if not len(repeated):
        return None
    first = np.ones(len(user), bool)
    first[repeated] = False
    return first


def unique_rows(rows: pa.Table, key: str, file: str, report: Report) -> pa.Table:
    """`rows` with trimmed, non-empty, distinct ids in the column `key`; the first of each id
    stays, the lines of the others are reported. Drops `LINE`."""
    ids = pc.utf8_trim_whitespace(rows[key])
    codes, names = _codes(ids)
    first = np.zeros(len(codes), bool)
    first[np.unique(codes, return_index=True)[1]] = True
    empty = np.array([name == "" for name in names], bool)[codes]
    lines = rows[LINE].to_numpy()
    report.add("empty id", file, lines[empty])
    unusable = unusable_ids(ids).to_numpy(zero_copy_only=False)
    report.add(UNUSABLE, file, lines[unusable])
    report.add("duplicate id", file, lines[~first & ~empty & ~unusable])
    rows = rows.set_column(rows.column_names.index(key), key, ids)
    return rows.drop_columns(LINE).filter(pa.array(first & ~empty & ~unusable))


def _codes(column: pa.ChunkedArray) -> tuple[np.ndarray, list[str]]:
    encoded = column.combine_chunks().dictionary_encode()
    return encoded.indices.to_numpy().astype(np.int64), encoded.dictionary.to_pylist()


def _user_table(ids: list[str], users: pa.Table | None) -> pa.Table:
    known = {} if users is None else {row["user_id"]: row for row in users.to_pylist()}
    blank = {"age": "", "occupation": ""}
    rows = [known.get(user, blank) for user in ids]
    return pa.table(
        {
            "user_id": pa.array(ids, pa.string()),
            "age": pa.array([row["age"] or "" for row in rows], pa.string()),
            "occupation": pa.array([row["occupation"] or "" for row in rows], pa.string()),
        }
    )


def _item_table(items: pa.Table) -> pa.Table:
    genres = pc.fill_null(items["genres"].cast(pa.list_(pa.string())), [])
    return pa.table(
        {
            "item_id": items["item_id"].cast(pa.string()),
            "title": pc.fill_null(items["title"].cast(pa.string()), ""),
            "genres": genres,
            "description": pc.fill_null(items["description"].cast(pa.string()), ""),
        }
    )
