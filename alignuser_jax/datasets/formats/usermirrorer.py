"""UserMirrorer's three JSON-lines files: `*_user_feature`, `*_item_feature`, `*_interaction`.

Interactions carry `behavior_features`: a rating, hours, a play count, or the impression list
that the user chose from. Where there is an impression list the dataset gets a table
`impressions`: `IMPRESSION_SCHEMA`, one row an exposure, `clicked` being the item taken.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from alignuser_jax.datasets.dataset import Dataset, with_extra_tables
from alignuser_jax.datasets.formats.descriptions import join_descriptions, read_descriptions
from alignuser_jax.datasets.reading.cleaning import build_dataset, unique_rows
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
    without_html,
    words,
)
from alignuser_jax.datasets.report import Report
from alignuser_jax.datasets.sources import source_of
from alignuser_jax.datasets.splits import SplitKind

TITLES = ("title", "app_name", "name", "song", "caption")
GENRES = ("genres", "category", "categories", "subcategory", "tags")
IMPRESSION_SCHEMA = pa.schema(
    [
        ("user_id", pa.string()),
        ("timestamp", pa.int64()),
        ("item_ids", pa.list_(pa.string())),
        ("clicked", pa.string()),
    ]
)


def read(
    directory: str | Path,
    *,
    rating: str = "rating",
    descriptions: str | Path | None = None,
    strict: bool = False,
    split: SplitKind = "per_user",
) -> Dataset:
    """The dataset in a folder with the three files (plain or gzipped).

    `rating` names the behaviour feature that is the rating. A choice from an impression list
    without that feature is a rating of 5 (DEFAULT: a click is the only sign there is). Titles
    are the first of `TITLES` among an item's descriptions, the rest of them make its
    description. Of users only age and occupation are kept.

    Raises `FileNotFoundError`, `InputError`, `DirtyInput` (strict) or `ValueError` as
    `build_dataset` does.
    """
    directory, report = Path(directory), Report(strict)
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory} is no folder: expected one with three files")
    files = [
        matching_file(directory, (f"*{name}.jsonl", f"*{name}.jsonl.gz"), f"{name} file")
        for name in ("_interaction", "_item_feature", "_user_feature")
    ]
    impressions: list[tuple] = []
    interactions = _interactions(files[0], rating, impressions, report)
    items, users = _items(files[1], report), _users(files[2], report)
    if descriptions is not None:
        items = join_descriptions(items, read_descriptions(descriptions, report))
        files.append(Path(descriptions))
    dataset = build_dataset(
        interactions,
        users,
        items,
        report,
        file=files[0].name,
        name=files[0].name.partition("_interaction")[0] or "usermirrorer",
        source=source_of("usermirrorer", files) | {"rating": rating},
        split=split,
    )
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
            shown = behaviour.get("impression_list")
            rated = rated or value is not None or shown is not None
            if isinstance(shown, list):
                shown = [identifier(part) for part in shown]
                if item in shown and "" not in shown and user and time:
                    impressions.append((user, int(time), shown, item))
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
    """Unix seconds of an ISO moment, or of a number in seconds or (past 2100) milliseconds."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        if not abs(value) < 1e17:
            return ""
        return str(int(value / 1000 if value > 1e11 else value))
    return seconds(value)


def _items(path: Path, report: Report) -> pa.Table:
    def rows() -> Iterator[tuple]:
        for place, (line, record) in enumerate(records(path, report)):
            if not place:
                require_fields(path, record, ("item_id", "item_description"))
            item = identifier(record.get("item_id"))
            facts = record.get("item_description")
            facts = dict(facts) if isinstance(facts, dict) else {}
            name = next((n for n in TITLES if words(facts.get(n))), None)
            title = without_html(words(facts.pop(name))) if name else item
            genres: list[str] = []
            for key in GENRES:
                genres += _split(facts.pop(key, None))
            rest = [f"{key}: {words(value)}" for key, value in facts.items() if words(value)]
            if len(rest) == 1 and rest[0].startswith("description: "):
                rest = [rest[0].removeprefix("description: ")]
            text = without_html("; ".join(rest))
            yield item, title, list(dict.fromkeys(genres)), text, line

    return unique_rows(table_of(rows(), ITEMS), "item_id", path.name, report)


def _split(value: object) -> list[str]:
    if isinstance(value, list | tuple):
        return [text for text in map(words, value) if text]
    text = words(value)
    separator = next((mark for mark in ("|", "/", ",") if mark in text), None)
    return [part.strip() for part in text.split(separator) if part.strip()] if text else []


def _users(path: Path, report: Report) -> pa.Table:
    def rows() -> Iterator[tuple]:
        for place, (line, record) in enumerate(records(path, report)):
            if not place:
                require_fields(path, record, ("user_id",))
            facts = record.get("user_description")
            facts = facts if isinstance(facts, dict) else {}
            user = identifier(record.get("user_id"))
            yield user, words(facts.get("age")), words(facts.get("occupation")), line

    return unique_rows(table_of(rows(), USERS), "user_id", path.name, report)
