"""A scripted, goal-driven shopper for the generated shop: no language model, a few habits.

It reads what an agent reads (page text and listed actions) and its goal. It searches with the
goal's queries, opens products that look like the goal, reads reviews, puts a product into the
cart if it fits and convinces, looks at account and help pages now and then, and buys or leaves
when its patience is used up. How long it looks and how often it buys are calibrated
(`ShopperConfig`); the rest is habit.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import numpy as np

from alignuser_jax.randomness import named_generator, stable_key
from alignuser_jax.records import Action, State
from alignuser_jax.world.generated_shop.catalogue import Goal, content_words
from alignuser_jax.world.shop import actions
from alignuser_jax.world.shop.page import ShopPage, read_page, slug

_IN_PAGE = ("product_options.", "buybox.quantity.", "buybox.add_to_cart", "reviews.")
_IN_CART = (".checkbox", ".increase", ".decrease", ".delete")


@dataclass(frozen=True)
class ShopperConfig:
    """The habits of shoppers. A manifest holds the fields, so they keep their names.

    The fields marked "calibrated" were fitted to every other session of the UCI Online Shoppers
    file, in a shop with WebShop's goals (with generated goals shoppers find more and buy more).
    All others are DEFAULTS that were calibrated on nothing. Patience is log-normal, in whole
    pages, at least one.

    Attributes:
        patience_pages: The median of the patience, in pages (calibrated).
        patience_spread: The spread of the patience's logarithm (calibrated).
        convinced: The chance that a product which fits is put into the cart (calibrated).
        buyers: The share of shoppers who will buy what is in the cart (calibrated).
        wanderers: The share of shoppers who ever look at account and help pages (calibrated).
        account: A wanderer's chance per page to look at an account page (calibrated).
        help: A wanderer's chance per page to look at a help page (calibrated).
        open_from: The share of the goal's words that a product must show to be opened.
        take_from: The share of the goal's words that a product must show to fit (calibrated).
        noise: The spread of the noise that is added to both shares.
        deeper: The chance to turn to the next page of results.
        reviews: The chance to read a product's reviews.
        filters: The chance to set a filter or to sort the results.
        similar: The chance to open a similar product.
        quantity: The chance to change the quantity before a product is put into the cart.
        doubts: The chance that those who will not buy change the selection in the cart.
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
    """One session's shopper: what it wants, how patient it is and what it has done so far.

    Attributes:
        goal: What it wants.
        config: Its habits.
        key: Names its draws.
        patience: How many pages it loads before it buys or leaves.
        buyer: Whether it will buy what is in the cart.
        wanderer: Whether it ever looks at account and help pages.
        pages_loaded: How many pages it has loaded.
        opened: The slugs of the products that it has opened.
        searched: The queries that it has typed and the suggested terms that it has clicked.
        has_cart: Whether something is in the cart.
        actions_taken: How many actions it has taken.
    """

    goal: Goal
    config: ShopperConfig
    key: int
    patience: int
    buyer: bool
    wanderer: bool
    pages_loaded: int = 1
    opened: frozenset[str] = frozenset()
    searched: frozenset[str] = frozenset()
    has_cart: bool = False
    actions_taken: int = 0

    def choose(self, state: State) -> tuple[Action, Shopper]:
        """Return what the shopper does in `state`, and the shopper after it.

        This is a pure function: the draws are named by the shopper's key and by how many
        actions it has taken.
        """
        rng = named_generator(self.key, self.actions_taken)
        page = read_page(state.text, state.place)
        names = set(page.elements)
        if self.pages_loaded >= self.patience:
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
        return action, replace(
            after, actions_taken=self.actions_taken + 1, pages_loaded=self.pages_loaded + loads
        )

    def _leave(self, page: ShopPage, names: set[str]) -> tuple[Action, Shopper]:
        if not (self.has_cart and self.buyer):
            return actions.TERMINATE, self
        for name in (
            "checkout.place_order",
            "cart.proceed_to_checkout",
            "cart_side_bar.go_to_cart",
        ):
            if name in names:
                return actions.click(name), self
        return actions.TERMINATE, self  # the cart has nothing to buy

    def _wander(
        self, page: ShopPage, names: set[str], rng: np.random.Generator
    ) -> tuple[Action, Shopper] | None:
        draw = rng.random() if self.wanderer else 1.0
        for share, starts in (
            (self.config.account, ("nav_bar.account", "nav_bar.orders", "nav_bar.cart")),
            (self.config.help, ("footer.",)),
        ):
            links = sorted(name for name in names if name.startswith(starts))
            if draw < share and links:
                return actions.click(links[rng.integers(len(links))]), self
            draw -= share
        return None

    def _look(
        self, state: State, page: ShopPage, names: set[str], rng: np.random.Generator
    ) -> tuple[Action, Shopper]:
        if page.place == "search":
            return self._results(state, page, names, rng)
        if page.place == "detail":
            return self._product(state, page, names, rng)
        boxes = [name for name in page.elements if name.endswith(".checkbox")]
        if boxes and not self.buyer and rng.random() < self.config.doubts:
            return actions.click(boxes[rng.integers(len(boxes))]), self
        if "nav_bar.search_button" in names:
            return actions.click("nav_bar.search_button"), self
        return self._search(state, names, rng)

    def _results(
        self, state: State, page: ShopPage, names: set[str], rng: np.random.Generator
    ) -> tuple[Action, Shopper]:
        links = [n for n in page.elements if n.startswith("search_results.")]
        best, best_fit = None, self.config.open_from
        for link, product in zip(links, page.products, strict=False):
            fit = self._fit(f"{product.title} {product.details}") + rng.normal(
                0, self.config.noise
            )
            if link.split(".")[1] not in self.opened and fit >= best_fit:
                best, best_fit = link, fit
        if best is not None:
            opened = self.opened | {best.split(".")[1]}
            return actions.click(best), replace(self, opened=opened)
        offered = sorted(n for n in names if n.startswith(("refinements.", "sort.")))
        if offered and rng.random() < self.config.filters:
            return actions.click(offered[rng.integers(len(offered))]), self
        if "pagination.next" in names and rng.random() < self.config.deeper:
            return actions.click("pagination.next"), self
        return self._search(state, names, rng)

    def _product(
        self, state: State, page: ShopPage, names: set[str], rng: np.random.Generator
    ) -> tuple[Action, Shopper]:
        wants_reviews = stable_key(self.key, page.context[:60]) % 1000
        if "reviews.see_reviews" in names and wants_reviews < 1000 * self.config.reviews:
            return actions.click("reviews.see_reviews"), self
        if not self.has_cart and self._takes(page):
            option = self._option(page, names, rng)
            if option is not None:
                return actions.click(option), self
            more = sorted(n for n in names if n.startswith("buybox.quantity."))
            if more and rng.random() < self.config.quantity:
                return actions.click(more[rng.integers(len(more))]), self
            if "buybox.add_to_cart" in names:
                return actions.click("buybox.add_to_cart"), replace(self, has_cart=True)
        similar = [
            n
            for n in page.elements
            if n.startswith("similar_items.") and n.split(".")[1] not in self.opened
        ]
        if similar and rng.random() < self.config.similar:
            opened = self.opened | {similar[0].split(".")[1]}
            return actions.click(similar[0]), replace(self, opened=opened)
        if "breadcrumb.back_to_results" in names:
            return actions.click("breadcrumb.back_to_results"), self
        return self._search(state, names, rng)

    def _takes(self, page: ShopPage) -> bool:
        """Whether the product fits and convinces, judged once: its title names the draws."""
        if not page.products:
            return False
        product = page.products[0]
        price = re.fullmatch(r"\$(\d+)\.(\d\d)", product.price)
        cents = int(price[1]) * 100 + int(price[2]) if price else 0
        if self.goal.limit_cents and cents > self.goal.limit_cents:
            return False
        rng = named_generator(self.key, "takes", product.title)
        if rng.random() >= self.config.convinced:
            return False
        noise = rng.normal(0, self.config.noise)
        stars = re.match(r"(\d\.\d) stars", product.details)
        liked = 0.1 * (float(stars[1]) - 4) if stars else 0.0
        return self._fit(f"{page.context} {product.details}") + liked + noise >= (
            self.config.take_from
        )

    def _option(self, page: ShopPage, names: set[str], rng: np.random.Generator) -> str | None:
        """An option that is still open: the value that the goal names, else any."""
        open_options = re.findall(r"(\w+): choose one of ", page.context)
        if not open_options:
            return None
        name = open_options[0]
        value = dict(self.goal.options).get(name)
        start = f"product_options.{name}."
        offered = [n for n in page.elements if n.startswith(start)]
        if value and start + slug(value) in names:
            return start + slug(value)
        return offered[rng.integers(len(offered))] if offered else None

    def _search(
        self, state: State, names: set[str], rng: np.random.Generator
    ) -> tuple[Action, Shopper]:
        """Search with the goal's next query, else a suggested term, else any query on offer."""
        typed = [action for action in state.actions if action.kind == "input"]
        own = [a for a in typed if a.text in self.goal.queries and a.text not in self.searched]
        terms = sorted(n for n in names if n.startswith("related_searches."))
        terms = [n for n in terms if n not in self.searched]
        if not own and terms:
            name = terms[rng.integers(len(terms))]
            return actions.click(name), replace(self, searched=self.searched | {name})
        pool = own or typed
        if not pool:
            return actions.TERMINATE, self
        action = own[0] if own else pool[rng.integers(len(pool))]
        return action, replace(self, searched=self.searched | {action.text})

    def _fit(self, text: str) -> float:
        """The share of the goal's words that `text` has."""
        goal_words = content_words(self.goal.text)
        words = set(content_words(text))
        return sum(word in words for word in goal_words) / max(len(goal_words), 1)


def begin_shopper(goal: Goal, key: int, config: ShopperConfig | None = None) -> Shopper:
    """Return a new shopper.

    Args:
        goal: What it wants.
        key: Draws its patience, whether it will buy and everything that it does.
        config: Its habits; the defaults where `None`.
    """
    config = config or ShopperConfig()
    rng = named_generator(key, "shopper")
    drawn = np.exp(rng.normal(np.log(config.patience_pages), config.patience_spread))
    patience = int(np.clip(np.rint(drawn), 1, 100_000))
    buyer, wanderer = rng.random(2) < (config.buyers, config.wanderers)
    return Shopper(goal, config, key, patience, bool(buyer), bool(wanderer))
