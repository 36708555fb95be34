"""From one of OPeRA's simplified pages to the page of METHOD.md section 2.4.

The elements of `simplified_html` that a person can act on carry `name="..."`: dotted semantic
paths like `nav_bar.search_input` or `search_results.<product>.view_product`. They are the
page's semantic ids, in document order. Products are read from the blocks that share such a
path.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from html.parser import HTMLParser
from urllib.parse import parse_qs, unquote, urlsplit

from alignuser_jax.datasets.reading.values import identifier, plain, words
from alignuser_jax.datasets.sessions import LoggedProduct

DETAIL_CHARACTERS = 160
"""DEFAULT: as much of a product's block as its line of a page shows."""
TITLE_CHARACTERS = 200
CONTEXT_ITEMS = 5
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
    """The parts of a page; `item_id` is the product it is about, "" for none."""

    kind: str
    number: int
    context: str
    products: tuple[LoggedProduct, ...]
    elements: tuple[str, ...]
    item_id: str


@dataclass(frozen=True, slots=True)
class Markup:
    """What a page's HTML holds: names in document order, each once; (innermost name, text)
    pairs; the titles (`h1`, `title`).
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
            if tag in ("input", "img") and inner and values.get(key):
                self.texts.append((inner, plain(values[key])))
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
    """The names and texts of a page; whatever the HTML is, there is no error."""
    reader = _Reader()
    try:
        reader.feed(html)
        reader.close()
    except AssertionError:  # html.parser on some malformed declarations: keep what was read
        pass
    heading = reader.headings["h1"] or reader.headings["title"]
    return Markup(tuple(reader.names), tuple(reader.texts), heading)


def build_page(html: str, url: str, page_meta: object) -> Page:
    """The page of one action row: its `simplified_html`, `url` and `page_meta` (JSON text).

    The column `products` is not used, against METHOD.md section 2.4: it is filled on purchases
    only, so that a page made from it would tell the action that the person is about to take.
    """
    markup, meta = read_markup(html), loaded(page_meta)
    meta = meta if isinstance(meta, dict) else {}
    path = urlsplit_safe(url)
    query = parse_qs(path.query)
    kind = _kind(path.path, query, markup.names)
    found = _ASIN.search(path.path)
    item_id = found.group(1) if found else ""
    number = next((int(v) for v in query.get("page", ()) if v.isdecimal() and len(v) < 5), 1)
    shown = _shown_products(markup)
    if kind == "detail" and "product-reviews" not in path.path:
        shown = (_main_product(markup, item_id), *shown)
    return Page(kind, max(number, 1), _context(kind, meta, query), shown, markup.names, item_id)


def urlsplit_safe(url: str):
    try:
        return urlsplit(url)
    except ValueError:  # a bracket that is no IPv6 address
        return urlsplit("")


def loaded(value: object) -> object:
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
    """One line: the kind of page, what was searched for, and what lies in the cart."""
    terms = [words(query[key][0]) for key in ("k", "field-keywords") if key in query]
    noted = meta.get("search_term")
    for entry in noted if isinstance(noted, list) else [noted]:
        terms.append(words(entry.get("term") if isinstance(entry, dict) else entry))
    term = next((term for term in terms if term), "")
    parts = [f"{kind} page" if kind != "search" else "search results page"]
    if term:
        parts.append(f"search term: {term}")
    cart = listed_products(meta.get("cart_items"))
    if cart:
        shown = [product.title for product in cart[:CONTEXT_ITEMS]]
        more = len(cart) - len(shown)
        parts.append(f"cart: {'; '.join(shown)}" + (f"; {more} more" if more else ""))
    return " | ".join(parts)


def listed_products(value: object) -> tuple[LoggedProduct, ...]:
    """The products of a JSON list of {asin, title, price, quantity, options}; () for none."""
    value = loaded(value)
    rows = value if isinstance(value, list) else [value]
    found = []
    for row in rows:
        if not isinstance(row, dict) or not (title := words(row.get("title"))):
            continue
        options = row.get("options")
        if isinstance(options, dict):
            options = [f"{words(key)}: {words(part)}" for key, part in options.items()]
        details = [words(options)]
        if quantity := words(row.get("quantity")):
            details.append(f"quantity: {quantity}")
        found.append(
            LoggedProduct(
                identifier(row.get("asin")),
                title[:TITLE_CHARACTERS],
                words(row.get("price")),
                "",
                "; ".join(text for text in details if text)[:DETAIL_CHARACTERS],
            )
        )
    return tuple(found)


def _block(name: str) -> str:
    """The path of the product block that a name belongs to, "" for none."""
    parts = name.split(".")
    if parts[-1] in _TITLE_PARTS and len(parts) > 1:
        return ".".join(parts[:-1])
    if parts[0] in _LISTS and len(parts) > 2:
        return ".".join(parts[:2])
    return parts[0] if _NUMBERED.match(parts[0]) else ""


def _shown_products(markup: Markup) -> tuple[LoggedProduct, ...]:
    blocks: dict[str, None] = {b: None for n in markup.names if (b := _block(n))}
    texts: dict[str, list[tuple[str, str]]] = {block: [] for block in blocks}
    for name, text in markup.texts:
        parts = name.split(".")
        for length in range(len(parts), 0, -1):
            if (path := ".".join(parts[:length])) in texts:
                texts[path].append((name, text))
                break
    products = (_product(block, found) for block, found in texts.items())
    return tuple(product for product in products if product)


def _product(block: str, texts: Iterable[tuple[str, str]]) -> LoggedProduct | None:
    """A block with a title: the text of its titled part, else its longest text."""
    texts = list(texts)
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
