"""What the generated shop's cart takes: stock, limits, buying now."""

from dataclasses import replace

import pytest

from alignuser_jax.world import CatalogueConfig, GeneratedShop, make_catalogue
from alignuser_jax.world.shop.actions import click
from alignuser_jax.world.shop.page import slug


@pytest.fixture(scope="module")
def shop():
    return GeneratedShop(make_catalogue(config=CatalogueConfig(goals=60)))


def with_stock(shop, product, stock):
    """The same shop with `stock` of one product, and the slug of it."""
    products = list(shop.catalogue.products)
    products[product] = replace(products[product], stock=stock)
    return GeneratedShop(replace(shop.catalogue, products=tuple(products)))


def names_of(state):
    return {a.target for a in state.actions if a.kind == "click_element"}


def optioned(shop):
    """A product with one option, and two of its values as ids."""
    for n, product in enumerate(shop.catalogue.products):
        if len(product.options) == 1:
            ((name, values),) = product.options
            return n, [f"product_options.{name}.{slug(v)}" for v in values[:2]]
    raise AssertionError("no such product")


def test_stock_is_the_products_whatever_the_options(shop):
    product, (one, other) = optioned(shop)
    shop = with_stock(shop, product, 2)
    state = shop.reset("u", 0)
    visit = replace(state.inside, place="detail", product=product)
    state = shop.step(replace(shop._show(state, visit)), click(one))
    state = shop.step(state, click("buybox.add_to_cart"))
    state = shop.step(state, click(other))
    assert "buybox.quantity.2" not in names_of(state)  # one of two is taken
    state = shop.step(state, click("buybox.add_to_cart"))
    assert [line.quantity for line in state.inside.cart] == [1, 1]
    assert "buybox.add_to_cart" not in names_of(state)
    cart = shop.step(state, click("nav_bar.cart"))
    assert not [name for name in names_of(cart) if name.endswith(".increase")]


def test_buy_now_buys_what_is_chosen_and_not_what_the_cart_has(shop):
    product, (one, _) = optioned(shop)
    shop = with_stock(shop, product, 9)
    state = shop.reset("u", 0)
    state = shop._show(state, replace(state.inside, place="detail", product=product))
    for name in (one, "buybox.quantity.3", "buybox.add_to_cart", "buybox.quantity.2"):
        state = shop.step(state, click(name))
    state = shop.step(shop.step(state, click("buybox.buy_now")), click("checkout.place_order"))
    assert [line.quantity for line in state.inside.ordered] == [2]


def test_a_full_cart_takes_no_more_and_lists_fewer_than_150_actions(shop):
    state, most = shop.reset("u", 0), 0
    for n, product in enumerate(shop.catalogue.products):
        if product.options or not product.stock:
            continue
        state = shop._show(state, replace(state.inside, place="detail", product=n))
        if "buybox.add_to_cart" not in names_of(state):
            break
        state = shop.step(state, click("buybox.add_to_cart"))
        cart = shop.step(state, click("nav_bar.cart"))
        most = max(most, len(state.actions), len(cart.actions))
    assert len(state.inside.cart) == shop.config.cart_lines
    assert "buybox.buy_now" not in names_of(state) and most < 150


def test_the_last_action_that_is_allowed_counts(shop):
    state = shop.reset("u", 0)
    n = next(n for n, p in enumerate(shop.catalogue.products) if p.stock and not p.options)
    shop = GeneratedShop(shop.catalogue, max_steps=2)
    state = shop._show(state, replace(state.inside, place="detail", product=n))
    state = shop.step(shop.step(state, click("buybox.buy_now")), click("checkout.place_order"))
    assert state.terminal and shop.has_purchase(state)
