"""One renderer for a log's pages and a simulated shop's: each product is one line."""

import pytest

from alignuser_jax.datasets.sessions import LoggedProduct, Session, Step
from alignuser_jax.datasets.shop_page_text import PageProduct, shop_page_text
from alignuser_jax.world import logged_steps
from alignuser_jax.world.shop.page import read_page


def step(*products: LoggedProduct) -> Step:
    return Step("s", "u", 0, 0, "search", 2, "results | tea", products, ("a", "b"), "terminate")


def test_an_ordinary_page_byte_for_byte():
    page = step(
        LoggedProduct("B01", "Green Tea, 4.5 oz (100 bags)", "$5.00", "In Stock", "4.6 stars"),
        LoggedProduct("", "Café crème – „extra“"),
    ).page
    assert page == (
        "PAGE 2\n"
        "CONTEXT: results | tea\n"
        "PRODUCTS:\n"
        "<- Green Tea, 4.5 oz (100 bags) -> <- Price: $5.00 -> <- Availability: In Stock -> "
        "<- Details: 4.6 stars ->\n"
        "<- Café crème – „extra“ -> <- Price: unknown -> <- Availability: unknown -> "
        "<- Details: none ->\n"
        "INTERACTIVE ELEMENTS (semantic IDs):\n"
        "a, b"
    )


@pytest.mark.parametrize(
    ("title", "shown"),
    [
        ("Green\nTea\r\n 100\u2028bags", "Green Tea 100 bags"),
        ("Green -> Tea <- new", "Green - Tea - new"),
        ("", "B01"),
        (" \n\t", "B01"),
    ],
)
def test_a_product_is_one_line_whatever_its_title(title, shown):
    logged = step(LoggedProduct("B01", title, "$1\n.00"), LoggedProduct("B02", "Mug"))
    lines = logged.page.splitlines()
    assert len(lines) == 7
    assert lines[3].startswith(f"<- {shown} -> <- Price: $1 .00 -> <- ")
    (simulated,) = logged_steps([Session("s", "u", "train", (logged,))])
    assert simulated.page.text() == logged.page
    assert read_page(logged.page, "search").products[0].title == shown


def test_a_product_without_title_and_id():
    assert PageProduct("").line.startswith("<- unknown -> <- Price: unknown -> ")


def test_a_context_is_one_line_and_a_note_comes_last():
    assert shop_page_text(1, "cart: a\n<- b ->", [], [], "Invalid action") == (
        "PAGE 1\nCONTEXT: cart: a - b -\nPRODUCTS:\nINTERACTIVE ELEMENTS (semantic IDs):\n\n"
        "Invalid action"
    )
