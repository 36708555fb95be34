"""The catalogue of the generated shop: products made from goals, and search over them.

Goals and queries may be real (`datasets.shop_goals`); products, prices, ratings and options are
generated around them and are synthetic always.
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

COLOURS = (
    *("black", "white", "blue", "red", "green", "grey", "pink", "brown", "purple", "yellow"),
    *("silver", "gold", "beige", "navy", "orange"),
)
SIZES = ("small", "medium", "large", "x-large", "xx-large")
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
_BANDS = (("under_25", 0, 2500), ("25_to_50", 2500, 5000), ("50_to_100", 5000, 10000))
_BANDS = (*_BANDS, ("over_100", 10000, 1 << 40))

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
    """`options` are (name, values) pairs, one value of each is chosen before it is bought;
    `reviews` is how many there are, `stock` how many are left.
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
    """What a shopper wants: `product` is the place in the catalogue of the product made for it,
    `options` the values that the goal names, `limit_cents` the most they pay (0: no limit).
    """

    text: str
    queries: tuple[str, ...]
    product: int
    options: tuple[tuple[str, str], ...] = ()
    limit_cents: int = 0


@dataclass(frozen=True)
class CatalogueConfig:
    """`goals` are drawn from those given; `per_goal` products are made for each: one that has
    all that is asked for, the others lacking some of it.
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
class Catalogue:
    """Compared by identity. `postings` holds (product, weight) by word; `source` says where the
    goals come from; the products are synthetic whatever it is.
    """

    products: tuple[Product, ...]
    goals: tuple[Goal, ...]
    places: Mapping[str, int]
    postings: Mapping[str, tuple[tuple[int, float], ...]]
    source: str


@lru_cache(maxsize=1 << 15)
def words(text: str) -> tuple[str, ...]:
    """The words of a goal, a query or a title that carry meaning, each once."""
    return tuple(dict.fromkeys(w for w in _WORD.findall(text.lower()) if w not in _STOP))


def make_catalogue(
    goals: ShopGoals | None = None, config: CatalogueConfig | None = None
) -> Catalogue:
    """The same catalogue for the same goals and configuration; without goals all is synthetic.
    Raises `ValueError` where no goal has a word.

    Goals that have queries are drawn first, since only they are known to be searched for.
    """
    config = config or CatalogueConfig()
    goals = goals or synthetic_shop_goals(config.goals, config.seed)
    rng = named_generator("catalogue", config.seed)
    asked = [goal for goal in goals.goals if words(goal) and goals.queries.get(goal)]
    rest = [goal for goal in goals.goals if words(goal) and not goals.queries.get(goal)]
    drawn = [*_draw(rng, asked, config.goals)]
    drawn += _draw(rng, rest, config.goals - len(drawn))
    if not drawn:
        raise ValueError(
            f"none of the {len(goals.goals)} {goals.source} goals has a word to search for "
            "(letters a to z): check the file of goals"
        )
    vocabulary = goals.attributes or ("high quality",)
    products: list[Product] = []
    made: list[Goal] = []
    slugs: Counter[str] = Counter()
    for text in drawn:
        found = words(text)
        queries = tuple(dict.fromkeys(q for q in goals.queries.get(text, ()) if words(q)))
        queries = queries or (" ".join(found[:8]),)
        core = words(max(queries, key=len))[:12]
        limit = _LIMIT.search(text.lower())
        limit_cents = int(limit.group(1)) * 100 if limit else 0
        wanted = [("color", c) for c in COLOURS if c in found][:1]
        wanted += [("size", s) for s in SIZES if s in found][:1]
        attributes = [a for a in vocabulary[:400] if set(words(a)) <= set(found) and words(a)]
        made.append(Goal(text, queries, len(products), tuple(wanted), limit_cents))
        for n in range(config.per_goal):
            kept = core if n == 0 else _some(rng, core)
            extra = [str(a) for a in rng.choice(vocabulary[:200], rng.integers(0, 3))]
            has = attributes if n == 0 else [a for a in attributes if rng.random() < 0.5]
            products.append(
                _product(
                    rng,
                    len(products),
                    kept,
                    tuple(dict.fromkeys([*has, *extra]))[:6],
                    wanted if n == 0 else [],
                    limit_cents if n == 0 else 0,
                    n == 0,
                    slugs,
                )
            )
    places = {product.slug: n for n, product in enumerate(products)}
    return Catalogue(
        tuple(products), tuple(made), places, _postings(products), f"{goals.source} goals"
    )


def _draw(rng: np.random.Generator, pool: list[str], count: int) -> list[str]:
    if count <= 0 or not pool:
        return []
    return [pool[n] for n in rng.permutation(len(pool))[:count]]


def _some(rng: np.random.Generator, core: tuple[str, ...]) -> tuple[str, ...]:
    """The last word (the noun, mostly) and each other word with three chances of five."""
    return tuple(w for w in core[:-1] if rng.random() < 0.6) + core[-1:]


def _product(rng, number, core, attributes, wanted, limit_cents, asked, slugs) -> Product:
    brand = str(rng.choice(BRANDS))
    title = " ".join([brand, *(word.capitalize() for word in core)])
    first = name = slug(title)[:60].strip("_")
    slugs[first] += 1
    copy = slugs[first]
    while copy > 1 and name in slugs:  # a title may end as a number's name does
        name, copy = f"{first}_{copy}", copy + 1
    if name != first:
        slugs[name] += 1
        title = f"{title} ({name.rsplit('_', 1)[1]})"
    options = []
    named = dict(wanted)
    if "color" in named or rng.random() < 0.5:
        options.append(("color", _values(rng, COLOURS, named.get("color"))))
    if "size" in named or rng.random() < 0.3:
        options.append(("size", _values(rng, SIZES, named.get("size"))))
    cents = int(np.exp(rng.normal(np.log(2400), 0.8)) // 100) * 100 + 99
    cents = min(max(cents, 199), max(limit_cents - 1, 199) if limit_cents else 100_000)
    return Product(
        f"P{number:05d}",
        title,
        name,
        brand,
        attributes,
        tuple(options),
        cents,
        round(float(np.clip(rng.normal(4.1, 0.5), 1, 5)), 1),
        int(np.exp(rng.normal(np.log(120), 1.3))),
        0 if rng.random() < 0.04 and not asked else int(rng.integers(1, 40)),
    )


def _values(rng, values: tuple[str, ...], needed: str | None) -> tuple[str, ...]:
    drawn = {str(v) for v in rng.choice(values, 3, replace=False)} | ({needed} - {None})
    return tuple(v for v in values if v in drawn)


def _postings(products: list[Product]) -> dict[str, tuple[tuple[int, float], ...]]:
    """A word weighs its inverse document frequency, half of it in attributes and options."""
    found: dict[str, dict[int, float]] = defaultdict(dict)
    for n, product in enumerate(products):
        values = [v for _, options in product.options for v in options]
        for word in words(" ".join([*product.attributes, *values])):
            found[word][n] = 0.5
        for word in words(product.title):
            found[word][n] = 1.0
    return {
        word: tuple((n, w * log(1 + len(products) / len(of))) for n, w in of.items())
        for word, of in found.items()
    }


@lru_cache(maxsize=1 << 13)  # a shop is asked the same queries again and again
def ranked(catalogue: Catalogue, query: str) -> tuple[int, ...]:
    """The products that have a word of the query, best first: by weight of the words they have,
    then by rating and number of reviews.
    """
    scores: dict[int, float] = defaultdict(float)
    for word in words(query):
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
    catalogue: Catalogue, query: str, filters: tuple[str, ...], sort: str
) -> tuple[int, ...]:
    """`ranked`, filtered and sorted (`SORTS`; equals stay in order of relevance)."""
    products = catalogue.products
    found = [n for n in ranked(catalogue, query) if all(keeps(f, products[n]) for f in filters)]
    if sort == "price_low_to_high":
        found.sort(key=lambda n: products[n].price_cents)
    elif sort == "price_high_to_low":
        found.sort(key=lambda n: -products[n].price_cents)
    elif sort == "customer_reviews":
        found.sort(key=lambda n: -products[n].rating)
    return tuple(found)


def keeps(name: str, product: Product) -> bool:
    """True where the filter `name` (`price.under_25`, `brand.acorn`, …) lets `product` pass."""
    kind, _, value = name.partition(".")
    if kind == "price":
        return any(v == value and a <= product.price_cents < b for v, a, b in _BANDS)
    if kind == "rating":
        return product.rating >= 4
    if kind == "brand":
        return slug(product.brand) == value
    return any(slug(a) == value for a in product.attributes)


@lru_cache(maxsize=1 << 13)
def facets(catalogue: Catalogue, query: str) -> tuple[str, ...]:
    """The filters that a query's results offer: each keeps some of them and not all."""
    products = [catalogue.products[n] for n in ranked(catalogue, query)]
    brands = Counter(slug(p.brand) for p in products)
    attributes = Counter(slug(a) for p in products for a in p.attributes)
    names = [f"price.{band}" for band, _, _ in _BANDS] + ["rating.4_stars_and_up"]
    names += [f"brand.{b}" for b, _ in sorted(brands.items(), key=lambda x: (-x[1], x[0]))[:3]]
    best = sorted(attributes.items(), key=lambda x: (-x[1], x[0]))[:4]
    names += [f"attribute.{a}" for a, _ in best]
    return tuple(n for n in names if 0 < sum(keeps(n, p) for p in products) < len(products))


@lru_cache(maxsize=1 << 13)
def suggestions(catalogue: Catalogue, query: str, count: int) -> tuple[str, ...]:
    """Other goals' queries that share most words with this one."""
    wanted, own = set(words(query)), " ".join(query.lower().split())
    found = {
        q: -len(wanted & set(words(q)))
        for goal in catalogue.goals
        for q in goal.queries
        if q.lower() != own and len(q) <= 80
    }
    return tuple(sorted((q for q in found if found[q]), key=lambda q: (found[q], q))[:count])
