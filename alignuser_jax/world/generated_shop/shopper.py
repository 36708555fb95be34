"""A scripted, goal-driven shopper for the generated shop: no language model, a few habits.

It reads what an agent reads (page text and listed actions) and its goal. It searches with the
goal's queries, opens what looks like the goal, reads reviews, puts into the cart what fits and
convinces it, looks at account and help pages now and then, and when its patience is used up it
buys or leaves. How long it looks and how often it buys are calibrated (`ShopperConfig`); the
rest is habit.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import numpy as np

from alignuser_jax.randomness import generator_of, named_generator, stable_key
from alignuser_jax.records import Action, State
from alignuser_jax.world.generated_shop.catalogue import Goal, words
from alignuser_jax.world.shop import actions
from alignuser_jax.world.shop.page import ShopPage, read_page, slug

_IN_PAGE = ("product_options.", "buybox.quantity.", "buybox.add_to_cart", "reviews.")
_IN_CART = (".checkbox", ".increase", ".decrease", ".delete")


@dataclass(frozen=True)
class ShopperConfig:
    """Patience is log-normal in pages, in whole pages, one at least.

    Calibrated on every other session of the UCI Online Shoppers file, in a shop with WebShop's
    goals (with generated goals shoppers find more and buy more): `patience_pages` (the median),
    `patience_spread` (of its logarithm), `take_from` (the share of the goal's words that a
    product must show to fit), `convinced` (the chance that one which fits is put into the
    cart) and `buyers` (the share that will buy what is in the cart), `wanderers` (the share
    that ever looks at account and help pages), `account` and `help` (their chances per page of
    looking there). DEFAULTS, calibrated on nothing: all others. `open_from` is the share of the
    goal's words that a product must show to be opened, `noise` the spread of both shares;
    `deeper`, `reviews`, `filters`, `similar`, `quantity` and `doubts` (of those who will not
    buy, in the cart) are chances.
    """

    patience_pages: float = 19.0
    patience_spread: float = 1.25
    convinced: float = 0.2
    buyers: float = 0.36
    wanderers: float = 0.5
    account: float = 0.11
    help: float = 0.03
    open_from: float = 0.3
    take_from: float = 0.4
    noise: float = 0.12
    deeper: float = 0.6
    reviews: float = 0.25
    filters: float = 0.1
    similar: float = 0.15
    quantity: float = 0.1
    doubts: float = 0.3

    def __post_init__(self) -> None:
        if self.patience_pages < 1 or self.patience_spread < 0 or self.noise < 0:
            raise ValueError(
                f"patience_pages={self.patience_pages}, patience_spread="
                f"{self.patience_spread}, noise={self.noise}: expected 1 page or more and "
                "spreads of 0 or more"
            )
        for name in (
            *("convinced", "buyers", "wanderers", "account", "help", "deeper", "reviews"),
            *("filters", "similar", "quantity", "doubts"),
        ):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 0 to 1")


@dataclass(frozen=True, slots=True)
class Shopper:
    """One session's shopper: what it wants, how patient it is, what it has done so far.

    `patience` counts pages, `pages` those loaded, `seen` holds slugs of opened products,
    `asked` the queries typed, `taken` says that something is in the cart, `done` how many
    actions were taken.
    """

    goal: Goal
    config: ShopperConfig
    key: int
    patience: int
    buyer: bool
    wanderer: bool
    pages: int = 1
    seen: frozenset[str] = frozenset()
    asked: frozenset[str] = frozenset()
    taken: bool = False
    done: int = 0

    def choose(self, state: State) -> tuple[Action, Shopper]:
        """What it does in `state`, and the shopper that has done it. Pure: the draws are named
        by the shopper's key and how many actions it took.
        """
        rng = named_generator(self.key, self.done)
        page = read_page(state.text, state.place)
        names = set(page.elements)
        if self.pages >= self.patience:
            action, after = self._leave(page, names)
        else:
            action, after = self._wander(page, names, rng) or self._look(
                state, page, names, rng
            )
        loads = action.kind == "input" or (
            action.kind == "click_element"
            and not action.target.startswith(_IN_PAGE)
            and not action.target.endswith(_IN_CART)
        )
        return action, replace(after, done=self.done + 1, pages=self.pages + loads)

    def _leave(self, page: ShopPage, names: set[str]) -> tuple[Action, Shopper]:
        if not (self.taken and self.buyer):
            return actions.TERMINATE, self
        for name in (
            "checkout.place_order",
            "cart.proceed_to_checkout",
            "cart_side_bar.go_to_cart",
        ):
            if name in names:
                return actions.click(name), self
        return actions.TERMINATE, self  # the cart has nothing to buy

    def _wander(self, page: ShopPage, names: set[str], rng) -> tuple[Action, Shopper] | None:
        draw = rng.random() if self.wanderer else 1.0
        for share, starts in (
            (self.config.account, ("nav_bar.account", "nav_bar.orders", "nav_bar.cart")),
            (self.config.help, ("footer.",)),
        ):
            found = sorted(name for name in names if name.startswith(starts))
            if draw < share and found:
                return actions.click(found[rng.integers(len(found))]), self
            draw -= share
        return None

    def _look(self, state: State, page: ShopPage, names: set[str], rng):
        if page.place == "search":
            return self._results(state, page, names, rng)
        if page.place == "detail":
            return self._product(state, page, names, rng)
        boxes = [name for name in page.elements if name.endswith(".checkbox")]
        if boxes and not self.buyer and rng.random() < self.config.doubts:
            return actions.click(boxes[rng.integers(len(boxes))]), self
        if "nav_bar.search_button" in names:
            return actions.click("nav_bar.search_button"), self
        return self._ask(state, names, rng)

    def _results(self, state: State, page: ShopPage, names: set[str], rng):
        links = [n for n in page.elements if n.startswith("search_results.")]
        best, best_fit = None, self.config.open_from
        for link, product in zip(links, page.products, strict=False):
            fit = self._fit(f"{product.title} {product.details}") + rng.normal(
                0, self.config.noise
            )
            if link.split(".")[1] not in self.seen and fit >= best_fit:
                best, best_fit = link, fit
        if best is not None:
            seen = self.seen | {best.split(".")[1]}
            return actions.click(best), replace(self, seen=seen)
        offered = sorted(n for n in names if n.startswith(("refinements.", "sort.")))
        if offered and rng.random() < self.config.filters:
            return actions.click(offered[rng.integers(len(offered))]), self
        if "pagination.next" in names and rng.random() < self.config.deeper:
            return actions.click("pagination.next"), self
        return self._ask(state, names, rng)

    def _product(self, state: State, page: ShopPage, names: set[str], rng):
        wants_reviews = stable_key(self.key, page.context[:60]) % 1000
        if "reviews.see_reviews" in names and wants_reviews < 1000 * self.config.reviews:
            return actions.click("reviews.see_reviews"), self
        if not self.taken and self._takes(page):
            chosen = self._option(page, names, rng)
            if chosen is not None:
                return actions.click(chosen), self
            more = sorted(n for n in names if n.startswith("buybox.quantity."))
            if more and rng.random() < self.config.quantity:
                return actions.click(more[rng.integers(len(more))]), self
            if "buybox.add_to_cart" in names:
                return actions.click("buybox.add_to_cart"), replace(self, taken=True)
        similar = [
            n
            for n in page.elements
            if n.startswith("similar_items.") and n.split(".")[1] not in self.seen
        ]
        if similar and rng.random() < self.config.similar:
            seen = self.seen | {similar[0].split(".")[1]}
            return actions.click(similar[0]), replace(self, seen=seen)
        if "breadcrumb.back_to_results" in names:
            return actions.click("breadcrumb.back_to_results"), self
        return self._ask(state, names, rng)

    def _takes(self, page: ShopPage) -> bool:
        """Does the product fit and convince? Judged once: the draws hang on its title."""
        if not page.products:
            return False
        product = page.products[0]
        price = re.fullmatch(r"\$(\d+)\.(\d\d)", product.price)
        cents = int(price[1]) * 100 + int(price[2]) if price else 0
        if self.goal.limit_cents and cents > self.goal.limit_cents:
            return False
        key = stable_key(self.key, "takes", product.title)
        rng = generator_of(key)
        if rng.random() >= self.config.convinced:
            return False
        noise = rng.normal(0, self.config.noise)
        stars = re.match(r"(\d\.\d) stars", product.details)
        liked = 0.1 * (float(stars[1]) - 4) if stars else 0.0
        return self._fit(f"{page.context} {product.details}") + liked + noise >= (
            self.config.take_from
        )

    def _option(self, page: ShopPage, names: set[str], rng) -> str | None:
        """An option that is not chosen yet: the value that the goal names, else any."""
        open_options = re.findall(r"(\w+): choose one of ", page.context)
        if not open_options:
            return None
        name = open_options[0]
        wanted = dict(self.goal.options).get(name)
        start = f"product_options.{name}."
        offered = [n for n in page.elements if n.startswith(start)]
        if wanted and start + slug(wanted) in names:
            return start + slug(wanted)
        return offered[rng.integers(len(offered))] if offered else None

    def _ask(self, state: State, names: set[str], rng) -> tuple[Action, Shopper]:
        """The next query: the goal's, then a suggested term, then any that is offered."""
        typed = [action for action in state.actions if action.kind == "input"]
        own = [a for a in typed if a.text in self.goal.queries and a.text not in self.asked]
        terms = sorted(n for n in names if n.startswith("related_searches."))
        terms = [n for n in terms if n not in self.asked]
        if not own and terms:
            name = terms[rng.integers(len(terms))]
            return actions.click(name), replace(self, asked=self.asked | {name})
        pool = own or typed
        if not pool:
            return actions.TERMINATE, self
        action = own[0] if own else pool[rng.integers(len(pool))]
        return action, replace(self, asked=self.asked | {action.text})

    def _fit(self, text: str) -> float:
        """The share of the goal's words that `text` has."""
        wanted = words(self.goal.text)
        has = set(words(text))
        return sum(word in has for word in wanted) / max(len(wanted), 1)


def begin(goal: Goal, key: int, config: ShopperConfig | None = None) -> Shopper:
    """A shopper with this goal; `key` draws its patience and whether it will buy."""
    config = config or ShopperConfig()
    rng = named_generator(key, "shopper")
    drawn = np.exp(rng.normal(np.log(config.patience_pages), config.patience_spread))
    patience = int(np.clip(np.rint(drawn), 1, 100_000))
    buyer, wanderer = rng.random(2) < (config.buyers, config.wanderers)
    return Shopper(goal, config, key, patience, bool(buyer), bool(wanderer))
