"""Steam reviews and games: Kang & McAuley's dumps, the Australian users', its CSV form.

Steam has no stars. DEFAULT (METHOD.md section 12.2; the paper does not say): a recommendation
is 5 and its absence 1 where the file has the flag, else the hours played are cut at their
quintiles into 1 to 5.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from alignuser_jax.datasets.dataset import Dataset
from alignuser_jax.datasets.formats.descriptions import join_descriptions, read_descriptions
from alignuser_jax.datasets.reading.cleaning import build_dataset, unique_rows
from alignuser_jax.datasets.reading.delimited import LINE, InputError, has_file, read_delimited
from alignuser_jax.datasets.reading.files import the_file
from alignuser_jax.datasets.reading.json_lines import ITEMS, records, require_fields, table_of
from alignuser_jax.datasets.reading.values import identifier, number, plain, seconds, words
from alignuser_jax.datasets.report import Report
from alignuser_jax.datasets.sources import source_of
from alignuser_jax.datasets.splits import SplitKind
from alignuser_jax.randomness import stable_key

Rating = Literal["auto", "recommend", "playtime"]
REVIEWS = (
    *("steam_reviews.json", "steam_new.json", "australian_user_reviews.json"),
    *("australian_user_reviews.csv", "steam_reviews.csv"),
)
GAMES = ("steam_games.json", "steam_games.jsonl")
RECOMMENDED = {"true": "5", "1": "5", "false": "1", "0": "1"}
QUINTILES = (20, 40, 60, 80)
NO_YEAR = "date without a year (name the year of the crawl)"
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
    """The dataset in `source`: a file of reviews, or a folder that holds one of `REVIEWS` (and
    one of `GAMES`, which `games` may name instead), plain or gzipped.

    `rating` says what becomes of hours and recommendations; "auto" takes the recommendation
    where the file has it. Pages of the crawl's own year show no year: such dates are dropped
    and counted unless `crawl_year` names it. User names of Kang & McAuley's dump are replaced
    by hashes. A game's description is its developer, release date and tags.

    Raises `FileNotFoundError`, `InputError`, `DirtyInput` (strict) or `ValueError` as
    `build_dataset` does.
    """
    if rating not in ("auto", "recommend", "playtime"):
        raise ValueError(f"rating is {rating!r}: expected auto, recommend or playtime")
    report, source = Report(strict), Path(source)
    path = the_file(source, REVIEWS, "Steam reviews file")
    raw, nameless = _reviews(path, report)
    has = {
        name: bool(pc.any(pc.not_equal(raw[column], "")).as_py())
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
    origin = {"rating": rating, "default": "how hours or flags become stars is no paper's"}
    if rating == "recommend":
        stars = [RECOMMENDED.get(text, "") for text in raw["recommend"].to_pylist()]
    else:
        stars, edges = _quintiles(raw["hours"].to_pylist())
        origin["playtime_edges_hours"] = edges
    dates = raw["date"].to_pylist()
    times = [_when(text, crawl_year) for text in dates]
    if crawl_year is None:
        yearless = np.array([_yearless(text) for text in dates], bool)
        report.read += int(yearless.sum())
        report.add(NO_YEAR, path.name, raw[LINE].to_numpy()[yearless])
        keep = pa.array(~yearless)
    else:
        keep = pa.array([True] * raw.num_rows)
    interactions = pa.table(
        {
            "user_id": raw["user_id"],
            "item_id": raw["item_id"],
            "rating": pa.array(stars, pa.string()),
            "timestamp": pa.array(times, pa.string()),
            LINE: raw[LINE],
        }
    ).filter(keep)
    files, items = [path], None
    if games is not None or (source.is_dir() and any(has_file(source, name) for name in GAMES)):
        files.append(the_file(Path(games or source), GAMES, "Steam games file"))
        items = read_games(files[-1], report)
    if descriptions is not None:
        if items is None:
            raise ValueError("descriptions need a games file to be joined to")
        items = join_descriptions(items, read_descriptions(descriptions, report))
        files.append(Path(descriptions))
    if nameless:
        origin["user_ids"] = "hashes of the user names"
    return build_dataset(
        interactions,
        None,
        items,
        report,
        file=path.name,
        name="steam",
        source=source_of("steam", files) | origin,
        split=split,
    )


def _reviews(path: Path, report: Report) -> tuple[pa.Table, bool]:
    """The columns of `_RAW` and whether users had only names."""
    if ".csv" in path.suffixes:
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
        columns = {
            "user_id": table["user_id"],
            "item_id": table["item_id"],
            "recommend": pc.utf8_lower(table["recommend"]) if "recommend" in names else blank,
            "hours": table["hours"] if "hours" in names else blank,
            "date": dates,
        }
        return pa.table({**columns, LINE: table[LINE]}), False
    names_used = False

    def rows() -> Iterator[tuple]:
        nonlocal names_used
        first = True
        for line, record in records(path, report):
            if "reviews" in record:  # one user a line
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
                names_used = True
                name = identifier(user)
                user = f"{stable_key('steam', name):016x}" if name else ""
            yield _row(user, record, "product_id", "date", line)

    return table_of(rows(), _RAW), names_used


def _row(user: object, record: dict, item: str, date: str, line: int) -> tuple:
    flag = record.get("recommend")
    return (
        identifier(user),
        identifier(record.get(item)),
        str(flag).lower() if isinstance(flag, bool | str) else "",
        number(record.get("hours")),
        words(record.get(date)),
        line,
    )


def _when(text: str, crawl_year: int | None) -> str:
    """Unix seconds (midnight UTC) of an ISO date or "Posted July 15, 2011."; "" for neither."""
    found = _POSTED.match(text.strip())
    if not found:
        return seconds(text)
    month, day, year = found.groups()
    year = year or crawl_year
    if year is None:
        return ""
    try:
        date = datetime.strptime(f"{month} {day} {year}", "%B %d %Y")
    except ValueError:
        return ""
    return str(int(date.replace(tzinfo=UTC).timestamp()))


def _yearless(text: str) -> bool:
    found = _POSTED.match(text.strip())
    return bool(found) and found.group(3) is None


def _quintiles(hours: list[str]) -> tuple[list[str], list[float]]:
    """(stars as text, the four edges in hours): 1 for the least played fifth of all reviews,
    5 for the most; "" where the hours are no number or negative. An edge belongs below."""

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
    """The item table of a games file: `id`, `title` or `app_name`, `genres`, `tags`,
    `developer`, `release_date`, one record a line."""

    def rows() -> Iterator[tuple]:
        for number_, (line, game) in enumerate(records(path, report)):
            if not number_:
                require_fields(path, game, ("id",))
            item = identifier(game.get("id"))
            genres, tags = (_list(game.get(name)) for name in ("genres", "tags"))
            facts = [
                words(game.get("developer")) and f"By {words(game['developer'])}.",
                words(game.get("release_date")) and f"Released {words(game['release_date'])}.",
                tags and f"{', '.join(tags)}.",
            ]
            title = words(game.get("title")) or words(game.get("app_name")) or item
            yield item, title, genres, " ".join(fact for fact in facts if fact), line

    return unique_rows(table_of(rows(), ITEMS), "item_id", path.name, report)


def _list(value: object) -> list[str]:
    if not isinstance(value, list | tuple):
        return []
    return [text for text in (plain(words(part)) for part in value) if text]
