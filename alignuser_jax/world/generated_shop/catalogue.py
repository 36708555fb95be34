"""The catalogue of the generated shop: products made from shopping goals, and search over them.

Goals and queries may be real (`generated_shop.goals`). Products, prices, ratings and options
are generated around them and always synthetic.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import log

import numpy as np

from alignuser_jax.randomness import named_generator
from alignuser_jax.world.generated_shop.goals import ShopGoals, synthetic_shop_goals
from alignuser_jax.world.shop.page import slug

PRODUCT_COLOURS = (
    *("black", "white", "blue", "red", "green", "grey", "pink", "brown", "purple", "yellow"),
    *("silver", "gold", "beige", "navy", "orange"),
)
PRODUCT_SIZES = ("small", "medium", "large", "x-large", "xx-large")
BRANDS = (
    *("Acorn", "Birchway", "Calder", "Dunmore", "Elmstead", "Fernhill", "Garnet", "Harrow"),
    *(
        "Inverley",
        "Juniper",
        "Kestrel",
        "Larkfield",
        "Merrow",
        "Northgate",
        "Oakley",
        "Pinecrest",
    ),
)
SORTS = ("relevance", "price_low_to_high", "price_high_to_low", "customer_reviews")
"""The orders of a page of results; the first is the default."""
_PRICE_BANDS = (  # name, cents from, cents below
    ("under_25", 0, 2500),
    ("25_to_50", 2500, 5000),
    ("50_to_100", 5000, 10000),
    ("over_100", 10000, 1 << 40),
)

_WORD = re.compile(r"[a-z0-9][a-z0-9.'-]*[a-z0-9]|[a-z0-9]")
_LIMIT = re.compile(r"(?:up to|under|below|less than|lower than)\s+\$?(\d{1,5})")
_FILLERS = """
a an and are as at be by buy can come comes could do dollars find for from get give has have
help i i'd i'm id im in interested is it its less like look looking lower made me must my need
of on one or please pick price s searching should so some t than that the them these this to
under below up want where where's which will with would also you your
"""
_STOP = frozenset(_FILLERS.split())


@dataclass(frozen=True, slots=True)
class Product:
    """A synthetic product.

    The key of a run's catalogue is made from its `repr`, so the class and its fields keep their
    names.

    Attributes:
        product_id: The id.
        title: The title, unique in its catalogue.
        slug: The title as a part of semantic ids, unique too.
        brand: The brand.
        attributes: What a goal may ask for, such as "easy clean".
        options: (name, values) of each option; a buyer chooses one value of each.
        price_cents: The price in cents.
        rating: The mean rating in stars, 1 to 5.
        reviews: How many reviews there are.
        stock: How many are left.
    """

    product_id: str
    title: str
    slug: str
    brand: str
    attributes: tuple[str, ...]
    options: tuple[tuple[str, tuple[str, ...]], ...]
    price_cents: int
    rating: float
    reviews: int
    stock: int


@dataclass(frozen=True, slots=True)
class Goal:
    """What a shopper wants.

    The key of a run's catalogue is made from its `repr`, so the class and its fields keep their
    names.

    Attributes:
        text: The goal in words.
        queries: What people typed to find it.
        product: The index in the catalogue of the product that was made to fit it.
        options: (name, value) of the options that the goal names.
        limit_cents: The most that the shopper pays, in cents; 0 for no limit.
    """

    text: str
    queries: tuple[str, ...]
    product: int
    options: tuple[tuple[str, str], ...] = ()
    limit_cents: int = 0


@dataclass(frozen=True)
class CatalogueConfig:
    """How large a generated catalogue is.

    Attributes:
        goals: How many goals are drawn.
        per_goal: How many products are made for each: one has everything that the goal asks
            for, the others lack some of it.
        seed: Draws the goals and everything about the products.
    """

    goals: int = 120
    per_goal: int = 6
    seed: int = 0

    def __post_init__(self) -> None:
        if self.goals < 1 or self.per_goal < 1:
            raise ValueError(
                f"goals={self.goals}, per_goal={self.per_goal}: expected 1 or more of each"
            )


@dataclass(frozen=True, eq=False)
class ShopCatalogue:
    """The products of a generated shop and the goals that they were made for.

    Two catalogues are equal only if they are the same object, so that search can be cached.

    Attributes:
        products: The products.
        goals: The goals.
        index_of_slug: The index of a product by its slug.
        postings: (index of a product, weight) by word, for search.
        source: Where the goals come from, such as "webshop goals". The products are always
            synthetic.
    """

    products: tuple[Product, ...]
    goals: tuple[Goal, ...]
    index_of_slug: Mapping[str, int]
    postings: Mapping[str, tuple[tuple[int, float], ...]]
    source: str


@lru_cache(maxsize=1 << 15)
def content_words(text: str) -> tuple[str, ...]:
    """Return the words of a goal, a query or a title that carry meaning, each once."""
    return tuple(dict.fromkeys(w for w in _WORD.findall(text.lower()) if w not in _STOP))


def make_catalogue(
    goals: ShopGoals | None = None, config: CatalogueConfig | None = None
) -> ShopCatalogue:
    """Return a catalogue of products made for shopping goals.

    The same goals and configuration give the same catalogue. Goals that have queries are drawn
    first, because only they are known to be searched for.

    Args:
        goals: Goals to draw from; without them the goals are synthetic too.
        config: How many goals are drawn and how many products each gets.

    Raises:
        ValueError: If no goal has a word to search for.

    Example:
        >>> catalogue = make_catalogue(config=CatalogueConfig(goals=3, per_goal=2))
        >>> len(catalogue.goals), len(catalogue.products), catalogue.source
        (3, 6, 'synthetic goals')
    """
    config = config or CatalogueConfig()
    goals = goals or synthetic_shop_goals(config.goals, config.seed)
    rng = named_generator("catalogue", config.seed)
    texts = _draw_goals(rng, goals, config.goals)
    vocabulary = goals.attributes or ("high quality",)
    products: list[Product] = []
    drawn: list[Goal] = []
    slugs: Counter[str] = Counter()
    for text in texts:
        goal, title_words = _goal(goals, text, len(products))
        text_words = set(content_words(text))
        attributes = [a for a in vocabulary[:400] if set(content_words(a)) <= text_words]
        attributes = [a for a in attributes if content_words(a)]
        drawn.append(goal)
        for n in range(config.per_goal):
            fits = n == 0
            kept_words = title_words if fits else _some(rng, title_words)
            extra = [str(a) for a in rng.choice(vocabulary[:200], rng.integers(0, 3))]
            own = attributes if fits else [a for a in attributes if rng.random() < 0.5]
            draft = _Draft(
                kept_words,
                tuple(dict.fromkeys([*own, *extra]))[:6],
                dict(goal.options) if fits else {},
                goal.limit_cents if fits else 0,
                fits,
            )
            products.append(_product(rng, len(products), draft, slugs))
    return ShopCatalogue(
        tuple(products),
        tuple(drawn),
        {product.slug: n for n, product in enumerate(products)},
        _postings(products),
        f"{goals.source} goals",
    )


def _draw_goals(rng: np.random.Generator, goals: ShopGoals, count: int) -> list[str]:
    """At most `count` goals that have a word, those with queries first."""
    usable = [goal for goal in goals.goals if content_words(goal)]
    with_queries = [goal for goal in usable if goals.queries.get(goal)]
    without = [goal for goal in usable if not goals.queries.get(goal)]
    texts = _draw(rng, with_queries, count)
    texts += _draw(rng, without, count - len(texts))
    if not texts:
        raise ValueError(
            f"none of the {len(goals.goals)} {goals.source} goals has a word to search for "
            "(letters a to z): check the file of goals"
        )
    return texts


def _draw(rng: np.random.Generator, pool: list[str], count: int) -> list[str]:
    if count <= 0 or not pool:
        return []
    return [pool[n] for n in rng.permutation(len(pool))[:count]]


def _goal(goals: ShopGoals, text: str, product: int) -> tuple[Goal, tuple[str, ...]]:
    """The goal with this text, and the words of the title of the product that fits it."""
    text_words = content_words(text)
    queries = tuple(dict.fromkeys(q for q in goals.queries.get(text, ()) if content_words(q)))
    queries = queries or (" ".join(text_words[:8]),)
    limit = _LIMIT.search(text.lower())
    options = [("color", c) for c in PRODUCT_COLOURS if c in text_words][:1]
    options += [("size", s) for s in PRODUCT_SIZES if s in text_words][:1]
    limit_cents = int(limit.group(1)) * 100 if limit else 0
    goal = Goal(text, queries, product, tuple(options), limit_cents)
    return goal, content_words(max(queries, key=len))[:12]


def _some(rng: np.random.Generator, words: tuple[str, ...]) -> tuple[str, ...]:
    """The last word (mostly the noun), and each other word with a chance of 0.6."""
    return tuple(w for w in words[:-1] if rng.random() < 0.6) + words[-1:]


@dataclass(frozen=True, slots=True)
class _Draft:
    """What a product is made from.

    Attributes:
        title_words: The words of its title after the brand.
        attributes: Its attributes.
        options: The value that it must offer of each of these options.
        limit_cents: Its price is below this; 0 for no limit.
        fits: Whether it is the product that fits its goal, which is always in stock.
    """

    title_words: tuple[str, ...]
    attributes: tuple[str, ...]
    options: Mapping[str, str]
    limit_cents: int
    fits: bool


def _product(
    rng: np.random.Generator, number: int, draft: _Draft, slugs: Counter[str]
) -> Product:
    brand = str(rng.choice(BRANDS))
    title = " ".join([brand, *(word.capitalize() for word in draft.title_words)])
    title, name = _unique(title, slugs)
    options = []
    if "color" in draft.options or rng.random() < 0.5:
        options.append(("color", _values(rng, PRODUCT_COLOURS, draft.options.get("color"))))
    if "size" in draft.options or rng.random() < 0.3:
        options.append(("size", _values(rng, PRODUCT_SIZES, draft.options.get("size"))))
    most_cents = max(draft.limit_cents - 1, 199) if draft.limit_cents else 100_000
    cents = int(np.exp(rng.normal(np.log(2400), 0.8)) // 100) * 100 + 99
    return Product(
        f"P{number:05d}",
        title,
        name,
        brand,
        draft.attributes,
        tuple(options),
        min(max(cents, 199), most_cents),
        round(float(np.clip(rng.normal(4.1, 0.5), 1, 5)), 1),
        int(np.exp(rng.normal(np.log(120), 1.3))),
        0 if rng.random() < 0.04 and not draft.fits else int(rng.integers(1, 40)),
    )


def _unique(title: str, slugs: Counter[str]) -> tuple[str, str]:
    """The title and its slug, numbered if another product has the slug already."""
    first = name = slug(title)[:60].strip("_")
    slugs[first] += 1
    copy = slugs[first]
    while copy > 1 and name in slugs:  # another title may end in such a number itself
        name, copy = f"{first}_{copy}", copy + 1
    if name != first:
        slugs[name] += 1
        title = f"{title} ({name.rsplit('_', 1)[1]})"
    return title, name


def _values(
    rng: np.random.Generator, values: tuple[str, ...], needed: str | None
) -> tuple[str, ...]:
    drawn = {str(v) for v in rng.choice(values, 3, replace=False)} | ({needed} - {None})
    return tuple(v for v in values if v in drawn)


def _postings(products: list[Product]) -> dict[str, tuple[tuple[int, float], ...]]:
    """(product, weight) by word.

    A word in a title weighs its inverse document frequency, one in attributes and options half.
    """
    weights: dict[str, dict[int, float]] = defaultdict(dict)
    for n, product in enumerate(products):
        values = [v for _, options in product.options for v in options]
        for word in content_words(" ".join([*product.attributes, *values])):
            weights[word][n] = 0.5
        for word in content_words(product.title):
            weights[word][n] = 1.0
    return {
        word: tuple((n, w * log(1 + len(products) / len(of))) for n, w in of.items())
        for word, of in weights.items()
    }


@lru_cache(maxsize=1 << 13)  # the same queries come again and again
def ranked(catalogue: ShopCatalogue, query: str) -> tuple[int, ...]:
    """Return the indices of the products that have a word of the query, best first.

    They are ordered by the weight of the words that they have, then by rating and by number of
    reviews.
    """
    scores: dict[int, float] = defaultdict(float)
    for word in content_words(query):
        for n, weight in catalogue.postings.get(word, ()):
            scores[n] += weight
    products = catalogue.products
    return tuple(
        sorted(
            scores,
            key=lambda n: (-round(scores[n], 9), -products[n].rating, -products[n].reviews, n),
        )
    )


@lru_cache(maxsize=1 << 14)
def results(
    catalogue: ShopCatalogue, query: str, filters: tuple[str, ...], sort: str
) -> tuple[int, ...]:
    """Return the indices of the products on the pages of results, in order.

    Args:
        catalogue: The catalogue.
        query: What was searched for.
        filters: Names of filters that a product must pass (`keeps`).
        sort: One of `SORTS`; equals stay in the order of relevance.
    """
    products = catalogue.products
    order = [n for n in ranked(catalogue, query) if all(keeps(f, products[n]) for f in filters)]
    if sort == "price_low_to_high":
        order.sort(key=lambda n: products[n].price_cents)
    elif sort == "price_high_to_low":
        order.sort(key=lambda n: -products[n].price_cents)
    elif sort == "customer_reviews":
        order.sort(key=lambda n: -products[n].rating)
    return tuple(order)


def keeps(name: str, product: Product) -> bool:
    """Return whether `product` passes a filter such as `price.under_25` or `brand.acorn`."""
    kind, _, value = name.partition(".")
    if kind == "price":
        return any(v == value and a <= product.price_cents < b for v, a, b in _PRICE_BANDS)
    if kind == "rating":
        return product.rating >= 4
    if kind == "brand":
        return slug(product.brand) == value
    return any(slug(a) == value for a in product.attributes)


@lru_cache(maxsize=1 << 13)
def facets(catalogue: ShopCatalogue, query: str) -> tuple[str, ...]:
    """Return the filters that a query's results offer: each keeps some results and not all."""
    products = [catalogue.products[n] for n in ranked(catalogue, query)]
    brands = Counter(slug(p.brand) for p in products)
    attributes = Counter(slug(a) for p in products for a in p.attributes)
    names = [f"price.{band}" for band, _, _ in _PRICE_BANDS] + ["rating.4_stars_and_up"]
    names += [f"brand.{b}" for b, _ in sorted(brands.items(), key=lambda x: (-x[1], x[0]))[:3]]
    best = sorted(attributes.items(), key=lambda x: (-x[1], x[0]))[:4]
    names += [f"attribute.{a}" for a, _ in best]
    return tuple(n for n in names if 0 < sum(keeps(n, p) for p in products) < len(products))


@lru_cache(maxsize=1 << 13)
def suggestions(catalogue: ShopCatalogue, query: str, count: int) -> tuple[str, ...]:
    """Return at most `count` queries of other goals that share most words with this one."""
    words, own = set(content_words(query)), " ".join(query.lower().split())
    scores = {
        q: -len(words & set(content_words(q)))
        for goal in catalogue.goals
        for q in goal.queries
        if q.lower() != own and len(q) <= 80
    }
    return tuple(sorted((q for q in scores if scores[q]), key=lambda q: (scores[q], q))[:count])
