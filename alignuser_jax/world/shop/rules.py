"""Rules that say what follows an action in a web shop if the log does not.

They are those of docs/method.md section 7 (b): semantic ids of the cart, of navigation, search,
filters and pagination lead to page templates, typed text to its search results, and [TERMINATE]
to the end.
"""

from __future__ import annotations

import re
from dataclasses import replace

from alignuser_jax.datasets.shop_page_text import PageProduct
from alignuser_jax.records import Action
from alignuser_jax.text import shorten
from alignuser_jax.world.shop.log import ReplayIndex, named_product
from alignuser_jax.world.shop.page import MAX_TEXT, ShopPage, slug

END_PAGE = ShopPage("end")
"""What the rules give for the end of a visit."""
IN_PLACE = {
    "filter": "filter",
    "product_option": "option",
    "quantity": "quantity",
    "review": "reviews",
    "cart_page_select": "cart",
    "cart_side_bar": "cart",
}
"""Click types that change a page without leaving it -> what the context calls the change."""
KEEPS_PRODUCTS = (*IN_PLACE, "purchase", "other")
"""Click types after which a page replayed from another session keeps the current products."""
DEFAULT_ELEMENTS = ("nav_bar.search_input", "nav_bar.homepage", "nav_bar.cart")
"""The semantic ids of a page whose kind is not in the log."""

_ORDER = re.compile(r"(^|[._])place_(your_)?order")
_CHECKOUT = re.compile(r"(^|[._])(buy_now|buy_it_now|proceed_to_checkout|checkout)")
_ADD = re.compile(r"(^|[._])add_to_(cart|basket)")
_CART = re.compile(r"(^|[._])(view_|go_to_|back_to_|shopping_)?(cart|basket)$")
_HOME = re.compile(r"(^|[._])(home|homepage|logo|home_page)$")
_PAGINATION = re.compile(r"(^|[._])(pagination|page)[._](next|previous|prev|\d{1,4})(_page)?$")
_FILTER = re.compile(r"(^|[._])(refinements?|filters?|sort|sort_by)([._]|$)")
_SEARCH = re.compile(r"(^|[._])search_(button|submit|go)$")


def rule_page(
    page: ShopPage,
    action: Action,
    click_type: str,
    typed_text: str,
    index: ReplayIndex,
    results: int = 4,
) -> ShopPage | None:
    """Return the page that the rules give for an action.

    Args:
        page: The page on which the action is taken.
        action: The action.
        click_type: The type of the click, "" for no click.
        typed_text: The text that was last typed in the visit.
        index: What the shop knows from its log.
        results: How many products search results show: the logged products that share most
            words with the query.

    Returns:
        The next page, `END_PAGE` if the visit ends, `None` if no rule fits.
    """
    if action.kind == "terminate":
        return END_PAGE
    if action.kind == "input":
        return _results(action.text, index, results)
    name = action.target.lower()
    if index.is_field(action.target):
        return page  # the field has the focus, nothing else has changed
    if (click_type == "search" or _SEARCH.search(name)) and typed_text:
        return _results(typed_text, index, results)
    if click_type == "suggested_term":
        return _results(_words(name.rpartition(".")[2]), index, results)
    if _ORDER.search(name):
        return END_PAGE
    if _ADD.search(name):
        return _page("cart", "Added to cart", page.products[:1], index)
    if _CART.search(name):
        products = page.products if page.place == "cart" else ()
        return _page("cart", "Shopping cart", products, index)
    if _CHECKOUT.search(name):
        return _page("checkout", "Checkout", page.products, index)
    if _HOME.search(name):
        return _page("browse", "Home page", (), index)
    if match := _PAGINATION.search(name):
        return _turned(page, match.group(3))
    kind = "filter" if _FILTER.search(name) else IN_PLACE.get(click_type)
    if kind is not None:
        return replace(page, context=with_change(page.context, IN_PLACE.get(kind, kind), name))
    slugs = {slug(product.title): product for product in page.products}
    opened = named_product(name, slugs)
    if opened is not None:
        product = slugs[opened]
        return _page("detail", f"Product page: {product.title}", (product,), index)
    return None


def with_change(context: str, kind: str, name: str) -> str:
    """Return `context` with a change such as `| filter: brand acme`, named once however often.

    Args:
        context: The context of the page.
        kind: What the change is called, a value of `IN_PLACE`.
        name: The semantic id that was clicked.
    """
    note = f"{kind}: {_words(name)}"
    parts = [part for part in context.split(" | ") if part != note]
    return shorten(" | ".join([*parts, note]), MAX_TEXT)


def _words(name: str) -> str:
    """The last two parts of a semantic id as words."""
    return " ".join(re.findall(r"[^\W_]+", " ".join(name.split(".")[-2:])))


def _results(query: str, index: ReplayIndex, count: int) -> ShopPage:
    products = index.search(query, count)
    return _page("search", f'Search results for "{query}"', products, index)


def _turned(page: ShopPage, where: str) -> ShopPage | None:
    """Another page of the same results, without products: no rule knows what it lists."""
    step = 1 if where == "next" else -1
    number = int(where) if where.isdigit() else page.number + step
    if number < 1:
        return None
    gone = {slug(product.title) for product in page.products}
    left = tuple(name for name in page.elements if named_product(name, gone) is None)
    return replace(page, number=number, products=(), elements=left)


def _page(
    place: str, context: str, products: tuple[PageProduct, ...], index: ReplayIndex
) -> ShopPage:
    links = []
    if place != "detail":
        slugs = [slug(product.title) for product in products]
        links = [index.product_links[name] for name in slugs if name in index.product_links]
    elements = dict.fromkeys([*index.common_ids.get(place, DEFAULT_ELEMENTS), *links])
    return ShopPage(place, 1, context, products, tuple(elements))
