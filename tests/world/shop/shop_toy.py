"""A small log of shopping sessions, as `datasets.sessions` gives them."""

from types import SimpleNamespace

from alignuser_jax.world import logged_steps

HEADER = ("nav_bar.search_input", "nav_bar.search_button", "nav_bar.homepage", "nav_bar.cart")


def product(title, price="$5.00"):
    return SimpleNamespace(
        item_id="B" + title, title=title, price=price, availability="In stock", details="fine"
    )


RED, BLUE, TEA = product("Red USB Cable"), product("Blue USB Cable"), product("Green Tea")
HOME = ("browse", "Home page", (), HEADER)
CABLES = (
    "search",
    'Search results for "usb cable"',
    (RED, BLUE),
    (
        *HEADER,
        "search_results.red_usb_cable.product_title",
        "search_results.blue_usb_cable.product_title",
        "refinements.brand.acme",
        "pagination.next",
    ),
)
TEAS = (
    "search",
    'Search results for "tea"',
    (TEA,),
    (*HEADER, "search_results.green_tea.product_title", "refinements.brand.acme"),
)
DETAIL = ("buybox.add_to_cart", "buybox.buy_now", "product_options.color.red", "footer.legal")
RED_PAGE = ("detail", "Product page: Red USB Cable", (RED,), (*HEADER, *DETAIL))
TEA_PAGE = ("detail", "Product page: Green Tea", (TEA,), (*HEADER, *DETAIL))
RED_CART = ("cart", "Added to cart", (RED,), (*HEADER, "cart.proceed_to_checkout"))

TYPES = {
    "nav_bar.search_button": "search",
    "nav_bar.cart": "nav_bar",
    "search_results.red_usb_cable.product_title": "product_link",
    "search_results.green_tea.product_title": "product_link",
    "refinements.brand.acme": "filter",
    "buybox.add_to_cart": "purchase",
    "product_options.color.red": "product_option",
}


def session(name, user, *steps, split="train"):
    """`steps`: (page, action kind, target, text)."""
    made = [
        SimpleNamespace(
            order=order,
            page_kind=page[0],
            page_number=1,
            page_context=page[1],
            products=page[2],
            elements=page[3],
            action_kind=kind,
            target=target,
            text=text,
            click_type=TYPES.get(target, "") if kind == "click" else "",
            rationale="because" if order == 0 else "",
        )
        for order, (page, kind, target, text) in enumerate(steps)
    ]
    return SimpleNamespace(session_id=name, user_id=user, split=split, steps=tuple(made))


ANN = session(
    "ann-1",
    "ann",
    (HOME, "input", "nav_bar.search_input", "usb cable"),
    (HOME, "click", "nav_bar.search_button", ""),
    (CABLES, "scroll", "", ""),
    (CABLES, "click", "search_results.red_usb_cable.product_title", ""),
    (RED_PAGE, "click", "buybox.add_to_cart", ""),
    (RED_CART, "terminate", "", ""),
)
BOB = session(
    "bob-1",
    "bob",
    (HOME, "input", "nav_bar.search_input", "tea"),
    (TEAS, "click", "refinements.brand.acme", ""),
    (TEAS, "click", "search_results.green_tea.product_title", ""),
    (TEA_PAGE, "click", "product_options.color.red", ""),
    (TEA_PAGE, "terminate", "", ""),
)
HELD_OUT = session(
    "ann-2",
    "ann",
    (CABLES, "click", "pagination.next", ""),
    (TEAS, "input", "nav_bar.search_input", "secret of the test"),
    (TEAS, "terminate", "", ""),
    split="test",
)
STEPS = logged_steps([ANN, BOB])
TEST_STEPS = logged_steps([HELD_OUT])
