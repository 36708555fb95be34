"""The text of a web shop's page (METHOD.md section 2.4), written and read back.

A page is a context line, one line a product, and the semantic ids of what can be acted on.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from alignuser_jax.text import one_line, shorten

PLACES = ("browse", "search", "detail", "cart", "checkout", "end")
"""The coarse kinds of page (METHOD.md section 12.8)."""
EXTRA_PLACES = ("account", "help")
"""Kinds that only the generated shop has; a log calls them "browse"."""

PAGE = "PAGE "
CONTEXT = "CONTEXT: "
PRODUCTS = "PRODUCTS:"
ELEMENTS = "INTERACTIVE ELEMENTS (semantic IDs):"
UNKNOWN, NONE = "unknown", "none"
MAX_TEXT, MAX_PRODUCTS, MAX_ELEMENTS = 400, 60, 1000
"""What is kept of a page that somebody else wrote: characters of a field, lines, ids."""

_PRODUCT = re.compile(
    r"<- (?P<title>.*?) -> <- Price: (?P<price>.*?) ->"
    r"(?: <- Availability: (?P<availability>.*?) ->)?(?: <- Details: (?P<details>.*?) ->)?$"
)


class PageError(ValueError):
    """A text that is no page of a shop."""


@dataclass(frozen=True, slots=True)
class ShownProduct:
    """A product as a page shows it; "" where the page does not say."""

    title: str
    price: str = ""
    availability: str = ""
    details: str = ""


@dataclass(frozen=True, slots=True)
class ShopPage:
    """`number` is the page of results, from 1; `elements` the semantic ids in document order;
    `place` one of `PLACES` or `EXTRA_PLACES`."""

    place: str = "browse"
    number: int = 1
    context: str = ""
    products: tuple[ShownProduct, ...] = ()
    elements: tuple[str, ...] = ()

    def text(self, note: str = "") -> str:
        """The page as agents read it; `note` is one more line at its end."""
        lines = [f"{PAGE}{self.number}", CONTEXT + one_line(self.context), PRODUCTS]
        lines += [_product_line(product) for product in self.products]
        lines += [ELEMENTS, ", ".join(self.elements)]
        return "\n".join([*lines, note] if note else lines)


def _product_line(product: ShownProduct) -> str:
    title = one_line(product.title) or UNKNOWN
    price = one_line(product.price) or UNKNOWN
    availability = one_line(product.availability) or UNKNOWN
    details = one_line(product.details) or NONE
    return (
        f"<- {title} -> <- Price: {price} -> <- Availability: {availability} -> "
        f"<- Details: {details} ->"
    )


def read_page(text: str, place: str = "browse") -> ShopPage:
    """The page that a text shows, the inverse of `ShopPage.text` (a note is not kept).

    What stands before `CONTEXT:` is passed over, fields are cut to `MAX_TEXT` characters, lines
    that are no product are dropped, ids repeat only once. Raises `PageError` where there is no
    context line, or neither products nor ids.
    """
    lines = [line.strip() for line in text.splitlines()]
    start = next((n for n, line in enumerate(lines) if line.startswith(CONTEXT.strip())), None)
    if start is None:
        raise PageError(f"no line begins with {CONTEXT!r} in {shorten(one_line(text), 80)!r}")
    context = shorten(one_line(lines[start].removeprefix(CONTEXT.strip())), MAX_TEXT)
    number = 1
    for line in lines[:start]:
        if match := re.fullmatch(rf"{PAGE}(\d{{1,6}})", line):
            number = max(int(match.group(1)), 1)
    body = lines[start + 1 :]
    end = body.index(ELEMENTS) if ELEMENTS in body else len(body)
    products = [p for p in map(_read_product, body[:end]) if p is not None][:MAX_PRODUCTS]
    listed = body[end + 1].split(", ") if end + 1 < len(body) else []
    names = [one_line(name).strip(",") for name in listed]
    elements = tuple(dict.fromkeys(n for n in names if n and len(n) <= MAX_TEXT))[:MAX_ELEMENTS]
    if not products and not elements:
        raise PageError(
            f"neither products nor semantic ids in {shorten(one_line(text), 80)!r}; expected "
            f"the lines {PRODUCTS!r} and {ELEMENTS!r}"
        )
    return ShopPage(place, number, context, tuple(products), elements)


def _read_product(line: str) -> ShownProduct | None:
    match = _PRODUCT.match(line)
    if match is None:
        return None
    fields = {
        name: shorten(one_line(value or ""), MAX_TEXT)
        for name, value in match.groupdict().items()
    }
    for name, empty in (("price", UNKNOWN), ("availability", UNKNOWN), ("details", NONE)):
        fields[name] = "" if fields[name] == empty else fields[name]
    return ShownProduct(**fields) if fields["title"] else None


@lru_cache(maxsize=1 << 15)
def slug(text: str) -> str:
    """`text` as a part of a semantic id: lower-case words joined by underscores."""
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")
