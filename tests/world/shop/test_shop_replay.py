"""Replay goes on from the page at hand, and never sells another product than the one shown."""

import pytest

from alignuser_jax.datasets.shop_page_text import PageProduct
from alignuser_jax.world import WebShop, build_index
from alignuser_jax.world.shop import actions
from alignuser_jax.world.shop.log import LoggedStep
from alignuser_jax.world.shop.page import ShopPage

NEXT, ADD = actions.click("pagination.next"), actions.click("buybox.add_to_cart")
HOME = actions.click("nav_bar.homepage")
OAK, LITRES = "product_options.wood.oak", "product_options.volume.2_litres"


def results(number):
    mugs = (PageProduct(f"Mug {number}"),)
    return ShopPage("search", number, 'Search results for "mug"', mugs, ("pagination.next",))


def detail(title, *more):
    elements = ("buybox.add_to_cart", "buybox.quantity.2", "nav_bar.homepage", *more)
    return ShopPage("detail", 1, f"Product page: {title}", (PageProduct(title),), elements)


def cart(title):
    return ShopPage("cart", 1, "Added to cart", (PageProduct(title),), ("cart.checkout",))


PAGES = [
    LoggedStep("mugs", "ann", 0, results(1), NEXT, "page_related"),
    LoggedStep("mugs", "ann", 1, results(2), NEXT, "page_related"),
    LoggedStep("mugs", "ann", 2, results(3), actions.TERMINATE),
]
LAMP = LoggedStep("bob", "bob", 0, detail("Red lamp"), HOME, "nav_bar")
BOB = [
    LAMP,
    LoggedStep(
        "bob", "bob", 1, detail("Blue kettle", LITRES),
        actions.click("buybox.quantity.2"), "quantity",
    ),
    LoggedStep(
        "bob", "bob", 2, detail("Blue kettle", LITRES), ADD, "purchase"
    ),
    LoggedStep("bob", "bob", 3, cart("Blue kettle"), actions.TERMINATE),
]  # fmt: skip


def titles(state):
    return [p.title for p in state.inside.page.products]


@pytest.mark.parametrize("steps", [PAGES, BOB], ids=["pages", "bob"])
def test_a_step_of_the_log_with_its_own_action_leads_to_the_logged_page(steps):
    shop = WebShop(build_index(steps))
    for step, after in zip(steps, steps[1:], strict=False):
        state = shop.step(shop.at(step), step.action)
        assert (state.source, state.inside.page) == ("log", after.page)


def test_the_same_click_goes_on_and_on():
    shop = WebShop(build_index(PAGES))
    state, seen = shop.reset("ann", 0), []
    for _ in range(2):
        state = shop.step(state, NEXT)
        seen += titles(state)
    assert seen == ["Mug 2", "Mug 3"]


def test_what_is_added_is_what_is_shown_in_the_same_session_too():
    shop = WebShop(build_index(BOB))
    state = shop.step(shop.at(LAMP), ADD)
    assert (state.source, state.place, titles(state)) == ("log", "cart", ["Red lamp"])


def test_another_products_options_do_not_appear():
    eve = LoggedStep("eve", "eve", 0, detail("Green chair", OAK), actions.TERMINATE)
    shop = WebShop(build_index([*BOB, eve]))
    state = shop.step(shop.at(eve), actions.click("buybox.quantity.2"))
    assert (state.source, titles(state)) == ("log", ["Green chair"])
    assert OAK in state.inside.page.elements
    assert LITRES not in state.inside.page.elements
