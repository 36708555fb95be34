"""A small log of shopping sessions."""

from alignuser_jax.datasets.sessions import LoggedProduct, Session, Step
from alignuser_jax.world import logged_steps

HEADER = ("nav_bar.search_input", "nav_bar.search_button", "nav_bar.homepage", "nav_bar.cart")


def product(title):
    return LoggedProduct("B" + title, title, "$5.00", "In stock", "fine")


RED, BLUE, TEA = product("Red USB Cable"), product("Blue USB Cable"), product("Green Tea")
DETAIL = ("buybox.add_to_cart", "buybox.buy_now", "product_options.color.red", "footer.legal")
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
RED_PAGE = ("detail", "Product page: Red USB Cable", (RED,), (*HEADER, *DETAIL))
TEA_PAGE = ("detail", "Product page: Green Tea", (TEA,), (*HEADER, *DETAIL))
RED_CART = ("cart", "Added to cart", (RED,), (*HEADER, "cart.proceed_to_checkout"))
PAGES = {"home": HOME, "cables": CABLES, "teas": TEAS}
PAGES |= {"red": RED_PAGE, "tea": TEA_PAGE, "cart": RED_CART}

TYPES = {
    "nav_bar.search_button": "search",
    "nav_bar.cart": "nav_bar",
    "search_results.red_usb_cable.product_title": "product_link",
    "search_results.green_tea.product_title": "product_link",
    "refinements.brand.acme": "filter",
    "buybox.add_to_cart": "purchase",
    "product_options.color.red": "product_option",
}


def lines(text):
    """The steps of a text with one `page | kind of action | target | text` a line."""
    rows = [[part.strip() for part in line.split("|")] for line in text.strip().splitlines()]
    return [(PAGES[page], kind, target, typed) for page, kind, target, typed in rows]


def session(name, user, *steps, split="train"):
    """`steps`: (page, kind of action, target, text)."""
    records = [
        Step(
            *(name, user, order, 1_000 * order),
            *(page[0], 1, *page[1:]),
            *(kind, target, text, TYPES.get(target, "") if kind == "click" else ""),
            rationale="because" if order == 0 else "",
        )
        for order, (page, kind, target, text) in enumerate(steps)
    ]
    return Session(name, user, split, tuple(records))


ANN = session(
    "ann-1",
    "ann",
    *lines(
        """
        home   | input     | nav_bar.search_input                       | usb cable
        home   | click     | nav_bar.search_button                      |
        cables | scroll    |                                            |
        cables | click     | search_results.red_usb_cable.product_title |
        red    | click     | buybox.add_to_cart                         |
        cart   | terminate |                                            |
        """
    ),
)
BOB = session(
    "bob-1",
    "bob",
    *lines(
        """
        home | input     | nav_bar.search_input                   | tea
        teas | click     | refinements.brand.acme                 |
        teas | click     | search_results.green_tea.product_title |
        tea  | click     | product_options.color.red              |
        tea  | terminate |                                        |
        """
    ),
)
HELD_OUT = session(
    "ann-2",
    "ann",
    *lines(
        """
        cables | click     | pagination.next      |
        teas   | input     | nav_bar.search_input | secret of the test
        teas   | terminate |                      |
        """
    ),
    split="test",
)
STEPS = logged_steps([ANN, BOB])
TEST_STEPS = logged_steps([HELD_OUT])
