"""Rebuild the page of docs/method.md section 2.4 from one of OPeRA's simplified HTML pages.

The elements of `simplified_html` that a person can act on have a `name`: a dotted semantic path
such as `nav_bar.search_input` or `search_results.<product>.view_product`. These are the page's
semantic ids, in document order. Products are read from the blocks that share such a path.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from html.parser import HTMLParser
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

from alignuser_jax.datasets.reading.values import identifier, plain, text_of
from alignuser_jax.datasets.sessions import LoggedProduct

DETAIL_CHARACTERS = 160
"""DEFAULT: how much of a product's block its line of a page shows."""
TITLE_CHARACTERS = 200
"""Longest title of a product; longer ones are cut."""
CONTEXT_ITEMS = 5
"""How many products of the cart a page's context names."""
_VOID = frozenset(
    [
        *("area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta"),
        *("param", "source", "track", "wbr"),
    ]
)
_TITLE_PARTS = frozenset(
    ["product_title", "product_name", "product_detail", "view_product", "title"]
)
_LISTS = ("search_results", "active_item_list", "saved_for_later_list", "product_list")
_NUMBERED = re.compile(r"product_\d+$")
_PRICE = re.compile(r"(?:US)?[$€£]\s?\d[\d,]*(?:\.\d{2})?")
_AVAILABILITY = re.compile(
    r"in stock(?: soon)?|only \d+ left in stock|out of stock|temporarily out of stock"
    r"|currently unavailable|usually ships within [\w ]{1,30}",
    re.IGNORECASE,
)
_ASIN = re.compile(r"/(?:dp|gp/product|gp/aw/d|product-reviews)/([A-Z0-9]{10})(?![A-Z0-9])")
_KINDS = (
    ("checkout", ("/checkout", "/gp/buy", "/buy/", "/spc")),
    ("cart", ("/cart", "/gp/huc", "/sw/")),
    ("detail", ("/dp/", "/gp/product/", "/gp/aw/d/", "/product-reviews/")),
)


@dataclass(frozen=True, slots=True)
class Page:
    """The parts of a page.

    Attributes:
        kind: One of `sessions.PAGE_KINDS`.
        number: Number of the page of results, from 1.
        context: What the page is about, on one line.
        products: The products on the page, in document order.
        elements: Semantic ids of what can be acted on, in document order.
        item_id: The product that the page is about, "" for none.
    """

    kind: str
    number: int
    context: str
    products: tuple[LoggedProduct, ...]
    elements: tuple[str, ...]
    item_id: str


@dataclass(frozen=True, slots=True)
class Markup:
    """What a page's HTML holds.

    Attributes:
        names: The `name` attributes in document order, each once.
        texts: (innermost name, text) of every piece of text.
        heading: The text of `h1`, or else of `title`.
    """

    names: tuple[str, ...]
    texts: tuple[tuple[str, str], ...]
    heading: str


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.names: dict[str, None] = {}
        self.texts: list[tuple[str, str]] = []
        self.headings = {"h1": "", "title": ""}
        self.open: list[tuple[str, str]] = []  # (tag, innermost name)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        inner = self.open[-1][1] if self.open else ""
        values = dict(attrs)
        name = plain(values.get("name") or "")
        if name and tag not in ("meta", "param"):
            self.names[name] = None
            inner = name
        for key in ("value", "placeholder", "alt", "aria-label"):
            if tag in ("input", "img") and inner and (text := values.get(key)):
                self.texts.append((inner, plain(text)))
                break
        if tag not in _VOID:
            self.open.append((tag, inner))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        for place in range(len(self.open) - 1, max(len(self.open) - 64, -1), -1):
            if self.open[place][0] == tag:
                del self.open[place:]
                return

    def handle_data(self, data: str) -> None:
        if not (text := plain(data)):
            return
        tag, inner = self.open[-1] if self.open else ("", "")
        if tag in self.headings and not self.headings[tag]:
            self.headings[tag] = text
        if tag not in ("script", "style", "title"):
            self.texts.append((inner, text))


@lru_cache(maxsize=64)
def read_markup(html: str) -> Markup:
    """Return the names and texts of a page; malformed HTML raises no error."""
    reader = _Reader()
    try:
        reader.feed(html)
        reader.close()
    except AssertionError:  # html.parser on some malformed declarations: keep what was read
        pass
    heading = reader.headings["h1"] or reader.headings["title"]
    return Markup(tuple(reader.names), tuple(reader.texts), heading)


def build_page(html: str, url: str, page_meta: object) -> Page:
    """Build the page of one row of an action table.

    The column `products` is not used, against docs/method.md section 2.4: it is filled on
    purchases only, so a page made from it would give away the action that the person is about
    to take.

    Args:
        html: The column `simplified_html`.
        url: The column `url`.
        page_meta: The column `page_meta`: JSON text, or what it holds.
    """
    markup, meta = read_markup(html), loaded(page_meta)
    meta = meta if isinstance(meta, dict) else {}
    path = _split_url(url)
    query = parse_qs(path.query)
    kind = _kind(path.path, query, markup.names)
    asin = _ASIN.search(path.path)
    item_id = asin.group(1) if asin else ""
    number = next((int(v) for v in query.get("page", ()) if v.isdecimal() and len(v) < 5), 1)
    products = _listed_blocks(markup)
    if kind == "detail" and "product-reviews" not in path.path:
        products = (_main_product(markup, item_id), *products)
    context = _context(kind, meta, query)
    return Page(kind, max(number, 1), context, products, markup.names, item_id)


