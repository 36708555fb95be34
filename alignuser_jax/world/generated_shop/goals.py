"""Shopping goals, the queries that people wrote for them, and attributes of products.

They are read from three files of the WebShop benchmark (`human_goals`, `goal_query_map` and
`items_ins_v2_1000`, as JSON or gzipped JSON), or generated and labelled synthetic.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignuser_jax.randomness import named_generator

GOALS_FILE, QUERIES_FILE, ITEMS_FILE = "human_goals", "goal_query_map", "items_ins_v2_1000"
"""The names of WebShop's files, without `.json` or `.json.gz`."""

_NOUNS = (
    *("usb cable", "desk lamp", "water bottle", "running shoes", "office chair", "face cream"),
    *("travel mug", "phone case", "yoga mat", "rain jacket", "coffee table", "green tea"),
    *("wall clock", "hair brush", "backpack", "bath towel", "trail mix", "bluetooth speaker"),
)
_ATTRIBUTES = (
    *("high quality", "easy clean", "long lasting", "heavy duty", "eco friendly", "non slip"),
    *("stainless steel", "machine washable", "easy carry", "water resistant", "bpa free"),
    *("fast charging", "space saving", "hand made", "quick drying", "gluten free"),
)
_COLOURS = ("black", "white", "blue", "red", "green", "grey")


@dataclass(frozen=True)
class ShopGoals:
    """Goals to make a catalogue from.

    Attributes:
        goals: The goals in the order of the file, each once.
        queries: The queries by goal; some goals have none.
        items: The attributes by product id.
        source: "webshop" or "synthetic".
    """

    goals: tuple[str, ...]
    queries: Mapping[str, tuple[str, ...]]
    items: Mapping[str, tuple[str, ...]]
    source: str

    @property
    def attributes(self) -> tuple[str, ...]:
        """Every attribute, the most frequent first."""
        counts = Counter(a for attributes in self.items.values() for a in attributes)
        return tuple(sorted(counts, key=lambda a: (-counts[a], a)))


def read_shop_goals(folder: str | Path) -> ShopGoals:
    """Read the goals from a folder that holds WebShop's three files.

    Raises `FileNotFoundError` if a file is missing and `ValueError` if one has another form.
    """
    goals = _read(folder, GOALS_FILE, list)
    queries = _read(folder, QUERIES_FILE, dict)
    items = _read(folder, ITEMS_FILE, dict)
    if not all(isinstance(goal, str) for goal in goals):
        raise ValueError(f"{GOALS_FILE} in {folder} must hold texts only")
    for goal, texts in queries.items():
        if not isinstance(texts, list) or not all(isinstance(q, str) for q in texts):
            raise ValueError(
                f"{QUERIES_FILE} in {folder}: {goal!r} has {texts!r}, expected texts"
            )
    attributes = {}
    for item_id, item in items.items():
        texts = item.get("attributes", []) if isinstance(item, dict) else None
        if not isinstance(texts, list) or not all(isinstance(a, str) for a in texts):
            raise ValueError(
                f"{ITEMS_FILE} in {folder}: {item_id!r} has {item!r}, "
                "expected attributes as texts"
            )
        attributes[item_id] = tuple(_clean(a) for a in texts)
    cleaned = tuple(dict.fromkeys(_clean(goal) for goal in goals if goal.strip()))
    if not cleaned:
        raise ValueError(f"{GOALS_FILE} in {folder} holds no goal")
    by_goal = {_clean(g): tuple(_clean(q) for q in texts) for g, texts in queries.items()}
    return ShopGoals(cleaned, by_goal, attributes, "webshop")


def synthetic_shop_goals(count: int = 120, seed: int = 0) -> ShopGoals:
    """Return generated goals: a noun, two attributes, a colour, sometimes a price limit."""
    rng = named_generator("shop goals", seed)
    goals: list[str] = []
    queries: dict[str, tuple[str, ...]] = {}
    items: dict[str, tuple[str, ...]] = {}
    for n in range(count):
        noun, colour = str(rng.choice(_NOUNS)), str(rng.choice(_COLOURS))
        first, second = (str(a) for a in rng.choice(_ATTRIBUTES, 2, replace=False))
        goal = f"i am looking for a {first} {noun} in {colour} that is {second}"
        if rng.random() < 0.3:
            goal += f", up to {int(rng.integers(2, 13)) * 10} dollars"
        goals.append(goal)
        queries[goal] = (f"{first} {second} {colour} {noun}", f"{colour} {noun}", noun)
        items[f"S{n:05d}"] = (first, second)
    return ShopGoals(tuple(dict.fromkeys(goals)), queries, items, "synthetic")


def _read(folder: str | Path, name: str, kind: type) -> Any:
    for path in (Path(folder) / f"{name}.json", Path(folder) / f"{name}.json.gz"):
        if path.is_file():
            break
    else:
        raise FileNotFoundError(
            f"no {name}.json or {name}.json.gz in {folder}: expected the files of WebShop"
        )
    try:
        data = path.read_bytes()
        value = json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, kind):
        raise ValueError(f"{path} holds a {type(value).__name__}, expected a {kind.__name__}")
    return value


def _clean(text: str) -> str:
    """One printable line with single spaces."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
