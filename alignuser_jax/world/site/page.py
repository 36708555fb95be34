"""The text of a site's page (docs/method.md section 2.2): one line per item, always."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

from alignuser_jax.records import Item
from alignuser_jax.text import one_line, shorten

ItemSummary = Literal["genres", "description", "both"]
"""What the summary of an item shows."""

# The skeleton of a page. The tokenizer knows each of these fragments as a single symbol.
PAGE_MARK = "PAGE "
SEARCH_MARK = " | Search: "
FIELD_MARK = " | "
RATED_MARK = " | rated "
SIMILAR_MARK = " | like "
DETAILS_MARK = "DETAILS "
GENRES_MARK = " | Genres: "
NONE = "none"
"""Stands for a rating that nobody gave, and for an empty description of a detail."""
HIDDEN = "hidden"
"""Stands for a mean rating that the site does not show."""


def title_of(item: Item) -> str:
    """Return the item's title on one line, or its id if it has no title."""
    return one_line(item.title) or one_line(item.item_id)


def local_id(position: int) -> str:
    """Return the page-local id, such as `2`, of the item at `position` (from 1)."""
    return str(position)


def position_of(target: str, slate_size: int) -> int | None:
    """Return the position that a page-local id names, the inverse of `local_id`.

    Returns:
        A position from 1 to `slate_size`; `None` if the page has no such id.
    """
    for position in range(1, slate_size + 1):
        if local_id(position) == target:
            return position
    return None


def summary_of(item: Item, summary: ItemSummary = "genres", limit: int = 80) -> str:
    """Return what an item's line says of its genres or its description, or both.

    Args:
        item: The item.
        summary: Which of the two to include.
        limit: The most characters of the description.

    Returns:
        The text, "" if the item has nothing of what `summary` asks for.
    """
    genres = one_line(", ".join(item.genres))
    description = shorten(one_line(item.description), limit)
    parts = {
        "genres": (genres,),
        "description": (description,),
        "both": (genres, description),
    }[summary]
    return ". ".join(part for part in parts if part)


def item_line(
    position: int,
    item: Item,
    rating: str = NONE,
    summary: ItemSummary = "genres",
    summary_chars: int = 80,
    similar: Iterable[tuple[str, float]] = (),
) -> str:
    """Return one item's line; `read_item_line` is the inverse.

    It has the fields of docs/method.md section 2.2 and nothing where there is nothing to say.

    Args:
        position: The item's position on the page, from 1.
        item: The item.
        rating: Its rating as text; `NONE` and `HIDDEN` are not printed.
        summary: What the summary includes.
        summary_chars: The most characters of the description in it.
        similar: (title, rating) of items like this one.

    Example:
        >>> item_line(1, Item("1", "Up", ("Comedy",)), "3.9", similar=[("Antz", 4)])
        '1. Up | rated 3.9 | Comedy | like Antz 4'
    """
    named = ((_field(one_line(name)), score) for name, score in similar)
    neighbours = ", ".join(f"{name} {score:g}" for name, score in named if name)
    title, described = _constant_parts(item, summary, summary_chars)
    rated = "" if rating in (NONE, HIDDEN) else f"{RATED_MARK}{rating}"
    like = f"{SIMILAR_MARK}{neighbours}" if neighbours else ""
    return f"{local_id(position)}. {title}{rated}{described}{like}"


@lru_cache(maxsize=1 << 16)  # in 100,000 steps of visits nearly all items were shown before
def _constant_parts(item: Item, summary: ItemSummary, limit: int) -> tuple[str, str]:
    """The parts of an item's line that all users share: before the rating and after it."""
    described = _field(summary_of(item, summary, limit))
    return _field(title_of(item)), f"{FIELD_MARK}{described}" if described else ""


def _field(text: str) -> str:
    """`text` without what would read as the end of a field."""
    return text.replace("|", "/")


class ItemFields(NamedTuple):
    """What an item's line says.

    Attributes:
        position: The item's position on the page, from 1.
        title: Its title.
        rating: Its rating as text, "" if the page shows none.
        summary: Its genres or description, "" for none.
        similar: What is said of items like it, "" for nothing.
    """

    position: int
    title: str
    rating: str = ""
    summary: str = ""
    similar: str = ""


_LINE = re.compile(
    r"(?P<position>[1-9]\d*)\. (?P<title>[^|]+?)(?: \| rated (?P<rating>\d\.\d))?"
    r"(?: \| (?!like )(?P<summary>[^|]+?))?(?: \| like (?P<similar>[^|]+))?"
)


def read_item_line(line: str) -> ItemFields:
    """Return the fields of a line that `item_line` wrote.

    Raises:
        ValueError: The line is no item's line.

    Example:
        >>> read_item_line("1. Up | rated 3.9 | Comedy | like Antz 4").similar
        'Antz 4'
    """
    match = _LINE.fullmatch(line)
    if match is None:
        raise ValueError(
            f"{line!r} is no item's line: expected `n. TITLE | rated R | SUMMARY | like OTHERS`"
        )
    found = {name: text or "" for name, text in match.groupdict().items()}
    return ItemFields(int(found.pop("position")), **found)


def page_text(page: int, lines: Sequence[str], *notes: str, query: str = "") -> str:
    """Return the whole page.

    Args:
        page: The number of the page, from 1.
        lines: The items' lines.
        *notes: Further lines such as details or feedback; empty ones are left out.
        query: The query if a search made the page; the header then names it.
    """
    header = f"{PAGE_MARK}{page}{SEARCH_MARK}{query}" if query else f"{PAGE_MARK}{page}"
    return "\n".join((header, *lines, *(note for note in notes if note)))


def details_line(position: int, item: Item, limit: int) -> str:
    """Return the line of details that a click reveals (docs/method.md section 2.3).

    Args:
        position: The item's position on the page, from 1.
        item: The item.
        limit: The most characters of the description.
    """
    description = shorten(one_line(item.description), limit) or NONE
    genres = one_line(", ".join(item.genres)) or NONE
    return (
        f"{DETAILS_MARK}{local_id(position)}: {title_of(item)}{GENRES_MARK}{genres} | "
        f"{description}"
    )
