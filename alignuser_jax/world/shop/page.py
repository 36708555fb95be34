"""A web shop's page as a value: written as text and read back (docs/method.md section 2.4).

A page is a context line, one line a product, and the semantic ids of what can be acted on.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from alignuser_jax.datasets.shop_page_text import (
    CONTEXT_LINE,
    ELEMENTS_LINE,
    NO_DETAILS,
    PAGE_LINE,
    PRODUCTS_LINE,
    UNKNOWN,
    PageProduct,
    shop_page_text,
)
from alignuser_jax.text import one_line, shorten

MAX_TEXT, MAX_PRODUCTS, MAX_ELEMENTS = 400, 60, 1000
"""The limits of a page that is read: characters of a field, product lines, semantic ids."""

_PRODUCT = re.compile(
    r"<- (?P<title>.*?) -> <- Price: (?P<price>.*?) ->"
    r"(?: <- Availability: (?P<availability>.*?) ->)?(?: <- Details: (?P<details>.*?) ->)?$"
)


class PageError(ValueError):
    """A text that is no page of a shop."""


@dataclass(frozen=True, slots=True)
class ShopPage:
    """One page of a web shop.

    Attributes:
        place: The kind of page (docs/method.md section 12.8): "browse", "search", "detail",
            "cart", "checkout" or "end"; the generated shop also has "account" and "help", which
            a log calls "browse".
        number: The number of the page of results, from 1.
        context: What the page is about, on one line.
        products: The products, in the order of the page.
        elements: The semantic ids of what can be acted on, in document order.
    """

    place: str = "browse"
    number: int = 1
    context: str = ""
    products: tuple[PageProduct, ...] = ()
    elements: tuple[str, ...] = ()

    def text(self, note: str = "") -> str:
        """Return the page as agents read it, with a `note` as its last line if there is one."""
        return shop_page_text(self.number, self.context, self.products, self.elements, note)


def read_page(text: str, place: str = "browse") -> ShopPage:
    """Return the page that a text shows, the inverse of `ShopPage.text` without the note.

    Lines before `CONTEXT:` are skipped except for the page number, fields are cut to `MAX_TEXT`
    characters, lines that are no product are dropped and ids that repeat are dropped too.

    Args:
        text: The text, perhaps written by a language model.
        place: The kind of page, which the text does not say.

    Raises:
        PageError: If the text has no context line, or neither products nor semantic ids.
    """
    lines = [line.strip() for line in text.splitlines()]
    start = next(
        (n for n, line in enumerate(lines) if line.startswith(CONTEXT_LINE.strip())), None
    )
    if start is None:
        raise PageError(
            f"no line begins with {CONTEXT_LINE!r} in {shorten(one_line(text), 80)!r}"
        )
    context = shorten(one_line(lines[start].removeprefix(CONTEXT_LINE.strip())), MAX_TEXT)
    number = 1
    for line in lines[:start]:
        if match := re.fullmatch(rf"{PAGE_LINE}(\d{{1,6}})", line):
            number = max(int(match.group(1)), 1)
    body = lines[start + 1 :]
    end = body.index(ELEMENTS_LINE) if ELEMENTS_LINE in body else len(body)
    products = [p for p in map(_read_product, body[:end]) if p is not None][:MAX_PRODUCTS]
    listed = body[end + 1].split(", ") if end + 1 < len(body) else []
    names = [one_line(name).strip(",") for name in listed]
    elements = tuple(dict.fromkeys(n for n in names if n and len(n) <= MAX_TEXT))[:MAX_ELEMENTS]
    if not products and not elements:
        raise PageError(
            f"neither products nor semantic ids in {shorten(one_line(text), 80)!r}; expected "
            f"the lines {PRODUCTS_LINE!r} and {ELEMENTS_LINE!r}"
        )
    return ShopPage(place, number, context, tuple(products), elements)


def _read_product(line: str) -> PageProduct | None:
    match = _PRODUCT.match(line)
    if match is None:
        return None
    fields = {
        name: shorten(one_line(value or ""), MAX_TEXT)
        for name, value in match.groupdict().items()
    }
    for name, empty in (("price", UNKNOWN), ("availability", UNKNOWN), ("details", NO_DETAILS)):
        fields[name] = "" if fields[name] == empty else fields[name]
    return PageProduct(**fields) if fields["title"] else None


@lru_cache(maxsize=1 << 15)
def slug(text: str) -> str:
    """Return `text` as a part of a semantic id: lower-case words joined by underscores.

    Example:
        >>> slug("Red USB-C Cable (3 ft)!")
        'red_usb_c_cable_3_ft'
    """
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")
