"""The text of a web shop's page (docs/method.md section 2.4), written in one place.

The pages of a log (`datasets.sessions`) and those of a simulated shop (`world.shop.page`) must
read alike, because a model is trained on the first and sees the second.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from alignuser_jax.text import one_line

PAGE_LINE = "PAGE "
CONTEXT_LINE = "CONTEXT: "
PRODUCTS_LINE = "PRODUCTS:"
ELEMENTS_LINE = "INTERACTIVE ELEMENTS (semantic IDs):"
UNKNOWN = "unknown"
"""Stands for an empty title, price or availability."""
NO_DETAILS = "none"
"""Stands for empty details."""


@dataclass(frozen=True, slots=True)
class PageProduct:
    """One product as a page shows it.

    Attributes:
        title: The title.
        price: The price as text, "" where the page does not say.
        availability: What the page says of the stock, "" for nothing.
        details: Everything else, "" for nothing.
    """

    title: str
    price: str = ""
    availability: str = ""
    details: str = ""

    @property
    def line(self) -> str:
        """The product's line on the page: always one line, whatever its fields hold."""
        title = one_line(self.title) or UNKNOWN
        price = one_line(self.price) or UNKNOWN
        availability = one_line(self.availability) or UNKNOWN
        details = one_line(self.details) or NO_DETAILS
        return (
            f"<- {title} -> <- Price: {price} -> <- Availability: {availability} -> "
            f"<- Details: {details} ->"
        )


def shop_page_text(
    number: int,
    context: str,
    products: Iterable[PageProduct],
    elements: Iterable[str],
    note: str = "",
) -> str:
    """Return a page as agents read it.

    Line breaks and the page's own arrows inside the context or a product's fields become spaces
    and dashes, so that each stays on one line.

    Args:
        number: The number of the page, from 1.
        context: What the page is about, such as its search term.
        products: The products, in the order of the page.
        elements: The semantic ids of what can be acted on, in document order.
        note: One more line at the end, such as an error message; "" for none.

    Example:
        >>> print(shop_page_text(1, "Home page", [PageProduct("Tea", "$5.00")], ["cart"]))
        PAGE 1
        CONTEXT: Home page
        PRODUCTS:
        <- Tea -> <- Price: $5.00 -> <- Availability: unknown -> <- Details: none ->
        INTERACTIVE ELEMENTS (semantic IDs):
        cart
    """
    lines = [f"{PAGE_LINE}{number}", CONTEXT_LINE + one_line(context), PRODUCTS_LINE]
    lines += [product.line for product in products]
    lines += [ELEMENTS_LINE, ", ".join(elements)]
    return "\n".join([*lines, note] if note else lines)
