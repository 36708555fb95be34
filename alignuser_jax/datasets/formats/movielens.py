"""Read MovieLens in its three layouts: 100K (`u.data`), 1M (`.dat`, latin-1), latest (`.csv`).

Gender and postcode are never read (the paper's privacy rule).

Example:
    >>> from alignuser_jax.datasets.formats import movielens
    >>> dataset = movielens.read("ml-1m")
    >>> dataset.save("runs/ml-1m")
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from alignuser_jax.datasets.dataset import Dataset
from alignuser_jax.datasets.formats.descriptions import with_descriptions
from alignuser_jax.datasets.reading.cleaning import RawLog, build_dataset, unique_rows
from alignuser_jax.datasets.reading.delimited import (
    LINE,
    InputError,
    find_file,
    has_file,
    read_delimited,
    stream_delimited,
)
from alignuser_jax.datasets.report import Report
from alignuser_jax.datasets.sources import source_of
from alignuser_jax.datasets.splits import SplitKind

AGES_1M = {
    **{"1": "under 18", "18": "18-24", "25": "25-34", "35": "35-44"},
    **{"45": "45-49", "50": "50-55", "56": "56 or older"},
}
"""Code -> age group, as in the README of MovieLens 1M."""
OCCUPATIONS_1M = dict(
    enumerate(
        [
            *("other", "academic or educator", "artist", "clerical or administrative"),
            *("college or graduate student", "customer service", "doctor or health care"),
            *("executive or managerial", "farmer", "homemaker", "K-12 student", "lawyer"),
            *("programmer", "retired", "sales or marketing", "scientist", "self-employed"),
            *("technician or engineer", "tradesman or craftsman", "unemployed", "writer"),
        ]
    )
)
"""Code -> occupation, as in the README of MovieLens 1M."""
GENRES_100K = (
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime"),
    *("Documentary", "Drama", "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery"),
    *("Romance", "Sci-Fi", "Thriller", "War", "Western"),
)
"""The genre flags of `u.item`, in the order of its columns."""
_RATING_COLUMNS = ("user_id", "item_id", "rating", "timestamp")


@dataclass
class _Parts:
    """What one layout holds, as `build_dataset` takes it, and the files read."""

    name: str
    interactions: Iterable[pa.Table]
    items: pa.Table
    users: pa.Table | None = None
    files: list[Path] = field(default_factory=list)


def read(
    directory: str | Path,
    *,
    descriptions: str | Path | None = None,
    strict: bool = False,
    split: SplitKind = "per_user",
) -> Dataset:
    """Read the MovieLens log in a folder; the names of its files tell the layout.

    Args:
        directory: The folder, with plain or gzipped files.
        descriptions: File with a description of each film (`read_descriptions`).
        strict: Whether to refuse dirty lines instead of dropping and counting them.
        split: How to split.

    Raises:
        FileNotFoundError: If the files of no layout are there.
        InputError: If a file cannot be read.
        DirtyInput: If the import is strict and a line would be dropped.
        ValueError: If no usable rating is left.
    """
    directory, report = Path(directory), Report(strict)
    layouts = {
        ("ratings.dat", "movies.dat"): _read_1m,
        ("ratings.csv", "movies.csv"): _read_latest,
        ("u.data", "u.item"): _read_100k,
    }
    present = [names for names in layouts if all(has_file(directory, name) for name in names)]
    if not present:
        raise FileNotFoundError(
            f"no MovieLens layout in {directory}: expected "
            + ", or ".join(" and ".join(names) for names in layouts)
            + " (plain or .gz)"
        )
    ratings, movies = (find_file(directory, name) for name in present[0])
    parts = layouts[present[0]](directory, ratings, movies, report)
    files = [ratings, movies, *parts.files]
    raw = RawLog(
        parts.interactions,
        parts.users,
        with_descriptions(parts.items, descriptions, report, files),
        file=ratings.name,
        name=parts.name,
        source=source_of("movielens", files),
        split=split,
    )
    return build_dataset(raw, report)


def _items(ids: pa.ChunkedArray, titles: pa.ChunkedArray, genres: list[list[str]]) -> pa.Table:
    return pa.table(
        {
            "item_id": ids,
            "title": titles,
            "genres": pa.array(genres, pa.list_(pa.string())),
            "description": pa.array([""] * len(ids), pa.string()),
        }
    )


def _genre_lists(column: pa.ChunkedArray) -> list[list[str]]:
    return [
        [genre for genre in text.split("|") if genre and genre != "(no genres listed)"]
        for text in column.to_pylist()
    ]


def _rows(
    path: Path, separator: str, names: Sequence[str], key: str, report: Report
) -> pa.Table:
    """Read a table without a header, one row for each id in the column `key`."""
    table = read_delimited(path, separator, names, report, encoding="latin-1")
    return unique_rows(table, key, path.name, report)


def _read_1m(directory: Path, ratings: Path, movies: Path, report: Report) -> _Parts:
    interactions = stream_delimited(ratings, "::", _RATING_COLUMNS, report, encoding="latin-1")
    table = _rows(movies, "::", ("item_id", "title", "genres"), "item_id", report)
    items = _items(table["item_id"], table["title"], _genre_lists(table["genres"]))
    parts = _Parts("ml-1m", interactions, items)
    if has_file(directory, "users.dat"):
        path = find_file(directory, "users.dat")
        names = ("user_id", "gender", "age", "occupation", "zip")
        rows = _rows(path, "::", names, "user_id", report)
        jobs = {str(code): text for code, text in OCCUPATIONS_1M.items()}
        parts.users = pa.table(
            {
                "user_id": rows["user_id"],
                "age": [AGES_1M.get(code, "") for code in rows["age"].to_pylist()],
                "occupation": [jobs.get(code, "") for code in rows["occupation"].to_pylist()],
            }
        )
        parts.files.append(path)
    return parts


def _read_latest(directory: Path, ratings: Path, movies: Path, report: Report) -> _Parts:
    table = read_delimited(movies, ",", None, report, quoted=True)
    _require(table, ("movieId", "title", "genres"), movies)
    interactions = _latest_ratings(ratings, report)
    table = unique_rows(table, "movieId", movies.name, report)
    items = _items(table["movieId"], table["title"], _genre_lists(table["genres"]))
    return _Parts("ml-latest", interactions, items)


def _latest_ratings(ratings: Path, report: Report) -> Iterator[pa.Table]:
    names = {"userId": "user_id", "movieId": "item_id"}
    for table in stream_delimited(ratings, ",", None, report):
        _require(table, ("userId", "movieId", "rating", "timestamp"), ratings)
        yield table.rename_columns([names.get(name, name) for name in table.column_names])


def _read_100k(directory: Path, ratings: Path, movies: Path, report: Report) -> _Parts:
    interactions = stream_delimited(ratings, "\t", _RATING_COLUMNS, report)
    flags = [f"genre_{n}" for n in range(len(GENRES_100K))]
    names = ("item_id", "title", "release", "video", "url", *flags)
    table = _rows(movies, "|", names, "item_id", report)
    marks = [table[flag].to_pylist() for flag in flags]
    genres = [
        [genre for genre, mark in zip(GENRES_100K, row, strict=True) if mark == "1"]
        for row in zip(*marks, strict=True)
    ]
    parts = _Parts("ml-100k", interactions, _items(table["item_id"], table["title"], genres))
    if has_file(directory, "u.user"):
        path = find_file(directory, "u.user")
        names = ("user_id", "age", "gender", "occupation", "zip")
        rows = _rows(path, "|", names, "user_id", report)
        parts.users = rows.select(["user_id", "age", "occupation"])
        parts.files.append(path)
    return parts


def _require(table: pa.Table, names: tuple[str, ...], path: Path) -> None:
    missing = [name for name in names if name not in table.column_names]
    if missing:
        raise InputError(
            f"{path} lacks the columns {missing}: it has "
            f"{[n for n in table.column_names if n != LINE]}"
        )
