"""The pages of the generated shop: what a visit shows and what can be clicked in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from alignuser_jax.datasets.shop_page_text import PageProduct
from alignuser_jax.randomness import stable_key
from alignuser_jax.records import State
from alignuser_jax.world.generated_shop.catalogue import (
    SORTS,
    Product,
    ShopCatalogue,
    facets,
    results,
    suggestions,
)
from alignuser_jax.world.shop.page import ShopPage, slug

SEARCH_INPUT = "nav_bar.search_input"
SEARCH_BUTTON = "nav_bar.search_button"
ACCOUNT = ("account", "orders", "sign_in")
"""The ends of `nav_bar.` ids that lead to account pages ("Administrative" for UCI)."""
HELP = ("shipping", "returns", "contact", "about")
"""The ends of `footer.` ids that lead to help pages ("Informational" for UCI)."""
REVIEWS_PER_PAGE = 3

_PRAISE = ("Works well", "Good value", "As described", "Looks nice", "Would buy again")
_BLAME = ("Broke soon", "Not as shown", "Smaller than thought", "Late delivery", "Poor quality")
_TYPES = (
    ("nav_bar.search_", "search"),
    ("nav_bar.", "nav_bar"),
    ("footer.", "other"),
    ("help.", "other"),
    ("related_searches.", "suggested_term"),
    ("refinements.", "filter"),
    ("sort.", "filter"),
    ("pagination.", "page_related"),
    ("breadcrumb.", "page_related"),
    ("product_options.", "product_option"),
    ("buybox.quantity.", "quantity"),
    ("buybox.", "purchase"),
    ("reviews.", "review"),
    ("cart_side_bar.", "cart_side_bar"),
    ("cart.", "purchase"),
    ("checkout.place_order", "purchase"),
    ("checkout.", "page_related"),
)
_ENDS = {
    "product_link": "product_link",
    "checkbox": "cart_page_select",
    "increase": "quantity",
    "decrease": "quantity",
    "delete": "other",
}

Options = tuple[tuple[str, str], ...]
"""(name, value) of chosen options."""
_Layout = tuple[str, list[PageProduct], list[str]]
"""The context, the products and the own semantic ids of a page."""


class CartLine(NamedTuple):
    """One line of a cart.

    Attributes:
        product: The index of the product in the catalogue.
        options: (name, value) of the chosen options.
        quantity: How many.
        selected: Whether the line will be bought at checkout.
    """

    product: int
    options: Options
    quantity: int
    selected: bool = True


@dataclass(frozen=True, slots=True)
class Browsing:
    """Where a visit to the generated shop is; `State.inside` of its states.

    Attributes:
        goal: The index of the goal in the catalogue.
        place: The kind of page.
        query: What was last searched for, "" before the first search.
        number: The number of the page of results, from 1.
        filters: The filters that are on.
        sort: The order of the results, one of `SORTS`.
        product: The index of the product whose page was last opened.
        options: (name, value) of the options chosen there.
        quantity: The quantity chosen there.
        reviews: The page of reviews that is open there, 0 for none.
        topic: Which account or help page is open.
        cart: The lines of the cart.
        ordered: The lines that were bought.
        loads: How many pages were loaded.
        steps: How many actions were taken.
    """

    goal: int
    place: str = "browse"
    query: str = ""
    number: int = 1
    filters: tuple[str, ...] = ()
    sort: str = SORTS[0]
    product: int = 0
    options: Options = ()
    quantity: int = 1
    reviews: int = 0
    topic: str = ""
    cart: tuple[CartLine, ...] = ()
    ordered: tuple[CartLine, ...] = ()
    loads: int = 1
    steps: int = 0


@dataclass(frozen=True, slots=True)
class ViewConfig:
    """How much the pages show.

    A run's manifest holds its `repr`, so the class and its fields keep their names.

    Attributes:
        per_page: How many products a page of results has.
        suggested: How many suggested terms a page of results has.
        featured: How many featured products the home page has.
        quantities: The largest quantity that can be chosen.
        texts: How many queries the search field offers.
        cart_lines: How many lines a cart takes (DEFAULT: even then a page lists fewer than 150
            actions).
    """

    per_page: int = 4
    suggested: int = 3
    featured: int = 4
    quantities: int = 3
    texts: int = 6
    cart_lines: int = 12

    def __post_init__(self) -> None:
        for name in ("per_page", "featured", "quantities", "cart_lines"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 1 or more")
        for name in ("suggested", "texts"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 0 or more")


def browsing(state: State) -> Browsing:
    """Return where a state of `GeneratedShop` is; `TypeError` for one of another world."""
    if not isinstance(state.inside, Browsing):
        raise TypeError(
            f"state.inside is {state.inside!r}: this is no state of a GeneratedShop"
        )
    return state.inside


def generated_click_type(name: str) -> str:
    """Return the click type of a semantic id of the generated shop, which its name says."""
    if (end := name.rsplit(".", 1)[-1]) in _ENDS:
        return _ENDS[end]
    return next((kind for start, kind in _TYPES if name.startswith(start)), "other")


def money(cents: int) -> str:
    """Return an amount of cents as text, such as "$9.99"."""
    return f"${cents / 100:.2f}"


def subtotal(catalogue: ShopCatalogue, lines: Sequence[CartLine]) -> int:
    """Return the cents that the selected lines cost."""
    return sum(
        catalogue.products[n.product].price_cents * n.quantity for n in lines if n.selected
    )


def missing_options(product: Product, chosen: Options) -> list[str]:
    """Return the names of the options that are still to be chosen."""
    named = dict(chosen)
    return [name for name, _ in product.options if name not in named]


def line_names(catalogue: ShopCatalogue, cart: Sequence[CartLine]) -> list[str]:
    """Return a name for each line: its product's slug, numbered from its second line on."""
    counts: Counter[str] = Counter()
    names = []
    for line in cart:
        name = catalogue.products[line.product].slug
        counts[name] += 1
        names.append(name if counts[name] == 1 else f"{name}-{counts[name]}")
    return names


