"""Read a recommender from a file of recommendations."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from alignuser_jax.recommenders.base import Catalogue, digest
from alignuser_jax.recommenders.foreign.scores import ScoredUsers

USER = ("user_id", "user", "userId", "userID", "uid")


ITEM = ("item_id", "item", "itemId", "itemID", "iid")


SCORE = ("score", "prediction", "rating")


SUFFIXES = (".tsv", ".csv", ".txt", ".parquet")


def from_recs_file(path: str | Path, *, name: str = "") -> ScoredUsers:
    """From rows (user, item, score): Parquet, or text separated by tabs (.csv: by commas).

    Columns are found by name (user_id, item_id, score and the like) where there is a header,
    else they are the first three, as elliot writes them. Each user's best scores come first,
    ties in the file's order. Raises `ValueError` that says which row is wrong.
    """
    path = Path(path)
    users, items, scores = _read_table(path)
    if not np.isfinite(scores).all():
        row = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise ValueError(f"{path}: row {row} has score {scores[row]}, expected a number")
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
    catalogue = Catalogue(item_ids.tolist())
    starts = np.searchsorted(user, np.arange(len(user_ids) + 1))
    ranks = -(np.arange(len(user)) - starts[user]).astype(np.float32)

    def row(code: int) -> np.ndarray:
        own = slice(starts[code], starts[code + 1])
        ranking = np.full(len(catalogue), -np.inf, np.float32)
        ranking[item[own]] = ranks[own]
        return ranking

    often = np.bincount(item, minlength=len(catalogue)).astype(np.float32)
    version = digest({"kind": "recs"}, catalogue.item_ids, user_ids.tolist(), user, item)
    return ScoredUsers(name or path.stem, version, catalogue, user_ids.tolist(), row, often)


def _read_table(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    if not path.is_file():
        raise FileNotFoundError(f"no recommendations file {path}")
    if path.suffix == ".parquet":
        table = pa.parquet.read_table(path)
        names = table.column_names
    else:
        delimiter, quoting = ("\t", csv.QUOTE_NONE)  # as elliot writes it
        if path.suffix == ".csv":
            delimiter, quoting = (",", csv.QUOTE_MINIMAL)
        with path.open(encoding="utf-8-sig") as text:
            first = next(csv.reader(text, delimiter=delimiter, quoting=quoting), [])
        headless = len(first) >= 3 and _is_number(first[2])
        names = [f"column {n}" for n in range(len(first))] if headless else first
        try:
            table = pa.csv.read_csv(
                path,
                read_options=pa.csv.ReadOptions(column_names=names, skip_rows=not headless),
                parse_options=pa.csv.ParseOptions(
                    delimiter=delimiter,
                    quote_char='"' if quoting == csv.QUOTE_MINIMAL else False,
                    newlines_in_values=quoting == csv.QUOTE_MINIMAL,
                ),
                convert_options=pa.csv.ConvertOptions(
                    column_types={n: pa.string() for n in names}, strings_can_be_null=False
                ),
            )
        except pa.ArrowInvalid as error:
            raise ValueError(f"{path} is no table of user, item, score: {error}") from error
        if headless:
            names = [USER[0], ITEM[0], SCORE[0], *names[3:]]
            table = table.rename_columns(names)
    columns = []
    for known in (USER, ITEM, SCORE):
        found = [n for n in names if n.strip() in known]
        if len(found) != 1:
            raise ValueError(
                f"{path} has columns {', '.join(map(repr, names[:8]))}: expected one of "
                f"{', '.join(known)}"
            )
        columns.append(table[found[0]])
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
    ids = (np.array(column.cast(pa.string()).to_pylist(), object) for column in columns[:2])
    return *ids, scores.to_numpy()


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
