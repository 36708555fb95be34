"""The text of a page (METHOD.md section 2.2): one line per item, whatever its title holds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Literal

from alignuser_jax.records import Item
from alignuser_jax.text import one_line, shorten

Summary = Literal["genres", "description", "both"]

# The page's skeleton. The tokenizer knows these fragments as single symbols.
PAGE = "PAGE "
SEARCH = " | Search: "
TITLE = "] <- "
RATING = " -> <- History ratings: "
SUMMARY = " -> <- Summary: "
SIMILAR = " -> <- Similar items:"
END = " ->"
DETAILS = "DETAILS "
GENRES = " | Genres: "
NONE = "none"
HIDDEN = "hidden"


def title_of(item: Item) -> str:
    return one_line(item.title) or one_line(item.item_id)


@lru_cache(maxsize=1024)
def item_id(position: int) -> str:
    """The page-local id of the item at `position` (from 1)."""
    return f"ITEM_{position}"


def position_of(target: str, slate_size: int) -> int | None:
    """The place (from 1) that a page-local id names on a page of `slate_size`, or None."""
    for position in range(1, slate_size + 1):
        if item_id(position) == target:
            return position
    return None


def summary_of(item: Item, summary: Summary = "genres", limit: int = 80) -> str:
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
    summary: Summary = "genres",
    summary_chars: int = 80,
    similar: Iterable[tuple[str, float]] = (),
) -> str:
    """One item's line. `rating` is already text; `similar` holds (title, rating) pairs."""
    neighbours = ", ".join(f"**{one_line(title)} ({score:g}/5)**" for title, score in similar)
    title, described = _of_the_item(item, summary, summary_chars)
    return (
        f"[{item_id(position)}{title}{rating}{described}"
        f"{' ' if neighbours else ''}{neighbours}{END}"
    )


@lru_cache(maxsize=1 << 16)  # of 100,000 steps of a visit, nearly all show known items
def _of_the_item(item: Item, summary: Summary, limit: int) -> tuple[str, str]:
    """What of an item's line is the same for everybody: before the rating, and after it."""
    return (
        f"{TITLE}{title_of(item)}{RATING}",
        f"{SUMMARY}{summary_of(item, summary, limit)}{SIMILAR}",
    )


def page_text(page: int, lines: Sequence[str], *notes: str, query: str = "") -> str:
    """The whole page: header, item lines, then what follows them (details, feedback). Its
    header says the `query` where a search made it.
    """
    header = f"{PAGE}{page}{SEARCH}{query}" if query else f"{PAGE}{page}"
    return "\n".join((header, *lines, *(note for note in notes if note)))


def details_line(position: int, item: Item, limit: int) -> str:
    """The block that a click reveals (METHOD.md section 2.3)."""
    description = shorten(one_line(item.description), limit) or NONE
    genres = one_line(", ".join(item.genres)) or NONE
    return f"{DETAILS}{item_id(position)}: {title_of(item)}{GENRES}{genres} | {description}"
