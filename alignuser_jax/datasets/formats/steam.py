"""Read Steam reviews: Kang & McAuley's dumps, those of Australian users, and a CSV form.

Steam has no stars. DEFAULT (docs/method.md section 12.2; the paper does not say): where the
file has the flag, a recommendation is 5 and its absence 1; otherwise the hours played are cut
at their quintiles into 1 to 5.

Example:
    >>> from alignuser_jax.datasets.formats import steam
    >>> dataset = steam.read("steam", crawl_year=2016)
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from alignuser_jax.datasets.dataset import Dataset
from alignuser_jax.datasets.formats.descriptions import with_descriptions
from alignuser_jax.datasets.reading.cleaning import RawLog, build_dataset, unique_rows
from alignuser_jax.datasets.reading.delimited import LINE, InputError, has_file, read_delimited
from alignuser_jax.datasets.reading.files import the_file
from alignuser_jax.datasets.reading.json_lines import ITEMS, records, require_fields, table_of
from alignuser_jax.datasets.reading.values import identifier, number, plain, seconds, text_of
from alignuser_jax.datasets.report import Report
from alignuser_jax.datasets.sources import source_of
from alignuser_jax.datasets.splits import SplitKind
from alignuser_jax.randomness import stable_key

Rating = Literal["auto", "recommend", "playtime"]
REVIEWS = (
    *("steam_reviews.json", "steam_new.json", "australian_user_reviews.json"),
    *("australian_user_reviews.csv", "steam_reviews.csv"),
)
"""Names of files of reviews, looked for in this order."""
GAMES = ("steam_games.json", "steam_games.jsonl")
"""Names of files of games, looked for in this order."""
RECOMMENDED = {"true": "5", "1": "5", "false": "1", "0": "1"}
"""The flag as the files write it -> the rating."""
QUINTILES = (20, 40, 60, 80)
"""Percentiles of the hours played at which the ratings 1 to 5 change."""
NO_YEAR = "date without a year (name the year of the crawl)"
"""The report's name for a review that cannot be dated."""
_POSTED = re.compile(r"(?:Posted )?([A-Z][a-z]+) (\d{1,2})(?:, (\d{4}))?\.?$")
_RAW = pa.schema(
    [
        *((name, pa.string()) for name in ("user_id", "item_id", "recommend", "hours", "date")),
        (LINE, pa.int64()),
    ]
)


def read(
    source: str | Path,
    *,
    games: str | Path | None = None,
    rating: Rating = "auto",
    crawl_year: int | None = None,
    descriptions: str | Path | None = None,
    strict: bool = False,
    split: SplitKind = "per_user",
) -> Dataset:
    """Read a file of Steam reviews, or a folder that holds one, plain or gzipped.

    The user names of Kang & McAuley's dump are replaced by hashes. The description of a game is
    its developer, release date and tags.

    Args:
        source: The file, or a folder with one of `REVIEWS` and maybe one of `GAMES`.
        games: The file of games, when it does not lie in `source`.
        rating: What becomes the rating: the recommendation ("recommend"), the hours played
            ("playtime"), or the recommendation where the file has it ("auto").
        crawl_year: The year of dates that show none: pages show no year for dates of the year
            in which they were crawled. Without it such rows are dropped and counted.
        descriptions: File with a description of each game (`read_descriptions`).
        strict: Whether to refuse dirty lines instead of dropping and counting them.
        split: How to split.

    Raises:
        FileNotFoundError: If there is no file of reviews.
        InputError: If a file cannot be read, or has nothing to make ratings from.
        DirtyInput: If the import is strict and a line would be dropped.
        ValueError: If no usable review is left.
    """
    if rating not in ("auto", "recommend", "playtime"):
        raise ValueError(f"rating is {rating!r}: expected auto, recommend or playtime")
    report, source = Report(strict), Path(source)
    path = the_file(source, REVIEWS, "Steam reviews file")
    reviews, names_hashed = _reviews(path, report)
    stars, origin = _stars(reviews, rating, path)
    interactions = _dated(reviews, stars, crawl_year, path, report)
    files, items = [path], None
    if games is not None or (source.is_dir() and any(has_file(source, name) for name in GAMES)):
        files.append(the_file(Path(games or source), GAMES, "Steam games file"))
        items = read_games(files[-1], report)
    items = with_descriptions(items, descriptions, report, files, "a games file")
    if names_hashed:
        origin["user_ids"] = "hashes of the user names"
    raw = RawLog(
        interactions,
        None,
        items,
        file=path.name,
        name="steam",
        source=source_of("steam", files) | origin,
        split=split,
    )
    return build_dataset(raw, report)


