"""From columns of strings to a clean, sorted, split `Dataset`, and a report of what was not."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from alignuser_jax.datasets.dataset import FORMAT_VERSION, Dataset, content_hash
from alignuser_jax.datasets.delimited import LINE
from alignuser_jax.datasets.log import SPLITS, Log
from alignuser_jax.datasets.report import Report
from alignuser_jax.datasets.splits import SHARES, chronological_split, global_time_split
from alignuser_jax.datasets.values import plain_columns, unusable_ids

SplitKind = Literal["per_user", "global"]
RATING_RANGE = (0.5, 5.0)
MAX_TIMESTAMP = 4_102_444_800
"""2100-01-01: a later time is milliseconds or nonsense."""
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
    interactions: pa.Table,
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
    """interactions: user_id, item_id, rating, timestamp as strings, `LINE` int64. users:
    user_id, age, occupation. items: item_id, title, genres, description; without it the items
    are those interacted with, titled by their ids. Ids of users and items are unique there
    (`unique_rows`). Users without interactions are left out, items without are not.

    Dropped and counted, each with its line: an empty or unusable user or item id, a rating
    that is no number or outside 0.5 to 5, a timestamp that is no number or not in 1970 to
    2100, an item that the item file does not know, a second rating of the same item by the
    same user (the first in the file stays). Raises `DirtyInput` where the report is strict,
    `ValueError` where nothing is left.
    """
    report.read += interactions.num_rows
    line = interactions[LINE].to_numpy()
    keep = np.ones(len(line), bool)

    def drop(problem: str, bad: np.ndarray) -> None:
        bad = bad & keep
        report.add(problem, file, line[bad])
        keep[bad] = False

    user, item = (
        pc.utf8_trim_whitespace(interactions[name]) for name in ("user_id", "item_id")
    )
    rating, time = _numbers(interactions["rating"]), _numbers(interactions["timestamp"])
    empty = pc.or_(pc.equal(user, ""), pc.equal(item, ""))
    drop("empty user or item id", empty.to_numpy(zero_copy_only=False))
    unusable = pc.or_(unusable_ids(user), unusable_ids(item))
    drop(UNUSABLE, unusable.to_numpy(zero_copy_only=False))
    with np.errstate(invalid="ignore"):
        drop("bad rating", ~((rating >= RATING_RANGE[0]) & (rating <= RATING_RANGE[1])))
        drop("bad timestamp", ~((time >= 0) & (time < MAX_TIMESTAMP)))
    if items is not None:
        known = pc.is_in(item, value_set=items["item_id"].combine_chunks())
        drop("unknown item id", ~known.to_numpy(zero_copy_only=False))
    user_codes, user_names = _codes(user)
    item_codes, item_names = _codes(item)
    pairs = user_codes * np.int64(len(item_names)) + item_codes
    places = np.flatnonzero(keep)
    _, first = np.unique(pairs[places], return_index=True)
    duplicate = np.zeros(len(line), bool)
    duplicate[places] = True
    duplicate[places[first]] = False
    drop("duplicate rating", duplicate)
    report.check()
    if not keep.any():
        raise ValueError(f"{file}: no usable interaction is left\n{report}")
    user_order = np.flatnonzero(np.bincount(user_codes[keep]))  # in order of appearance
    order = np.flatnonzero(keep)
    order = order[np.lexsort((time[order], user_codes[order]))]  # stable: ties in file order
    if items is None:
        item_order = np.flatnonzero(np.bincount(item_codes[keep]))
        ids = [item_names[code] for code in item_order]
        empty_text = [""] * len(ids)
        items = pa.table(
            {"item_id": ids, "title": ids, "genres": [[]] * len(ids), "description": empty_text}
        )
    code_of = np.full(len(user_names), -1)
    code_of[user_order] = np.arange(len(user_order))
    log = Log(
        code_of[user_codes[order]].astype(np.int32),
        item_codes[order].astype(np.int32),
        rating[order].astype(np.float32),
        time[order].astype(np.int64),
        np.zeros(len(order), np.int8),
        len(user_order),
        len(item_names),
    )
    items = plain_columns(items, ("title", "description"), report)
    if users is not None:
        users = plain_columns(users, ("age", "occupation"), report)
    log = (chronological_split if split == "per_user" else global_time_split)(log, shares)
    tables = (
        _user_table([user_names[code] for code in user_order], users),
        _item_table(items),
        pa.table(
            {
                "user_id": user.take(pa.array(order)).combine_chunks(),
                "item_id": item.take(pa.array(order)).combine_chunks(),
                "rating": log.rating,
                "timestamp": log.timestamp,
                "split": pa.array(SPLITS).take(pa.array(log.split)),
            }
        ),
    )
    per_split = {s: int((log.split == n).sum()) for n, s in enumerate(SPLITS)}
    manifest = {
        "format_version": FORMAT_VERSION,
        "name": name,
        "synthetic": synthetic,
        "hash": content_hash(*tables),
        "source": source,
        "counts": {
            "users": tables[0].num_rows,
            "items": tables[1].num_rows,
            "rated_items": int(np.count_nonzero(np.bincount(log.item))),
            "interactions": len(log),
        },
        "split": {"kind": split, "shares": list(shares), "counts": per_split},
        "report": report.describe(),
    }
    return Dataset(*tables, manifest=manifest, truth=truth or {})


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
