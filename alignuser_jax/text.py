"""Text on one line, shortened text and Markdown tables."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache

Say = Callable[[str], None]
"""Tell the user one line of progress, as `print` does."""

_ARROWS = re.compile(r"<*-+>+|<+-+>*")


@lru_cache(maxsize=1 << 16)  # the same titles are rendered again and again
def one_line(text: str) -> str:
    r"""Return `text` as one printable line that cannot break the layout of a page.

    Every run of white space and of characters that cannot be printed becomes one space, and
    every arrow becomes a dash, because `<-` and `->` delimit the fields of a page.

    Example:
        >>> one_line("Heat ->\n(1995)")
        'Heat - (1995)'
    """
    printable = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(_ARROWS.sub("-", printable).split())


def shorten(text: str, limit: int) -> str:
    """Return at most `limit` characters of `text`, cut at a space where there is one."""
    if len(text) <= limit:
        return text
    return text[: limit + 1].rsplit(" ", 1)[0][:limit].rstrip(" ,;:")


def markdown_table(rows: Sequence[Sequence[object]], headers: Sequence[str]) -> str:
    """Return a Markdown table whose cells stay as they are: numbers are not reformatted."""
    from tabulate import tabulate

    return tabulate(rows, headers, tablefmt="pipe", disable_numparse=True)
