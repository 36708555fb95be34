"""Shopping goals, the queries people wrote for them, and products' attributes.

Read from the three files of the WebShop benchmark (`human_goals`, `goal_query_map`,
`items_ins_v2_1000`, as JSON or gzipped JSON), or generated, labelled synthetic.
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

GOALS, QUERIES, ITEMS = "human_goals", "goal_query_map", "items_ins_v2_1000"

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
    """`goals` in the file's order, each once; `queries` by goal (some have none); `items` the
    attributes by product id; `source` is "webshop" or "synthetic".
    """

    goals: tuple[str, ...]
    queries: Mapping[str, tuple[str, ...]]
    items: Mapping[str, tuple[str, ...]]
    source: str

    @property
    def attributes(self) -> tuple[str, ...]:
        """Every attribute, the most frequent first."""
        counts = Counter(a for found in self.items.values() for a in found)
        return tuple(sorted(counts, key=lambda a: (-counts[a], a)))


def read_shop_goals(folder: str | Path) -> ShopGoals:
    """The goals of a folder with those three files.

    Raises `FileNotFoundError` for a missing file and `ValueError` for one of another form.
    """
    goals = _read(folder, GOALS, list)
    queries = _read(folder, QUERIES, dict)
    items = _read(folder, ITEMS, dict)
    if not all(isinstance(goal, str) for goal in goals):
        raise ValueError(f"{GOALS} in {folder} holds other things than texts")
    for goal, found in queries.items():
        if not isinstance(found, list) or not all(isinstance(q, str) for q in found):
            raise ValueError(f"{QUERIES} in {folder}: {goal!r} has {found!r}, expected texts")
    attributes = {}
    for item_id, item in items.items():
        found = item.get("attributes", []) if isinstance(item, dict) else None
        if not isinstance(found, list) or not all(isinstance(a, str) for a in found):
            raise ValueError(
                f"{ITEMS} in {folder}: {item_id!r} has {item!r}, expected attributes as texts"
            )
        attributes[item_id] = tuple(_clean(a) for a in found)
    cleaned = tuple(dict.fromkeys(_clean(goal) for goal in goals if goal.strip()))
    if not cleaned:
        raise ValueError(f"{GOALS} in {folder} holds no goal")
    asked = {_clean(g): tuple(_clean(q) for q in found) for g, found in queries.items()}
    return ShopGoals(cleaned, asked, attributes, "webshop")


def synthetic_shop_goals(count: int = 120, seed: int = 0) -> ShopGoals:
    """Generated goals of the same form: a noun, two attributes, a colour, sometimes a price."""
    rng = named_generator("shop goals", seed)
    goals, queries, items = [], {}, {}
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