def _stars(reviews: pa.Table, rating: Rating, path: Path) -> tuple[list[str], dict[str, Any]]:
    """Return the rating of each review as text, and how it was made, for the manifest."""
    has = {
        name: bool(pc.any(pc.not_equal(reviews[column], "")).as_py())
        for name, column in (("recommend", "recommend"), ("playtime", "hours"))
    }
    if rating == "auto":
        rating = "recommend" if has["recommend"] else "playtime"
    if not has[rating]:
        other = "playtime" if rating == "recommend" else "recommend"
        raise InputError(
            f"{path} has nothing to make ratings by {rating} from"
            + (f"; it has what rating={other} needs" if has[other] else "")
        )
    origin: dict[str, Any] = {
        "rating": rating,
        "default": "how hours or flags become stars is no paper's",
    }
    if rating == "recommend":
        flags = reviews["recommend"].to_pylist()
        return [RECOMMENDED.get(text, "") for text in flags], origin
    stars, edges = _quintiles(reviews["hours"].to_pylist())
    return stars, origin | {"playtime_edges_hours": edges}


def _dated(
    reviews: pa.Table, stars: list[str], crawl_year: int | None, path: Path, report: Report
) -> pa.Table:
    """Return the interactions; reviews whose date lacks a year are dropped and reported."""
    dates = reviews["date"].to_pylist()
    times = [_when(text, crawl_year) for text in dates]
    dated = np.ones(reviews.num_rows, bool)
    if crawl_year is None:
        dated = ~np.array([_lacks_year(text) for text in dates], bool)
        report.read += int((~dated).sum())
        report.add(NO_YEAR, path.name, reviews[LINE].to_numpy()[~dated])
    return pa.table(
        {
            "user_id": reviews["user_id"],
            "item_id": reviews["item_id"],
            "rating": pa.array(stars, pa.string()),
            "timestamp": pa.array(times, pa.string()),
            LINE: reviews[LINE],
        }
    ).filter(pa.array(dated))


def _reviews(path: Path, report: Report) -> tuple[pa.Table, bool]:
    """Return the columns of `_RAW`, and whether user names had to be hashed."""
    if ".csv" in path.suffixes:
        return _csv_reviews(path, report), False
    names_hashed = False

    def rows() -> Iterator[tuple]:
        nonlocal names_hashed
        first = True
        for line, record in records(path, report):
            if "reviews" in record:  # all reviews of one user on a line
                reviews = record["reviews"] if isinstance(record["reviews"], list) else [None]
                for review in reviews:
                    review = review if isinstance(review, dict) else {}
                    yield _row(record.get("user_id"), review, "item_id", "posted", line)
                first = False
                continue
            if first:
                names = ("product_id", "date", *(() if "user_id" in record else ("username",)))
                require_fields(path, record, names)
                first = False
            user = record.get("username", record.get("user_id"))
            if "username" in record:
                names_hashed = True
                name = identifier(user)
                user = f"{stable_key('steam', name):016x}" if name else ""
            yield _row(user, record, "product_id", "date", line)

    return table_of(rows(), _RAW), names_hashed


