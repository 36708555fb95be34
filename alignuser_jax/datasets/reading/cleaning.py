"""Turn columns of strings into a clean, sorted, split `Dataset`, and report what was dropped.

The strings are read in blocks. Until the tables are made, a row takes 28 bytes of codes and
numbers, so that a log may be larger than what memory could hold as text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
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

INTERACTION_COLUMNS = {
    **{"user": "user_id", "item": "item_id"},
    **{"rating": "rating", "timestamp": "timestamp"},
}
"""Role -> name of the column of interactions; adapters that take other names map them here."""
RATING_RANGE = (0.5, 5.0)
MAX_TIMESTAMP = 4_102_444_800
"""2100-01-01 in Unix seconds: a later time is in milliseconds, or wrong."""
_EXPECTED = {
    "rating": "a number from 0.5 to 5 (a log without ratings: a column of one number)",
    "timestamp": "seconds since 1970 (milliseconds: divide by 1000; dates: convert)",
}
BLOCK_ROWS = 1 << 20
"""Rows that are cleaned at a time."""
UNUSABLE = "id with control characters or over 512 bytes"
"""The report's name for an id that `unusable_ids` refuses."""
_NUMBER = r"^\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*$"


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    """Parse a column as float64[rows], with NaN where the text is no number."""
    try:
        return pc.cast(column, pa.float64()).to_numpy()
    except pa.ArrowInvalid:  # some row is no number: find out which
        pass
    good = pc.match_substring_regex(column, _NUMBER)
    text = pc.if_else(good, pc.utf8_trim_whitespace(column), pa.scalar("nan"))
    return pc.cast(text, pa.float64()).to_numpy()


@dataclass(frozen=True, eq=False)
class RawLog:
    """A log as an adapter read it: columns of strings, and what the manifest says of them.

    Attributes:
        interactions: The columns user_id, item_id, rating and timestamp as strings and `LINE`
            as int64, in one table or in blocks in the order of the file (`stream_delimited`).
        users: The columns user_id, age and occupation with distinct ids (`unique_rows`), or
            `None` when the log says nothing of its users.
        items: The columns item_id, title, genres and description with distinct ids, or `None`:
            then the items are those interacted with, titled by their ids.
        file: Name of the interactions file, for the report.
        name: Name of the dataset.
        source: Where it came from (`source_of`), for the manifest.
        split: How to split: per user, or at two moments for all users.
        shares: Shares of train, validation and test.
        synthetic: Whether the log was generated; every page and table that shows it says so.
        truth: True utilities of a synthetic log, by name.
    """

    interactions: pa.Table | Iterable[pa.Table]
    users: pa.Table | None
    items: pa.Table | None
    file: str
    name: str
    source: dict[str, Any]
    split: SplitKind = "per_user"
    shares: tuple[float, float, float] = SHARES
    synthetic: bool = False
    truth: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(eq=False)
class _Columns:
    """The usable interactions as numbers, one entry each, in file order."""

    user: np.ndarray  # int32 codes, in order of appearance
    item: np.ndarray  # int32 codes
    rating: np.ndarray  # float32
    time: np.ndarray  # float64 seconds
    n_users: int  # users of the code space; some may have no usable interaction
    n_items: int


def build_dataset(raw: RawLog, report: Report) -> Dataset:
    """Clean, sort and split a log, and report what was dropped.

    These rows are dropped, and counted with their line: an empty or unusable id, a rating that
    is no number or not in 0.5 to 5, a timestamp that is no number or not in 1970 to 2100, an
    item that the item file does not list, a second rating of the same item by the same user
    (the first in the file stays). Users without interactions are left out, items without are
    not: a recommender can still show them.

    Args:
        raw: The log's columns of strings.
        report: Collects what is dropped; `Report(strict=True)` refuses it instead.

    Raises:
        DirtyInput: If `report` is strict and some row would be dropped.
        ValueError: If no usable interaction is left.

    Example:
        >>> log = pa.table({"user_id": ["u", "u"], "item_id": ["a", "b"], "rating": ["4", "9"],
        ...                 "timestamp": ["10", "20"], LINE: [1, 2]})
        >>> raw = RawLog(log, None, None, "log.csv", "mine", {"format": "example"})
        >>> dataset = build_dataset(raw, Report())
        >>> len(dataset.log), dataset.report.counts
        (1, {'bad rating': 1})
    """
    user_ids, item_ids = _Ids(), _Ids()
    columns = _usable_rows(raw, user_ids, item_ids, report)
    report.check()
    if not len(columns.user):
        raise ValueError(f"{raw.file}: no usable interaction is left\n{report}")
    user_order = np.flatnonzero(np.bincount(columns.user, minlength=columns.n_users))
    log = _sorted_log(columns, user_order)
    item_names = item_ids.array()
    items = raw.items if raw.items is not None else _items_of(columns, item_names)
    user_names = user_ids.array().take(pa.array(user_order))
    del columns, user_ids, item_ids  # a large log is not held twice
    log = split_log(log, raw.split, raw.shares)
    items = plain_columns(plain_genres(items, report), ("title", "description"), report)
    users = raw.users
    if users is not None:
        users = plain_columns(users, ("age", "occupation"), report)
    tables = (
        _user_table(user_names.to_pylist(), users),
        _item_table(items),
        interaction_table(log, user_names, item_names),
    )
    manifest = {
        "format_version": FORMAT_VERSION,
        "name": raw.name,
        "synthetic": raw.synthetic,
        "hash": content_hash(*tables),
        "source": raw.source,
        **describe_log(log, tables[1].num_rows, raw.split, raw.shares),
        "report": report.describe(),
    }
    return Dataset(*tables, manifest=manifest, truth=raw.truth)


