"""The text of a site's page (docs/method.md section 2.2): one line per item, always."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Literal

from alignuser_jax.records import Item
from alignuser_jax.text import one_line, shorten

ItemSummary = Literal["genres", "description", "both"]
"""What the summary of an item shows."""

# The skeleton of a page. The tokenizer knows each of these fragments as a single symbol.
PAGE_MARK = "PAGE "
SEARCH_MARK = " | Search: "
TITLE_MARK = "] <- "
RATING_MARK = " -> <- History ratings: "
SUMMARY_MARK = " -> <- Summary: "
SIMILAR_MARK = " -> <- Similar items:"
END_MARK = " ->"
DETAILS_MARK = "DETAILS "
GENRES_MARK = " | Genres: "
NONE = "none"
"""Stands for a rating that nobody gave, and for an empty summary or description."""
HIDDEN = "hidden"
"""Stands for a mean rating that the site does not show."""


def title_of(item: Item) -> str:
    """Return the item's title on one line, or its id if it has no title."""
    return one_line(item.title) or one_line(item.item_id)


@lru_cache(maxsize=1024)
def local_id(position: int) -> str:
    """Return the page-local id, such as `ITEM_2`, of the item at `position` (from 1)."""
    return f"ITEM_{position}"


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
    """
    genres = one_line(", ".join(item.genres))
    description = shorten(one_line(item.description), limit)
    parts = {
        "genres": (genres,),
        "description": (description,),
        "both": (genres, description),
    }[summary]
    return ". ".join(part for part in parts if part) or NONE


def item_line(
    position: int,
    item: Item,
    rating: str = NONE,
    summary: ItemSummary = "genres",
    summary_chars: int = 80,
    similar: Iterable[tuple[str, float]] = (),
) -> str:
    """Return one item's line.

    Args:
        position: The item's position on the page, from 1.
        item: The item.
        rating: Its rating as text, `NONE` or `HIDDEN`.
        summary: What the summary includes.
        summary_chars: The most characters of the description in it.
        similar: (title, rating) of items like this one.

    Example:
        >>> item_line(1, Item("1", "Up"), "3.87")
        '[ITEM_1] <- Up -> <- History ratings: 3.87 -> <- Summary: none -> <- Similar items: ->'
    """
    neighbours = ", ".join(f"**{one_line(title)} ({score:g}/5)**" for title, score in similar)
    title, described = _constant_parts(item, summary, summary_chars)
    return (
        f"[{local_id(position)}{title}{rating}{described}"
        f"{' ' if neighbours else ''}{neighbours}{END_MARK}"
    )


@lru_cache(maxsize=1 << 16)  # in 100,000 steps of visits nearly all items were shown before
def _constant_parts(item: Item, summary: ItemSummary, limit: int) -> tuple[str, str]:
    """The parts of an item's line that all users share: before the rating and after it."""
    return (
        f"{TITLE_MARK}{title_of(item)}{RATING_MARK}",
        f"{SUMMARY_MARK}{summary_of(item, summary, limit)}{SIMILAR_MARK}",
    )


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
