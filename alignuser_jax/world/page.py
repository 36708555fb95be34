"""The text of a page (METHOD.md section 2.2): one line per item, whatever its title holds."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Literal

from alignuser_jax.records import Item

Summary = Literal["genres", "description", "both"]

# The page's skeleton. The tokenizer knows these fragments as single symbols.
PAGE = "PAGE "
TITLE = "] <- "
RATING = " -> <- History ratings: "
SUMMARY = " -> <- Summary: "
SIMILAR = " -> <- Similar items:"
END = " ->"
DETAILS = "DETAILS "
GENRES = " | Genres: "
NONE = "none"
HIDDEN = "hidden"

_ARROWS = re.compile(r"<*-+>+|<+-+>*")


@lru_cache(maxsize=1 << 16)  # a catalogue's titles are asked for again and again
def one_line(text: str) -> str:
    """`text` as one printable line without the page's own `<-` and `->`."""
    printable = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(_ARROWS.sub("-", printable).split())


def shorten(text: str, limit: int) -> str:
    """At most `limit` characters of `text`, cut at a space where there is one."""
    if len(text) <= limit:
        return text
    return text[: limit + 1].rsplit(" ", 1)[0][:limit].rstrip(" ,;:")


def title_of(item: Item) -> str:
    return one_line(item.title) or one_line(item.item_id)


def item_id(position: int) -> str:
    """The page-local id of the item at `position` (from 1)."""
    return f"ITEM_{position}"


def position_of(target: str, slate_size: int) -> int | None:
    """The place (from 1) that a page-local id names on a page of `slate_size`, or None."""
    ids = [item_id(n) for n in range(1, slate_size + 1)]
    return ids.index(target) + 1 if target in ids else None


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
    return (
        f"[{item_id(position)}{TITLE}{title_of(item)}{RATING}{rating}"
        f"{SUMMARY}{summary_of(item, summary, summary_chars)}"
        f"{SIMILAR}{' ' if neighbours else ''}{neighbours}{END}"
    )


def page_text(page: int, lines: Sequence[str], *notes: str) -> str:
    """The whole page: header, item lines, then what follows them (details, feedback)."""
    return "\n".join((f"{PAGE}{page}", *lines, *(note for note in notes if note)))


def details_line(position: int, item: Item, limit: int) -> str:
    """The block that a click reveals (METHOD.md section 2.3)."""
    description = shorten(one_line(item.description), limit) or NONE
    genres = one_line(", ".join(item.genres)) or NONE
    return f"{DETAILS}{item_id(position)}: {title_of(item)}{GENRES}{genres} | {description}"