def _usable_rows(raw: RawLog, user_ids: _Ids, item_ids: _Ids, report: Report) -> _Columns:
    """Clean the interactions block by block and drop repeated pairs of user and item."""
    catalogue = None if raw.items is None else raw.items["item_id"].combine_chunks()
    clean = [
        _clean_block(block, user_ids, item_ids, catalogue, report, raw.file)
        for block in _blocks(raw.interactions)
    ]
    columns = []
    while clean and clean[0]:  # column by column, so that little is held twice
        columns.append(np.concatenate([block.pop(0) for block in clean]))
    user, item, rating, time, line = columns or [np.zeros(0, np.int32)] * 5
    if (first := _first_of_pairs(user, item, len(item_ids))) is not None:
        report.add("duplicate rating", raw.file, line[~first])
        user, item, rating, time = user[first], item[first], rating[first], time[first]
    return _Columns(user, item, rating, time, len(user_ids), len(item_ids))


def _sorted_log(columns: _Columns, user_order: np.ndarray) -> Log:
    """Return the log of the users in `user_order`, by user, then time, ties in file order."""
    code_of = np.full(columns.n_users, -1, np.int32)
    code_of[user_order] = np.arange(len(user_order), dtype=np.int32)
    user = code_of[columns.user]
    order = np.lexsort((columns.time, user))  # stable: ties in file order
    return Log(
        user[order],
        columns.item[order],
        columns.rating[order],
        columns.time[order].astype(np.int64),
        np.zeros(len(order), np.int8),
        len(user_order),
        columns.n_items,
    )


def _items_of(columns: _Columns, names: pa.Array) -> pa.Table:
    """Return the item table of a log without one: the items interacted with, titled by id."""
    ids = names.take(pa.array(np.flatnonzero(np.bincount(columns.item)))).to_pylist()
    blank = [""] * len(ids)
    return pa.table(
        {"item_id": ids, "title": ids, "genres": [[]] * len(ids), "description": blank}
    )


def _blocks(interactions: pa.Table | Iterable[pa.Table]) -> Iterator[pa.Table]:
    tables = [interactions] if isinstance(interactions, pa.Table) else interactions
    for table in tables:
        for start in range(0, table.num_rows, BLOCK_ROWS):
            yield table.slice(start, BLOCK_ROWS)


class _Ids:
    """Integer codes of strings, in order of first appearance over all blocks."""

    def __init__(self) -> None:
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
    catalogue: pa.Array | None,
    report: Report,
    file: str,
) -> list[np.ndarray]:
    """Return the user and item codes, ratings, times and lines of a block's usable rows.

    A row is judged by itself here; rows that repeat another are found later, over all blocks.
    """
    report.read += block.num_rows
    line = block[LINE].to_numpy()
    keep = np.ones(len(line), bool)

    def drop(problem: str, bad: np.ndarray, column: str = "") -> None:
        bad = bad & keep
        report.add(problem, file, line[bad])
        keep[bad] = False
        if column and bad.any():
            value = block[column][int(bad.argmax())].as_py()
            report.example(problem, value, _EXPECTED[column])

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
    if catalogue is not None:
        drop("unknown item id", ~_where(item, lambda ids: pc.is_in(ids, value_set=catalogue)))
    columns = user_ids.encode(user), item_ids.encode(item), rating.astype(np.float32), time
    return [column[keep] for column in (*columns, line)]


def _is_empty(ids: pa.Array) -> pa.Array:
    return pc.equal(ids, "")


def _where(column: pa.DictionaryArray, holds: Callable[[pa.Array], pa.Array]) -> np.ndarray:
    """Return bool[rows]: where `holds`, computed once for each distinct string, is true."""
    of_distinct = holds(column.dictionary).to_numpy(zero_copy_only=False).astype(bool)
    return of_distinct[column.indices.to_numpy()]


def _first_of_pairs(user: np.ndarray, item: np.ndarray, n_items: int) -> np.ndarray | None:
    """Return bool[rows], False where an earlier row has the same user and item.

    Returns `None` when no pair repeats.
    """
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
    """Return `rows` with trimmed, non-empty and distinct ids in the column `key`.

    The first row of each id stays. Rows with an empty, unusable or repeated id are dropped and
    reported with their line.

    Args:
        rows: A table of strings with the columns `key` and `LINE`.
        key: Name of the id column.
        file: Name of the file, for the report.
        report: Collects what is dropped.

    Returns:
        The rows without the column `LINE`.
    """
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
    row_of = {} if users is None else {row["user_id"]: row for row in users.to_pylist()}
    blank = {"age": "", "occupation": ""}
    rows = [row_of.get(user, blank) for user in ids]
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
