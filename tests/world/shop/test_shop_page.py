import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignuser_jax.datasets.shop_page_text import ELEMENTS_LINE as LISTED
from alignuser_jax.datasets.shop_page_text import PageProduct
from alignuser_jax.text import one_line, shorten
from alignuser_jax.world.shop.page import (
    MAX_ELEMENTS,
    MAX_PRODUCTS,
    MAX_TEXT,
    PageError,
    ShopPage,
    read_page,
    slug,
)

PAGE = ShopPage(
    "search",
    2,
    'Search results for "usb cable"',
    (
        PageProduct("Red USB Cable", "$9.99", "In stock", "3 ft, braided"),
        PageProduct("Blue -> cable"),
    ),
    ("nav_bar.search_input", "search_results.red_usb_cable"),
)
HOSTILE = st.one_of(
    st.text(), st.text(alphabet="<->\n x:P"), st.text(alphabet="\r\u2028\x85a ")
)


def test_the_page_of_the_method():
    assert PAGE.text("a note") == (
        "PAGE 2\n"
        'CONTEXT: Search results for "usb cable"\n'
        "PRODUCTS:\n"
        "<- Red USB Cable -> <- Price: $9.99 -> <- Availability: In stock -> "
        "<- Details: 3 ft, braided ->\n"
        "<- Blue - cable -> <- Price: unknown -> <- Availability: unknown -> "
        "<- Details: none ->\n"
        "INTERACTIVE ELEMENTS (semantic IDs):\n"
        "nav_bar.search_input, search_results.red_usb_cable\n"
        "a note"
    )


def test_a_page_is_read_back():
    again = read_page(PAGE.text("a note"), "search")
    assert again == ShopPage(
        "search",
        2,
        PAGE.context,
        (PAGE.products[0], PageProduct("Blue - cable")),
        PAGE.elements,
    )
    assert read_page(again.text(), "search") == again


@given(HOSTILE, HOSTILE, HOSTILE)
def test_no_product_breaks_a_page(title, price, context):
    page = ShopPage("cart", 1, context, (PageProduct(title, price, price, title),), ("a", "b"))
    text = page.text()
    assert len(text.splitlines()) == 6
    again = read_page(text, "cart")
    assert again.elements == ("a", "b")
    assert again.context == shorten(one_line(context), MAX_TEXT)
    assert len(again.products) == 1
    assert read_page(again.text(), "cart") == again


def test_what_a_model_adds_is_dropped():
    text = "Sure, here it is:\n[NEXT STATE]\n" + PAGE.text() + "\nI hope this helps!"
    assert read_page(text, "search") == read_page(PAGE.text(), "search")


@pytest.mark.parametrize(
    "text",
    ["", "PAGE 1", "nonsense", "CONTEXT: home", f"CONTEXT: x\nPRODUCTS:\n{LISTED}\n"],
)
def test_what_is_no_page(text):
    with pytest.raises(PageError):
        read_page(text)


def test_a_huge_page_is_cut():
    line = "<- " + "word " * 1000 + "-> <- Price: 1 ->"
    names = ", ".join(f"id{n}" for n in range(5000))
    page = read_page(
        f"PAGE 99999999\nCONTEXT: {'y' * 9999}\n" + f"{line}\n" * 500 + f"{LISTED}\n{names}"
    )
    assert page.number == 1  # no sane page number
    assert len(page.context) == MAX_TEXT and len(page.products) == MAX_PRODUCTS
    assert len(page.products[0].title) <= MAX_TEXT and len(page.elements) == MAX_ELEMENTS


def test_slugs():
    assert slug("Red USB-C Cable (3 ft)!") == "red_usb_c_cable_3_ft"
    assert slug("千") == ""
