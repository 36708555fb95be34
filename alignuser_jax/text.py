"""Text of one line, shortened text and Markdown tables."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

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


def markdown_table(rows: Sequence[Sequence[object]], headers: Sequence[str]) -> str:
    """Return a Markdown table; numbers are already text, so nothing is reformatted."""
    from tabulate import tabulate

    return tabulate(rows, headers, tablefmt="pipe", disable_numparse=True)
