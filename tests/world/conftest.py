"""A catalogue whose titles do their worst, and a recommender that gives its first items."""

from dataclasses import dataclass, field

import pytest

from alignuser_jax.records import Interaction, Item, Slate
from alignuser_jax.world import RecommendationSite, SiteConfig

TITLES = (
    'Heat "1995"',
    "a -> b <- c",
    "two\nlines",
    "<b>",
    "<-->",
    "",
    "  x\t\x00y ",
    "[2]",
)
ITEMS = {
    str(n): Item(
        str(n),
        TITLES[n] if n < len(TITLES) else f"Film {n}",
        ("Drama", "Crime") if n % 2 else ("Comedy",),
        f"Description {n}. " + "word " * 200,
    )
    for n in range(24)
}
HISTORIES = {"u": (Interaction("21", 5.0, 1), Interaction("22", 2.0, 2))}


@dataclass
class First:
    """The first items that are not excluded; remembers what it was asked."""

    calls: list = field(default_factory=list)

    def recommend(self, requests):
        self.calls.append(list(requests))
        return [Slate(tuple([i for i in ITEMS if i not in r.exclude][: r.k])) for r in requests]


@pytest.fixture
def first():
    return First()


@pytest.fixture(scope="session")
def items():
    return ITEMS


@pytest.fixture
def make_site():
    def make(**config):
        return RecommendationSite(ITEMS, HISTORIES, {"0": 3.8666}, SiteConfig(**config))

    return make
