"""Read Amazon reviews and metadata of 2014, 2018 and 2023 (AmazonBook is their Books part).

The three releases name their fields differently, and each has its peculiarities: metadata of
2014 are Python literals (strict JSON in some files), titles of 2018 may hold scraped page code,
and reviews of 2023 have times in milliseconds and belong to `parent_asin`. Names of reviewers
are never read (the paper's privacy rule).

Example:
    >>> from alignuser_jax.datasets.formats import amazon
    >>> dataset = amazon.read("reviews_Books_5.json.gz", metadata="meta_Books.json.gz")
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from alignuser_jax.datasets.dataset import Dataset
from alignuser_jax.datasets.formats.descriptions import with_descriptions
from alignuser_jax.datasets.reading.cleaning import RawLog, build_dataset, unique_rows
from alignuser_jax.datasets.reading.delimited import InputError
from alignuser_jax.datasets.reading.files import matching_file
from alignuser_jax.datasets.reading.json_lines import (
    INTERACTIONS,
    ITEMS,
    blocks_of,
    records,
    table_of,
)
from alignuser_jax.datasets.reading.values import identifier, number, text_of, without_html
from alignuser_jax.datasets.report import Report
from alignuser_jax.datasets.sources import source_of
from alignuser_jax.datasets.splits import SplitKind

DESCRIPTION_CHARACTERS = 2_000
"""DEFAULT: descriptions of books can be pages long; a page of a site shows less than this."""
MOST_GENRES = 5
"""DEFAULT: how many categories of a product are kept as its genres."""
PAGE_CODE = ("getTime", "function(", "var aPageStart")
"""Marks of a title that is page code, which the scraper of 2018 took for a title."""
REVIEW_FILES = ("reviews_*.json*", "*_5.json*", "[!m]*.jsonl*", "[!m]*.json*")
"""Patterns of names of review files, tried in this order."""
META_FILES = ("meta_*.json*", "meta*.json*")
"""Patterns of names of metadata files, tried in this order."""


@dataclass(frozen=True)
class Release:
    """The field names of one release of the reviews.

    Attributes:
        name: The year or years, for the manifest.
        user: Field of the user's id.
        item: Field of the product's id.
        rating: Field of the rating, 1 to 5.
        time: Field of the time.
        per_second: Units of the time in a second: 1, or 1000 for milliseconds.
    """

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
    """Read a file of Amazon reviews, or a folder that holds one and maybe its metadata.

    The names of the fields tell the release. Genres are the categories below the root, at most
    `MOST_GENRES`; descriptions are cut at `DESCRIPTION_CHARACTERS`; HTML is taken out of both.
    When there is metadata, reviews of products that are not in it are dropped and counted. A
    product without a title goes by its id, and the manifest counts these.

    Args:
        source: The file or folder; one JSON object or Python literal a line, plain or gzipped.
        metadata: The file of metadata, when it does not lie in `source`.
        descriptions: File with a description of each product (`read_descriptions`).
        strict: Whether to refuse dirty lines instead of dropping and counting them.
        split: How to split.

    Raises:
        FileNotFoundError: If there is no file of reviews.
        InputError: If a file cannot be read, or holds no reviews of a known release.
        DirtyInput: If the import is strict and a line would be dropped.
        ValueError: If no usable review is left.
    """
    report, source = Report(strict), Path(source)
    path = matching_file(source, REVIEW_FILES, "reviews")
    _, first = next(records(path, Report()))
    release = _release(path, first)
    interactions = blocks_of(_reviews(path, release, report), INTERACTIONS)
    files, items = [path], None
    origin: dict[str, Any] = {"release": release.name}
    if metadata is not None or (
        source.is_dir() and any(any(source.glob(pattern)) for pattern in META_FILES)
    ):
        files.append(matching_file(Path(metadata or source), META_FILES, "metadata"))
        items = read_metadata(files[-1], report)
        titles, ids = (items[name].to_pylist() for name in ("title", "item_id"))
        origin["untitled_items"] = sum(
            title == item for title, item in zip(titles, ids, strict=True)
        )
    items = with_descriptions(items, descriptions, report, files, "a metadata file")
    raw = RawLog(
        interactions,
        None,
        items,
        file=path.name,
        name="amazon",
        source=source_of("amazon", files) | origin,
        split=split,
    )
    return build_dataset(raw, report)


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
    except (ValueError, OverflowError):  # infinite or not a number
        return None


def _release(path: Path, record: dict) -> Release:
    for release in RELEASES:
        names = (release.user, release.item, release.rating, release.time)
        if all(name in record for name in names):
            return release
    expected = "; ".join(
        f"{r.name}: {r.user}, {r.item}, {r.rating}, {r.time}" for r in RELEASES
    )
    raise InputError(
        f"{path} holds no Amazon reviews: its first record has "
        f"{sorted(map(str, record))}, expected the fields of one release ({expected})"
    )


def read_metadata(path: Path, report: Report) -> pa.Table:
    """Read a metadata file as an item table.

    The fields used are `asin` or `parent_asin` (required), `title`, `description` (text or
    list), and `categories` or `category` (a list, or a list of lists).
    """
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
            title = text_of(record.get("title"))
            if any(mark in title for mark in PAGE_CODE):
                code.append(line)
                continue
            item = identifier(record.get(key))
            description = without_html(text_of(record.get("description")))
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
    """Return the distinct categories below the root, or the root when there is no other."""
    if not isinstance(value, list | tuple):
        return []
    paths = [part for part in value if isinstance(part, list | tuple)]
    if len(paths) < len(value):  # a single path of categories, not a list of paths
        paths = [value]
    texts = [[without_html(text_of(part)) for part in path] for path in paths]
    below = [text for path in texts for text in path[1:] if text]
    roots = [path[0] for path in texts if path and path[0]]
    return list(dict.fromkeys(below or roots))[:MOST_GENRES]
