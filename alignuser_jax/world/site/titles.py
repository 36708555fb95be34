"""Titles as people read them: "The Matrix", not "Matrix, The (1999)".

Catalogues sort by title, so they move articles to the end, and they add the year and the
original title. A page says each of these again and again, and a language model knows the work
by its plain name.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from alignuser_jax.records import Item
from alignuser_jax.text import one_line, shorten

TITLE_CHARS = 50
"""Longer titles are cut at a word; one of MovieLens-1M's in fifty is."""
_YEAR = re.compile(r" \((?:1[89]|20)\d\d\)$")
_OTHER_NAME = re.compile(r"(?<=\S) \([^()]*\)$")
_ARTICLES = "The|A|An|Le|La|Les|L'|Un|Une|Der|Die|Das|Ein|Eine|Il|El|Los|Las"
_ARTICLE = re.compile(rf"^(?P<rest>.+), (?P<article>{_ARTICLES})$")
_STARTS = frozenset(
    ("a", "an", "and", "at", "by", "for", "from", "in", "of", "on", "or", "the")
)
"""Words that no title ends with where it is cut."""


def readable_title(title: str) -> str:
    """Return a title without year and second name, its article in front, at most 50 characters.

    Example:
        >>> readable_title("City of Lost Children, The (Cité des enfants perdus, La) (1995)")
        'The City of Lost Children'
    """
    plain = _OTHER_NAME.sub("", _YEAR.sub("", one_line(title)))
    match = _ARTICLE.match(plain)
    if match:
        article = match["article"]
        plain = f"{article}{'' if article.endswith(chr(39)) else ' '}{match['rest']}"
    return _whole(plain) or one_line(title)


def _whole(title: str) -> str:
    """The title, or as many of its words as fit and can end it."""
    words = shorten(title, TITLE_CHARS).split(" ")
    if len(title) > TITLE_CHARS:
        while len(words) > 1 and words[-1].lower() in _STARTS:
            words.pop()
    return " ".join(words).rstrip(",;:- ")


def readable(items: Mapping[str, Item]) -> dict[str, Item]:
    """Return the catalogue with readable titles.

    Where two items would get the same title, both keep what the catalogue calls them.
    """
    titles = {item_id: readable_title(item.title) for item_id, item in items.items()}
    count = Counter(titles.values())
    return {
        item_id: replace(item, title=titles[item_id])
        if count[titles[item_id]] == 1 and titles[item_id] != item.title
        else item
        for item_id, item in items.items()
    }