def _csv_reviews(path: Path, report: Report) -> pa.Table:
    table = read_delimited(path, ",", None, report, quoted=True, multiline=True)
    names = table.column_names
    date = "posted" if "posted" in names else "date"
    if missing := [n for n in ("user_id", "item_id", date) if n not in names]:
        raise InputError(
            f"{path} lacks the columns {missing}: it has {[n for n in names if n != LINE]}"
        )
    blank = pa.array([""] * table.num_rows, pa.string())
    dates = table[date]
    if "posted_date" in names:  # the same date in ISO form, empty where no year is known
        exact = table["posted_date"]
        dates = pc.if_else(pc.equal(exact, ""), dates, exact)
    return pa.table(
        {
            "user_id": table["user_id"],
            "item_id": table["item_id"],
            "recommend": pc.utf8_lower(table["recommend"]) if "recommend" in names else blank,
            "hours": table["hours"] if "hours" in names else blank,
            "date": dates,
            LINE: table[LINE],
        }
    )


def _row(user: object, record: dict, item: str, date: str, line: int) -> tuple:
    flag = record.get("recommend")
    return (
        identifier(user),
        identifier(record.get(item)),
        str(flag).lower() if isinstance(flag, bool | str) else "",
        number(record.get("hours")),
        text_of(record.get(date)),
        line,
    )


def _when(text: str, crawl_year: int | None) -> str:
    """Return Unix seconds (midnight UTC) of an ISO date or of "Posted July 15, 2011."."""
    posted = _POSTED.match(text.strip())
    if not posted:
        return seconds(text)
    month, day, year = posted.groups()
    year = year or crawl_year
    if year is None:
        return ""
    try:
        date = datetime.strptime(f"{month} {day} {year}", "%B %d %Y")
    except ValueError:
        return ""
    return str(int(date.replace(tzinfo=UTC).timestamp()))


def _lacks_year(text: str) -> bool:
    posted = _POSTED.match(text.strip())
    return posted is not None and posted.group(3) is None


def _quintiles(hours: list[str]) -> tuple[list[str], list[float]]:
    """Return the stars as text, and the four edges in hours.

    The least played fifth of all reviews has 1, the most played 5; hours equal to an edge
    belong to the fifth below it. The text is "" where the hours are negative or no number.
    """

    def value(text: str) -> float:
        try:
            return float(text)
        except ValueError:
            return np.nan

    values = np.array([value(text) for text in hours], float)
    good = np.isfinite(values) & (values >= 0)
    if not good.any():
        return [""] * len(hours), []
    edges = np.percentile(values[good], QUINTILES)
    stars = 1 + np.searchsorted(edges, values, side="left")
    texts = [str(star) if ok else "" for star, ok in zip(stars, good, strict=True)]
    return texts, [round(float(edge), 3) for edge in edges]


def read_games(path: Path, report: Report) -> pa.Table:
    """Read a games file of one record a line as an item table.

    The fields used are `id` (required), `title` or `app_name`, `genres`, `tags`, `developer`
    and `release_date`.
    """

    def rows() -> Iterator[tuple]:
        for index, (line, game) in enumerate(records(path, report)):
            if index == 0:
                require_fields(path, game, ("id",))
            item = identifier(game.get("id"))
            genres, tags = (_list(game.get(name)) for name in ("genres", "tags"))
            facts = [
                text_of(game.get("developer")) and f"By {text_of(game['developer'])}.",
                text_of(game.get("release_date"))
                and f"Released {text_of(game['release_date'])}.",
                tags and f"{', '.join(tags)}.",
            ]
            title = text_of(game.get("title")) or text_of(game.get("app_name")) or item
            yield item, title, genres, " ".join(fact for fact in facts if fact), line

    return unique_rows(table_of(rows(), ITEMS), "item_id", path.name, report)


def _list(value: object) -> list[str]:
    if not isinstance(value, list | tuple):
        return []
    return [text for text in (plain(text_of(part)) for part in value) if text]