def _split_url(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError:  # a bracket that is no IPv6 address
        return urlsplit("")


def loaded(value: object) -> object:
    """Return what a column of JSON text holds: `None` if it is no JSON, other types as is."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return None


def _kind(path: str, query: dict, names: Sequence[str]) -> str:
    path = unquote(path).lower() + "/"
    for kind, marks in _KINDS:
        if any(mark in path for mark in marks):
            return kind
    if path.startswith("/s/") or "k" in query or "field-keywords" in query:
        return "search"
    first = Counter(name.partition(".")[0] for name in names)
    if first["active_item_list"]:
        return "cart"
    if first["search_results"]:
        return "search"
    if first["buybox"]:
        return "detail"
    return "browse"


def _context(kind: str, meta: dict, query: dict) -> str:
    """Return one line: the kind of page, what was searched for, and what is in the cart."""
    terms = [text_of(query[key][0]) for key in ("k", "field-keywords") if key in query]
    logged = meta.get("search_term")
    for entry in logged if isinstance(logged, list) else [logged]:
        terms.append(text_of(entry.get("term") if isinstance(entry, dict) else entry))
    term = next((term for term in terms if term), "")
    parts = [f"{kind} page" if kind != "search" else "search results page"]
    if term:
        parts.append(f"search term: {term}")
    cart = listed_products(meta.get("cart_items"))
    if cart:
        titles = [product.title for product in cart[:CONTEXT_ITEMS]]
        more = len(cart) - len(titles)
        parts.append(f"cart: {'; '.join(titles)}" + (f"; {more} more" if more else ""))
    return " | ".join(parts)


def listed_products(value: object) -> tuple[LoggedProduct, ...]:
    """Return the products of a JSON list of {asin, title, price, quantity, options}."""
    value = loaded(value)
    rows = value if isinstance(value, list) else [value]
    products = []
    for row in rows:
        if not isinstance(row, dict) or not (title := text_of(row.get("title"))):
            continue
        options = row.get("options")
        if isinstance(options, dict):
            options = [f"{text_of(key)}: {text_of(part)}" for key, part in options.items()]
        details = [text_of(options)]
        if quantity := text_of(row.get("quantity")):
            details.append(f"quantity: {quantity}")
        products.append(
            LoggedProduct(
                identifier(row.get("asin")),
                title[:TITLE_CHARACTERS],
                text_of(row.get("price")),
                "",
                "; ".join(text for text in details if text)[:DETAIL_CHARACTERS],
            )
        )
    return tuple(products)


def _block(name: str) -> str:
    """Return the path of the product block that a name belongs to, "" for none."""
    parts = name.split(".")
    if parts[-1] in _TITLE_PARTS and len(parts) > 1:
        return ".".join(parts[:-1])
    if parts[0] in _LISTS and len(parts) > 2:
        return ".".join(parts[:2])
    return parts[0] if _NUMBERED.match(parts[0]) else ""


def _listed_blocks(markup: Markup) -> tuple[LoggedProduct, ...]:
    blocks: dict[str, None] = {b: None for n in markup.names if (b := _block(n))}
    texts: dict[str, list[tuple[str, str]]] = {block: [] for block in blocks}
    for name, text in markup.texts:
        parts = name.split(".")
        for length in range(len(parts), 0, -1):
            if (path := ".".join(parts[:length])) in texts:
                texts[path].append((name, text))
                break
    products = (_product(block_texts) for block_texts in texts.values())
    return tuple(product for product in products if product)


def _product(texts: Sequence[tuple[str, str]]) -> LoggedProduct | None:
    """Return the product of a block, titled by its title part or else by its longest text.

    Returns `None` for a block without a title.
    """
    titled = [text for name, text in texts if name.rpartition(".")[2] in _TITLE_PARTS]
    candidates = [t for _, t in texts if not _PRICE.fullmatch(t)]
    title = " ".join(dict.fromkeys(titled)) or max(candidates, key=len, default="")
    if not any(letter.isalpha() for letter in title):
        return None
    rest = " ".join(t for n, t in texts if t not in titled and t != title)
    return _described("", title, rest)


def _main_product(markup: Markup, item_id: str) -> LoggedProduct:
    title = re.sub(r"^Amazon\.com\s*:\s*", "", markup.heading) or item_id
    own = ("buybox", "about_this_item", "product_options")
    rest = " ".join(t for n, t in markup.texts if n.partition(".")[0] in own)
    return _described(item_id, title, rest)


def _described(item_id: str, title: str, rest: str) -> LoggedProduct:
    price, available = _PRICE.search(rest), _AVAILABILITY.search(rest)
    details = _AVAILABILITY.sub("", _PRICE.sub("", rest))
    return LoggedProduct(
        item_id,
        title[:TITLE_CHARACTERS],
        price.group() if price else "",
        available.group() if available else "",
        " ".join(details.split())[:DETAIL_CHARACTERS],
    )