def line_index(cart: Sequence[CartLine], product: int, options: Options) -> int | None:
    """Return the index of the line with this product and these options, or `None`."""
    same = (n for n, line in enumerate(cart) if line[:2] == (product, options))
    return next(same, None)


def most_in_line(
    catalogue: ShopCatalogue,
    cart: Sequence[CartLine],
    product: int,
    options: Options,
    config: ViewConfig,
) -> int:
    """Return the largest quantity of the cart's line of this product with these options.

    It is one of the quantities on the page, and together with the product's other lines no more
    than its stock.
    """
    other = sum(n.quantity for n in cart if n.product == product and n.options != options)
    return max(min(config.quantities, catalogue.products[product].stock - other), 0)


def count_pages(results: int, per_page: int) -> int:
    """Return how many pages that many results have, at least 1."""
    return max(-(-results // per_page), 1)


def view(catalogue: ShopCatalogue, visit: Browsing, config: ViewConfig) -> ShopPage:
    """Return the page that a visit shows; a pure function of its arguments."""
    layout = {
        "browse": _home,
        "search": _search,
        "detail": _detail,
        "cart": _cart,
        "checkout": _checkout,
    }.get(visit.place, _topic)
    context, products, own = layout(catalogue, visit, config)
    header = [SEARCH_INPUT]
    if visit.query:
        header.append(SEARCH_BUTTON)
    header += ["nav_bar.homepage", *(f"nav_bar.{name}" for name in ACCOUNT), "nav_bar.cart"]
    side = []
    if visit.cart and visit.place not in ("cart", "checkout"):
        names = line_names(catalogue, visit.cart)
        side = ["cart_side_bar.go_to_cart", *(f"cart_side_bar.{n}.remove" for n in names)]
        context += f" | cart: {_items(visit.cart)}"
    footer = [f"footer.{name}" for name in HELP]
    elements = (*header, *own, *side, *footer)
    number = visit.number if visit.place == "search" else 1
    return ShopPage(visit.place, number, context, tuple(products), elements)


def _items(lines: Sequence[CartLine]) -> str:
    count = sum(line.quantity for line in lines)
    return f"{count} item{'s' if count != 1 else ''}"


def _product(product: Product, details: str = "") -> PageProduct:
    stock = "In stock" if product.stock > 5 else f"Only {product.stock} left"
    stars = f"{product.rating:.1f} stars ({product.reviews} reviews)"
    return PageProduct(
        product.title,
        money(product.price_cents),
        stock if product.stock else "Out of stock",
        details or "; ".join([stars, *product.attributes[:3]]),
    )


def _home(catalogue: ShopCatalogue, visit: Browsing, config: ViewConfig) -> _Layout:
    goal = catalogue.goals[visit.goal]
    start = stable_key("featured", goal.text) % len(catalogue.products)
    count = min(config.featured, len(catalogue.products))
    stride = len(catalogue.products) // count
    products = [
        catalogue.products[(start + n * stride) % len(catalogue.products)] for n in range(count)
    ]
    ids = [f"featured.{product.slug}.product_link" for product in products]
    return "Home page | featured products", [_product(product) for product in products], ids


def _search(catalogue: ShopCatalogue, visit: Browsing, config: ViewConfig) -> _Layout:
    order = results(catalogue, visit.query, visit.filters, visit.sort)
    pages = count_pages(len(order), config.per_page)
    start = (visit.number - 1) * config.per_page
    products = [catalogue.products[n] for n in order[start : start + config.per_page]]
    parts = [
        f'Search results for "{visit.query}"',
        f"page {visit.number} of {pages}",
        f"{len(order)} results" if order else "no results",
        f"sort: {visit.sort}",
    ]
    if visit.filters:
        parts.append(f"filters: {', '.join(visit.filters)}")
    ids = [f"search_results.{product.slug}.product_link" for product in products]
    ids += [f"refinements.{name}" for name in facets(catalogue, visit.query)]
    ids += [f"sort.{name}" for name in SORTS if name != visit.sort]
    terms = suggestions(catalogue, visit.query, config.suggested)
    ids += dict.fromkeys(f"related_searches.{slug(term)}" for term in terms if slug(term))
    ids += ["pagination.previous"] * (visit.number > 1)
    ids += ["pagination.next"] * (visit.number < pages)
    return " | ".join(parts), [_product(product) for product in products], ids


def _detail(catalogue: ShopCatalogue, visit: Browsing, config: ViewConfig) -> _Layout:
    product = catalogue.products[visit.product]
    parts = [f"Product page: {product.title}"]
    chosen = dict(visit.options)
    for name, values in product.options:
        parts.append(f"{name}: {chosen.get(name, 'choose one of ' + ', '.join(values))}")
    parts.append(f"quantity: {visit.quantity}")
    if visit.reviews:
        parts.append(f"reviews {visit.reviews}: {_reviews(product, visit.reviews)}")
    ids = [
        f"product_options.{name}.{slug(value)}"
        for name, values in product.options
        for value in values
        if chosen.get(name) != value
    ]
    most = most_in_line(catalogue, visit.cart, visit.product, visit.options, config)
    ids += [f"buybox.quantity.{n}" for n in range(1, most + 1) if n != visit.quantity]
    line = line_index(visit.cart, visit.product, visit.options)
    has_place = line is not None or len(visit.cart) < config.cart_lines
    if most and has_place and not missing_options(product, visit.options):
        if line is None or visit.cart[line].quantity < most:
            ids.append("buybox.add_to_cart")
        ids.append("buybox.buy_now")
    if not visit.reviews and product.reviews:
        ids.append("reviews.see_reviews")
    elif visit.reviews * REVIEWS_PER_PAGE < product.reviews:
        ids.append("reviews.next_page")
    if visit.reviews:
        ids.append("reviews.close")
    if visit.query:
        ids.append("breadcrumb.back_to_results")
    near = [
        n for n in results(catalogue, product.title, (), SORTS[0])[:4] if n != visit.product
    ]
    names = [catalogue.products[n].slug for n in near[:2]]
    ids += [f"similar_items.{name}.product_link" for name in names]
    return " | ".join(parts), [_product(product)], ids


def _reviews(product: Product, page: int) -> str:
    """Synthetic reviews, whose stars scatter around the product's rating."""
    first = (page - 1) * REVIEWS_PER_PAGE
    reviews = []
    for n in range(first, min(first + REVIEWS_PER_PAGE, product.reviews)):
        key = stable_key("review", product.product_id, n)
        stars = min(max(round(product.rating) + key % 3 - 1, 1), 5)
        texts = _PRAISE if stars > 3 else _BLAME
        reviews.append(f"{stars}/5 {texts[key // 3 % len(texts)]}")
    return ", ".join(reviews)


def _cart(catalogue: ShopCatalogue, visit: Browsing, config: ViewConfig) -> _Layout:
    selected = [line for line in visit.cart if line.selected]
    total = money(subtotal(catalogue, visit.cart))
    context = "Shopping cart | " + (
        f"{_items(selected)} selected | subtotal: {total}" if visit.cart else "it is empty"
    )
    products: list[PageProduct] = []
    ids: list[str] = []
    for name, line in zip(line_names(catalogue, visit.cart), visit.cart, strict=True):
        product = catalogue.products[line.product]
        products.append(_product(product, _line_details(line)))
        ids.append(f"active_item_list.{name}.checkbox")
        if line.quantity < most_in_line(catalogue, visit.cart, *line[:2], config):
            ids.append(f"active_item_list.{name}.increase")
        if line.quantity > 1:
            ids.append(f"active_item_list.{name}.decrease")
        ids += [f"active_item_list.{name}.delete", f"active_item_list.{name}.product_link"]
    if selected:
        ids.append("cart.proceed_to_checkout")
    return context, products, ids


def _line_details(line: CartLine) -> str:
    parts = [f"{name}: {value}" for name, value in line.options]
    parts += [f"quantity: {line.quantity}", "selected" if line.selected else "not selected"]
    return "; ".join(parts)


def _checkout(catalogue: ShopCatalogue, visit: Browsing, config: ViewConfig) -> _Layout:
    lines = [line for line in visit.cart if line.selected]
    total = money(subtotal(catalogue, lines))
    products = [_product(catalogue.products[n.product], _line_details(n)) for n in lines]
    ids = ["checkout.place_order", "checkout.back_to_cart"]
    return f"Checkout | {_items(lines)} | total: {total}", products, ids


def _topic(catalogue: ShopCatalogue, visit: Browsing, config: ViewConfig) -> _Layout:
    title = visit.topic.replace("_", " ")
    if visit.place == "account":
        return f"Your account | {title}", [], []
    return f"Help | {title}", [], [f"help.{visit.topic}.was_this_helpful"]
