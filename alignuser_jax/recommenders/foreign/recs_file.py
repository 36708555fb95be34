"""Make a recommender of a file of recommendations: rows of user, item and score."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from alignuser_jax.recommenders.base import ItemIndex, digest
from alignuser_jax.recommenders.foreign.scored import ScoredRecommender, score_by_user

if TYPE_CHECKING:
    import pyarrow as pa

USER = ("user_id", "user", "userId", "userID", "uid")
ITEM = ("item_id", "item", "itemId", "itemID", "iid")
SCORE = ("score", "prediction", "rating")
"""Names that a column of users, items or scores may have."""
SUFFIXES = (".tsv", ".csv", ".txt", ".parquet")
"""Suffixes of the files that are read."""


def from_recs_file(path: str | Path, *, name: str = "") -> ScoredRecommender:
    """Make a recommender of a file with rows of user, item and score.

    Each user's best scores come first, and equal scores stay in the file's order. A user who is
    not in the file gets the items that most users have.

    Example:
        >>> lines = ["user_id,item_id,score", "ann,heat,0.9", "ann,alien,0.7"]
        >>> written = Path("recs.csv").write_text(chr(10).join(lines))
        >>> recommender = from_recs_file("recs.csv")
        >>> recommender.recommend([RecommendationRequest("ann", (), k=1)])[0].item_ids
        ('heat',)

    Args:
        path: a Parquet file, or text separated by tabs (.csv: by commas). Columns are found by
            name (user_id, item_id, score and the like) where there is a header; without one
            they are the first three, as elliot writes them.
        name: for tables; the file's name without its suffix when it is not given.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if a row is wrong; the message says which.
    """
    path = Path(path)
    users, items, scores = _read_columns(path)
    if not np.isfinite(scores).all():
        number = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise ValueError(f"{path}: row {number} has score {scores[number]}, expected a number")
    user_ids, user = np.unique(users, return_inverse=True)
    item_ids, item = np.unique(items, return_inverse=True)
    order = np.lexsort((-scores, user))  # stable: ties stay in the file's order
    user, item, scores = user[order], item[order], scores[order]
    pairs = user.astype(np.int64) * len(item_ids) + item
    if len(np.unique(pairs)) != len(pairs):
        sorted_pairs = np.sort(pairs)
        twice = int(sorted_pairs[1:][np.diff(sorted_pairs) == 0][0])
        raise ValueError(
            f"{path}: user {user_ids[twice // len(item_ids)]!r} has item "
            f"{item_ids[twice % len(item_ids)]!r} twice"
        )
    index = ItemIndex(item_ids.tolist())
    starts = np.searchsorted(user, np.arange(len(user_ids) + 1))
    ranks = -(np.arange(len(user)) - starts[user]).astype(np.float32)

    def row(code: int) -> np.ndarray:
        own = slice(starts[code], starts[code + 1])
        ranking = np.full(len(index), -np.inf, np.float32)
        ranking[item[own]] = ranks[own]
        return ranking

    counts = np.bincount(item, minlength=len(index)).astype(np.float32)
    version = digest({"kind": "recs"}, index.item_ids, user_ids.tolist(), user, item)
    score = score_by_user(user_ids.tolist(), row)
    return ScoredRecommender(name or path.stem, version, index, score, counts)


def _read_columns(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return users (object[n] of str), items (object[n] of str) and scores (float64[n])."""
    import pyarrow as pa
    import pyarrow.parquet

    if not path.is_file():
        raise FileNotFoundError(f"no recommendations file {path}")
    parquet = path.suffix == ".parquet"
    table = pa.parquet.read_table(path) if parquet else _read_text(path)
    columns = [_column(path, table, names) for names in (USER, ITEM, SCORE)]
    if not len(table):
        raise ValueError(f"{path} has no rows")
    if any(column.null_count for column in columns):
        raise ValueError(f"{path} has rows without a user, an item or a score")
    for column in columns[:2]:
        if pa.types.is_floating(column.type):
            raise ValueError(f"{path} has ids of type {column.type}: expected text or integers")
    try:
        scores = columns[2].cast(pa.float64())
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} has a score that is no number: {error}") from error
    users, items = (
        np.array(column.cast(pa.string()).to_pylist(), object) for column in columns[:2]
    )
    return users, items, scores.to_numpy()


def _column(path: Path, table: pa.Table, names: tuple[str, ...]) -> pa.ChunkedArray:
    """Return the only column of the table that has one of the names."""
    matches = [column for column in table.column_names if column.strip() in names]
    if len(matches) != 1:
        raise ValueError(
            f"{path} has columns {', '.join(map(repr, table.column_names[:8]))}: expected one "
            f"of {', '.join(names)}"
        )
    return table[matches[0]]


def _read_text(path: Path) -> pa.Table:
    """Read a separated file as a table of strings, with or without a header."""
    import pyarrow as pa
    import pyarrow.csv

    comma = path.suffix == ".csv"
    delimiter = "," if comma else "\t"  # elliot writes tabs, and quotes are letters there
    with path.open(encoding="utf-8-sig") as text:
        if comma:
            lines = csv.reader(text)
        else:
            lines = csv.reader(text, delimiter=delimiter, quoting=csv.QUOTE_NONE)
        first = next(lines, [])
    headless = len(first) >= 3 and _is_number(first[2])
    names = [f"column {n}" for n in range(len(first))] if headless else first
    try:
        table = pa.csv.read_csv(
            path,
            read_options=pa.csv.ReadOptions(column_names=names, skip_rows=not headless),
            parse_options=pa.csv.ParseOptions(
                delimiter=delimiter,
                quote_char='"' if comma else False,
                newlines_in_values=comma,
            ),
            convert_options=pa.csv.ConvertOptions(
                column_types={n: pa.string() for n in names}, strings_can_be_null=False
            ),
        )
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is no table of user, item, score: {error}") from error
    return table.rename_columns([USER[0], ITEM[0], SCORE[0], *names[3:]]) if headless else table


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
