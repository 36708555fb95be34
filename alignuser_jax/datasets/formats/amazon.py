"""Amazon reviews and metadata of 2014, 2018 and 2023 (AmazonBook is their Books part).

The three releases name things differently and each has its quirks: metadata of 2014 are Python
literals (some files strict JSON), titles of 2018 may hold scraped page code, moments of 2023
are milliseconds and its reviews belong to `parent_asin`. Reviewer names are not read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from alignuser_jax.datasets.dataset import Dataset
from alignuser_jax.datasets.formats.descriptions import join_descriptions, read_descriptions
from alignuser_jax.datasets.reading.cleaning import build_dataset, unique_rows
from alignuser_jax.datasets.reading.delimited import InputError
from alignuser_jax.datasets.reading.files import matching_file
from alignuser_jax.datasets.reading.json_lines import (
    INTERACTIONS,
    ITEMS,
    blocks_of,
    records,
    table_of,
)
from alignuser_jax.datasets.reading.values import identifier, number, without_html, words
from alignuser_jax.datasets.report import Report
from alignuser_jax.datasets.sources import source_of
from alignuser_jax.datasets.splits import SplitKind

DESCRIPTION_CHARACTERS = 2_000
"""DEFAULT: book descriptions run to pages; a page of a site shows less than this."""
GENRES = 5
PAGE_CODE = ("getTime", "function(", "var aPageStart")
"""What stands in a title where the scraper of 2018 took page code for one."""
REVIEW_FILES = ("reviews_*.json*", "*_5.json*", "[!m]*.jsonl*", "[!m]*.json*")
META_FILES = ("meta_*.json*", "meta*.json*")


@dataclass(frozen=True)
class Release:
    """Field names of one release; `per_second` is how many units of its time make a second."""

    name: str
    user: str
    item: str
    rating: str
    time: str
    per_second: int


RELEASES = (
    Release("2023", "user_id", "parent_asin", "rating", "timestamp", 1000),
    Release("2014/2018", "reviewerID", "asin", "overall", "unixReviewTime", 1),
)


def read(
    source: str | Path,
    *,
    metadata: str | Path | None = None,
    descriptions: str | Path | None = None,
    strict: bool = False,
    split: SplitKind = "per_user",
) -> Dataset:
    """The dataset in `source`: a file of reviews, or a folder that holds one (and its `meta_*`
    file, which `metadata` may name instead), JSON or Python literals a line, plain or gzipped.

    The release is told by the fields. Genres are the categories below the root, at most
    `GENRES`; descriptions are cut at `DESCRIPTION_CHARACTERS`; HTML is taken out of both. With
    metadata, reviews of products that are not in it are dropped and counted; a product without
    a title is called by its id, and the manifest counts them.

    Raises `FileNotFoundError`, `InputError`, `DirtyInput` (strict) or `ValueError` as
    `build_dataset` does.
    """
    report, source = Report(strict), Path(source)
    path = matching_file(source, REVIEW_FILES, "reviews")
    _, first = next(records(path, Report()))
    release = _release(path, first)
    interactions = blocks_of(_reviews(path, release, report), INTERACTIONS)
    files, items, origin = [path], None, {"release": release.name}
    if metadata is not None or (
        source.is_dir() and any(any(source.glob(pattern)) for pattern in META_FILES)
    ):
        files.append(matching_file(Path(metadata or source), META_FILES, "metadata"))
        items = read_metadata(files[-1], report)
        origin["untitled_items"] = sum(
            title == item
            for title, item in zip(
                items["title"].to_pylist(), items["item_id"].to_pylist(), strict=True
            )
        )
    if descriptions is not None:
        if items is None:
            raise ValueError("descriptions need a metadata file to be joined to")
        items = join_descriptions(items, read_descriptions(descriptions, report))
        files.append(Path(descriptions))
    return build_dataset(
        interactions,
        None,
        items,
        report,
        file=path.name,
        name="amazon",
        source=source_of("amazon", files) | origin,
        split=split,
    )


def _reviews(path: Path, release: Release, report: Report) -> Iterator[tuple]:
    for line, record in records(path, report):
        time = record.get(release.time)
        if release.per_second != 1 and isinstance(time, int | float):
            time = _divided(time, release.per_second)
        yield (
            identifier(record.get(release.user)),
            identifier(record.get(release.item)),
            number(record.get(release.rating)),
            number(time),
            line,
        )


def _divided(value: int | float, by: int) -> int | float | None:
    try:
        return value // by
    except (ValueError, OverflowError):  # an endless number
        return None


def _release(path: Path, record: dict) -> Release:
    for release in RELEASES:
        names = (release.user, release.item, release.rating, release.time)
        if all(name in record for name in names):
            return release
    known = "; ".join(f"{r.name}: {r.user}, {r.item}, {r.rating}, {r.time}" for r in RELEASES)
    raise InputError(
        f"{path} holds no Amazon reviews: its first record has "
        f"{sorted(map(str, record))}, expected the fields of one release ({known})"
    )


def read_metadata(path: Path, report: Report) -> pa.Table:
    """The item table of a metadata file: `asin` or `parent_asin`, `title`, `description` (text
    or list), `categories` (list, or list of lists) or `category`."""
    code: list[int] = []

    def rows() -> Iterator[tuple]:
        key = None
        for line, record in records(path, report):
            if key is None:
                key = next((n for n in ("parent_asin", "asin") if n in record), None)
                if key is None:
                    raise InputError(
                        f"{path} lacks an item id: its first record has "
                        f"{sorted(map(str, record))}, expected asin or parent_asin"
                    )
            title = words(record.get("title"))
            if any(mark in title for mark in PAGE_CODE):
                code.append(line)
                continue
            item = identifier(record.get(key))
            description = without_html(words(record.get("description")))
            yield (
                item,
                without_html(title) or item,
                _genres(record.get("categories") or record.get("category")),
                description[:DESCRIPTION_CHARACTERS],
                line,
            )

    table = table_of(rows(), ITEMS)
    report.add("title that is page code", path.name, code)
    return unique_rows(table, "item_id", path.name, report)


def _genres(value: object) -> list[str]:
    """The distinct categories below the root, the root itself where it is all there is."""
    if not isinstance(value, list | tuple):
        return []
    paths = [part if isinstance(part, list | tuple) else None for part in value]
    if None in paths:  # one path
        paths = [value]
    texts = [[without_html(words(part)) for part in path] for path in paths]
    below = [text for path in texts for text in path[1:] if text]
    roots = [path[0] for path in texts if path and path[0]]
    return list(dict.fromkeys(below or roots))[:GENRES]
