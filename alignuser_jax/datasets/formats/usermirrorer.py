"""Read UserMirrorer's JSON lines: `*_user_feature`, `*_item_feature` and `*_interaction`.

Interactions carry `behavior_features`: a rating, hours, a play count, or the impression list
that the user chose from. When there are impression lists, the dataset gets the extra table
`impressions` (`IMPRESSION_SCHEMA`), with one row for each exposure.

Example:
    >>> from alignuser_jax.datasets.formats import usermirrorer
    >>> dataset = usermirrorer.read("raws", rating="play_count")
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from alignuser_jax.datasets.dataset import Dataset, with_extra_tables
from alignuser_jax.datasets.formats.descriptions import with_descriptions
from alignuser_jax.datasets.reading.cleaning import RawLog, build_dataset, unique_rows
from alignuser_jax.datasets.reading.delimited import InputError
from alignuser_jax.datasets.reading.files import matching_file
from alignuser_jax.datasets.reading.json_lines import (
    INTERACTIONS,
    ITEMS,
    USERS,
    records,
    require_fields,
    table_of,
)
from alignuser_jax.datasets.reading.values import (
    identifier,
    number,
    seconds,
    text_of,
    without_html,
)
from alignuser_jax.datasets.report import Report
from alignuser_jax.datasets.sources import source_of
from alignuser_jax.datasets.splits import SplitKind

TITLE_FIELDS = ("title", "app_name", "name", "song", "caption")
"""Fields that may hold an item's title, in order of preference."""
GENRE_FIELDS = ("genres", "category", "categories", "subcategory", "tags")
"""Fields whose values become an item's genres."""
IMPRESSION_SCHEMA = pa.schema(
    [
        ("user_id", pa.string()),
        ("timestamp", pa.int64()),
        ("item_ids", pa.list_(pa.string())),
        ("clicked", pa.string()),
    ]
)
"""One exposure: the items shown, and the one that the user clicked."""


def read(
    directory: str | Path,
    *,
    rating: str = "rating",
    descriptions: str | Path | None = None,
    strict: bool = False,
    split: SplitKind = "per_user",
) -> Dataset:
    """Read a folder with the three files, plain or gzipped.

    A choice from an impression list without the feature `rating` is a rating of 5 (DEFAULT: a
    click is the only sign there is). An item's title is the first of `TITLE_FIELDS` that its
    description has; `GENRE_FIELDS` become its genres and the rest its description. Of users
    only age and occupation are kept (the paper's privacy rule).

    Args:
        directory: The folder.
        rating: The behaviour feature that is the rating.
        descriptions: File with a description of each item (`read_descriptions`).
        strict: Whether to refuse dirty lines instead of dropping and counting them.
        split: How to split.

    Raises:
        FileNotFoundError: If a file is missing.
        InputError: If a file cannot be read, or no interaction has the feature `rating`.
        DirtyInput: If the import is strict and a line would be dropped.
        ValueError: If no usable interaction is left.
    """
    directory, report = Path(directory), Report(strict)
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory} is no folder: expected a folder with three files")
    files = [
        matching_file(directory, (f"*{name}.jsonl", f"*{name}.jsonl.gz"), f"{name} file")
        for name in ("_interaction", "_item_feature", "_user_feature")
    ]
    impressions: list[tuple] = []
    interactions = _interactions(files[0], rating, impressions, report)
    items, users = _items(files[1], report), _users(files[2], report)
    raw = RawLog(
        interactions,
        users,
        with_descriptions(items, descriptions, report, files),
        file=files[0].name,
        name=files[0].name.partition("_interaction")[0] or "usermirrorer",
        source=source_of("usermirrorer", files) | {"rating": rating},
        split=split,
    )
    dataset = build_dataset(raw, report)
    if not impressions:
        return dataset
    return with_extra_tables(dataset, {"impressions": table_of(impressions, IMPRESSION_SCHEMA)})


def _interactions(
    path: Path, rating: str, impressions: list[tuple], report: Report
) -> pa.Table:
    bad: list[int] = []
    rated = False

    def rows() -> Iterator[tuple]:
        nonlocal rated
        first = True
        for line, record in records(path, report):
            if first:
                require_fields(path, record, ("user_id", "item_id", "timestamp"))
                first = False
            user, item = identifier(record.get("user_id")), identifier(record.get("item_id"))
            behaviour = record.get("behavior_features")
            behaviour = behaviour if isinstance(behaviour, dict) else {}
            value, time = behaviour.get(rating), _time(record.get("timestamp"))
            slate = behaviour.get("impression_list")
            rated = rated or value is not None or slate is not None
            if isinstance(slate, list):
                slate = [identifier(part) for part in slate]
                if item in slate and "" not in slate and user and time:
                    impressions.append((user, int(time), slate, item))
                    value = 5 if value is None else value
                else:
                    bad.append(line)
            yield user, item, number(value), time, line

    table = table_of(rows(), INTERACTIONS)
    report.add("impression list without its item", path.name, bad)
    if not rated:
        raise InputError(
            f"{path}: no behavior_features has {rating!r}, nor an impression_list; name the "
            "feature that is the rating"
        )
    return table


def _time(value: object) -> str:
    """Return Unix seconds of an ISO time or of a number, which is milliseconds past 1e11."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        if not abs(value) < 1e17:
            return ""
        return str(int(value / 1000 if value > 1e11 else value))
    return seconds(value)


def _items(path: Path, report: Report) -> pa.Table:
    def rows() -> Iterator[tuple]:
        for index, (line, record) in enumerate(records(path, report)):
            if index == 0:
                require_fields(path, record, ("item_id", "item_description"))
            item = identifier(record.get("item_id"))
            facts = record.get("item_description")
            facts = dict(facts) if isinstance(facts, dict) else {}
            name = next((n for n in TITLE_FIELDS if text_of(facts.get(n))), None)
            title = without_html(text_of(facts.pop(name))) if name else item
            genres: list[str] = []
            for key in GENRE_FIELDS:
                genres += _split(facts.pop(key, None))
            rest = [
                f"{key}: {text_of(value)}" for key, value in facts.items() if text_of(value)
            ]
            if len(rest) == 1 and rest[0].startswith("description: "):
                rest = [rest[0].removeprefix("description: ")]
            text = without_html("; ".join(rest))
            yield item, title, list(dict.fromkeys(genres)), text, line

    return unique_rows(table_of(rows(), ITEMS), "item_id", path.name, report)


def _split(value: object) -> list[str]:
    if isinstance(value, list | tuple):
        return [text for text in map(text_of, value) if text]
    text = text_of(value)
    separator = next((mark for mark in ("|", "/", ",") if mark in text), None)
    return [part.strip() for part in text.split(separator) if part.strip()] if text else []


def _users(path: Path, report: Report) -> pa.Table:
    def rows() -> Iterator[tuple]:
        for index, (line, record) in enumerate(records(path, report)):
            if index == 0:
                require_fields(path, record, ("user_id",))
            facts = record.get("user_description")
            facts = facts if isinstance(facts, dict) else {}
            user = identifier(record.get("user_id"))
            yield user, text_of(facts.get("age")), text_of(facts.get("occupation")), line

    return unique_rows(table_of(rows(), USERS), "user_id", path.name, report)
