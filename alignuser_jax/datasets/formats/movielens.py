"""MovieLens in its three layouts: 100K (`u.data`), 1M (`.dat`, latin-1), latest (`.csv`).

Gender and postcode are left behind at the door: the paper's privacy rule.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from alignuser_jax.datasets.dataset import Dataset
from alignuser_jax.datasets.formats.descriptions import join_descriptions, read_descriptions
from alignuser_jax.datasets.reading.cleaning import SplitKind, build_dataset, unique_rows
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

AGES_1M = {
    **{"1": "under 18", "18": "18-24", "25": "25-34", "35": "35-44"},
    **{"45": "45-49", "50": "50-55", "56": "56 or older"},
}
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
GENRES_100K = (
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime"),
    *("Documentary", "Drama", "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery"),
    *("Romance", "Sci-Fi", "Thriller", "War", "Western"),
)


def read(
    directory: str | Path,
    *,
    descriptions: str | Path | None = None,
    strict: bool = False,
    split: SplitKind = "per_user",
) -> Dataset:
    """The dataset in `directory`; its layout is told by its files.

    Raises `FileNotFoundError` where no layout's files are there, `InputError`, `DirtyInput`
    (strict) or `ValueError` as `build_dataset` does.
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
    reader = layouts[present[0]]
    name, interactions, users, items, files = reader(directory, ratings, movies, report)
    if descriptions is not None:
        items = join_descriptions(items, read_descriptions(descriptions, report))
        files.append(Path(descriptions))
    return build_dataset(
        interactions,
        users,
        items,
        report,
        file=ratings.name,
        name=name,
        source=source_of("movielens", files),
        split=split,
    )


def _items(ids, titles, genres) -> pa.Table:
    return pa.table(
        {
            "item_id": ids,
            "title": titles,
            "genres": genres,
            "description": pa.array([""] * len(ids), pa.string()),
        }
    )


def _genre_lists(column: pa.ChunkedArray) -> pa.Array:
    lists = [
        [genre for genre in text.split("|") if genre and genre != "(no genres listed)"]
        for text in column.to_pylist()
    ]
    return pa.array(lists, pa.list_(pa.string()))


def _read_1m(directory: Path, ratings: Path, movies: Path, report: Report):
    columns = ("user_id", "item_id", "rating", "timestamp")
    interactions = stream_delimited(ratings, "::", columns, report, encoding="latin-1")
    table = read_delimited(
        movies, "::", ("item_id", "title", "genres"), report, encoding="latin-1"
    )
    table = unique_rows(table, "item_id", movies.name, report)
    items = _items(table["item_id"], table["title"], _genre_lists(table["genres"]))
    files, users = [ratings, movies], None
    if has_file(directory, "users.dat"):
        path = find_file(directory, "users.dat")
        names = ("user_id", "gender", "age", "occupation", "zip")
        rows = read_delimited(path, "::", names, report, encoding="latin-1")
        rows = unique_rows(rows, "user_id", path.name, report)
        jobs = {str(code): text for code, text in OCCUPATIONS_1M.items()}
        users = pa.table(
            {
                "user_id": rows["user_id"],
                "age": [AGES_1M.get(code, "") for code in rows["age"].to_pylist()],
                "occupation": [jobs.get(code, "") for code in rows["occupation"].to_pylist()],
            }
        )
        files.append(path)
    return "ml-1m", interactions, users, items, files


def _read_latest(directory: Path, ratings: Path, movies: Path, report: Report):
    table = read_delimited(movies, ",", None, report, quoted=True)
    _require(table, ("movieId", "title", "genres"), movies)
    interactions = _latest_ratings(ratings, report)
    table = unique_rows(table, "movieId", movies.name, report)
    items = _items(table["movieId"], table["title"], _genre_lists(table["genres"]))
    return "ml-latest", interactions, None, items, [ratings, movies]


def _latest_ratings(ratings: Path, report: Report) -> Iterator[pa.Table]:
    roles = {"userId": "user_id", "movieId": "item_id"}
    for table in stream_delimited(ratings, ",", None, report):
        _require(table, ("userId", "movieId", "rating", "timestamp"), ratings)
        yield table.rename_columns([roles.get(name, name) for name in table.column_names])


def _read_100k(directory: Path, ratings: Path, movies: Path, report: Report):
    columns = ("user_id", "item_id", "rating", "timestamp")
    interactions = stream_delimited(ratings, "\t", columns, report)
    flags = [f"genre_{n}" for n in range(len(GENRES_100K))]
    names = ("item_id", "title", "release", "video", "url", *flags)
    table = read_delimited(movies, "|", names, report, encoding="latin-1")
    table = unique_rows(table, "item_id", movies.name, report)
    marks = [table[flag].to_pylist() for flag in flags]
    genres = [
        [genre for genre, mark in zip(GENRES_100K, row, strict=True) if mark == "1"]
        for row in zip(*marks, strict=True)
    ]
    items = _items(table["item_id"], table["title"], pa.array(genres, pa.list_(pa.string())))
    files, users = [ratings, movies], None
    if has_file(directory, "u.user"):
        path = find_file(directory, "u.user")
        names = ("user_id", "age", "gender", "occupation", "zip")
        rows = read_delimited(path, "|", names, report, encoding="latin-1")
        rows = unique_rows(rows, "user_id", path.name, report)
        users = rows.select(["user_id", "age", "occupation"])
        files.append(path)
    return "ml-100k", interactions, users, items, files


def _require(table: pa.Table, names: tuple[str, ...], path: Path) -> None:
    missing = [name for name in names if name not in table.column_names]
    if missing:
        raise InputError(
            f"{path} lacks the columns {missing}: it has "
            f"{[n for n in table.column_names if n != LINE]}"
        )
