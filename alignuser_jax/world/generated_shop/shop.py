"""A generated shop as a pure function: search, filters, options, reviews, cart, checkout.

Its goals and queries may be real; its products and pages are always synthetic, and
`state.source` is "generated". It makes every page by itself: no state ever has `needs`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from alignuser_jax.randomness import stable_key
from alignuser_jax.records import Action, Slate, State
from alignuser_jax.text import one_line, shorten
from alignuser_jax.world.generated_shop.catalogue import (
    SORTS,
    Goal,
    ShopCatalogue,
    make_catalogue,
    results,
    suggestions,
)
from alignuser_jax.world.generated_shop.views import (
    ACCOUNT,
    HELP,
    SEARCH_INPUT,
    Browsing,
    CartLine,
    ViewConfig,
    browsing,
    count_pages,
    generated_click_type,
    line_index,
    line_names,
    money,
    most_in_line,
    subtotal,
    view,
)
from alignuser_jax.world.shop import actions
from alignuser_jax.world.shop.page import MAX_TEXT, slug
from alignuser_jax.world.site.site import SESSION_ENDED


@dataclass(frozen=True)
class GeneratedShop:
    """A shop with a search, product pages, a cart and a checkout; a `World`.

    Attributes:
        catalogue: The products, and the goals that visitors come with.
        config: How much the pages show.
        max_pages: A visit that loads more pages ends (docs/method.md does not say when; the
            longest of the UCI sessions has 746).
        max_steps: The most actions of a visit.

    Example:
        >>> shop = GeneratedShop()
        >>> state = shop.reset("ann", seed=0)
        >>> state.place
        'browse'
        >>> state = shop.step(state, actions.type_text("nav_bar.search_input", "water bottle"))
        >>> (state.place, state.page)
        ('search', 1)
    """

    catalogue: ShopCatalogue = field(default_factory=make_catalogue)
    config: ViewConfig = ViewConfig()
    max_pages: int = 800
    max_steps: int = 4000

    def __post_init__(self) -> None:
        for name in ("max_pages", "max_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 1 or more")

    def reset(self, user_id: str, seed: int) -> State:
        """Return the home page of a visit; the user and the seed draw its goal."""
        goal = stable_key(seed, user_id, "goal") % len(self.catalogue.goals)
        return self._show(State(user_id, seed, "page", 1), Browsing(goal))

    def goal(self, state: State) -> Goal:
        """Return what the visitor came for, which no page says."""
        return self.catalogue.goals[browsing(state).goal]

    def goal_text(self, state: State) -> str:
        """Return the visitor's goal in words."""
        return self.goal(state).text

    def has_purchase(self, state: State) -> bool:
        """Return whether an order was placed."""
        return bool(browsing(state).ordered)

    def click_type(self, action: Action) -> str:
        """Return the type of a click, "" if the action is no click."""
        return generated_click_type(action.target) if action.kind == "click_element" else ""

    def valid_action(self, state: State, action: Action) -> bool:
        """Return whether `state` lists the action, or it types into the search field.

        The field takes any text that `actions.is_typable` accepts.
        """
        if action.kind == "input" and not state.terminal:
            return action == Action("input", SEARCH_INPUT, text=action.text) and (
                actions.is_typable(action.text)
            )
        return action in state.actions

    def step(self, state: State, action: Action) -> State:
        """Return the state after `action`.

        An action that is not valid leaves the page as it is and adds one error line.
        """
        if state.terminal:
            return state
        visit = browsing(state)
        if not self.valid_action(state, action):
            error = f"Invalid action: {shorten(one_line(action.token), MAX_TEXT)}"
            return self._show(state, visit, error)
        visit = replace(visit, steps=visit.steps + 1)
        if action.kind == "terminate":
            return self._end(state, visit)
        if action.kind == "input":
            visit = self._search(visit, action.text)
        else:
            visit = self._click(visit, action.target)
        if visit.ordered or visit.loads > self.max_pages or visit.steps >= self.max_steps:
            return self._end(state, visit)
        return self._show(state, visit)

    def resolve(self, state: State, answer: Slate | str) -> State:
        """Raise `ValueError`: no state of this shop needs an answer."""
        raise ValueError("the generated shop makes its own pages: no state needs an answer")

    # --- what clicks do ---

    def _click(self, visit: Browsing, name: str) -> Browsing:
        head, _, rest = name.partition(".")
        end = name.rsplit(".", 1)[-1]
        if end == "product_link":
            return self._open(visit, name.split(".")[1])
        if head == "refinements":
            if rest in visit.filters:
                filters = tuple(f for f in visit.filters if f != rest)
            else:
                filters = (*visit.filters, rest)
            return self._load(visit, "search", filters=filters, number=1)
        if head == "sort":
            return self._load(visit, "search", sort=rest, number=1)
        if head == "pagination":
            step = 1 if rest == "next" else -1
            return self._load(visit, "search", number=visit.number + step)
        if head == "related_searches":
            terms = suggestions(self.catalogue, visit.query, self.config.suggested)
            return self._search(visit, next(t for t in terms if slug(t) == rest))
        if head == "product_options":
            option, _, value = rest.partition(".")
            values = dict(self.catalogue.products[visit.product].options)[option]
            options = dict(visit.options) | {
                option: next(v for v in values if slug(v) == value)
            }
            return replace(visit, options=tuple(sorted(options.items())))
        if head == "reviews":
            page = {"see_reviews": 1, "next_page": visit.reviews + 1, "close": 0}[rest]
            return replace(visit, reviews=page)
        if head == "buybox":
            return self._buybox(visit, rest)
        if head == "cart_side_bar" and end == "remove":
            return self._without(visit, rest.removesuffix(".remove"))
        if head == "active_item_list":
            return self._change_line(visit, rest)
        return self._elsewhere(visit, name)

    def _elsewhere(self, visit: Browsing, name: str) -> Browsing:
        """Navigate: search button, home, account, help, cart, checkout, back to results."""
        head, _, rest = name.partition(".")
        if name == "nav_bar.search_button":
            return self._search(visit, visit.query)
        if name == "breadcrumb.back_to_results":
            return self._load(visit, "search")
        if name == "nav_bar.homepage":
            return self._load(visit, "browse")
        if head == "nav_bar" and rest in ACCOUNT:
            return self._load(visit, "account", topic=rest)
        if head == "footer" and rest in HELP:
            return self._load(visit, "help", topic=rest)
        if name in ("nav_bar.cart", "cart_side_bar.go_to_cart", "checkout.back_to_cart"):
            return self._load(visit, "cart")
        if name == "cart.proceed_to_checkout":
            return self._load(visit, "checkout")
        if name == "checkout.place_order":
            lines = tuple(line for line in visit.cart if line.selected)
            return self._load(visit, "checkout", ordered=lines)
        return visit  # "was this helpful?" changes nothing on the page

    def _load(self, visit: Browsing, place: str, **changes: Any) -> Browsing:
        return replace(visit, place=place, loads=visit.loads + 1, **changes)

    def _search(self, visit: Browsing, query: str) -> Browsing:
        query = one_line(query)
        return self._load(visit, "search", query=query, number=1, filters=(), sort=SORTS[0])

    def _open(self, visit: Browsing, name: str) -> Browsing:
        if visit.place == "cart":
            names = line_names(self.catalogue, visit.cart)
            product = visit.cart[names.index(name)].product
        else:
            product = self.catalogue.index_of_slug[name]
        return self._load(visit, "detail", product=product, options=(), quantity=1, reviews=0)

    def _buybox(self, visit: Browsing, rest: str) -> Browsing:
        """Choose a quantity, add to the cart, or go to checkout with this product alone."""
        if rest.startswith("quantity."):
            return replace(visit, quantity=int(rest.removeprefix("quantity.")))
        now = rest == "buy_now"
        most = most_in_line(
            self.catalogue, visit.cart, visit.product, visit.options, self.config
        )
        cart = [line._replace(selected=line.selected and not now) for line in visit.cart]
        place = line_index(cart, visit.product, visit.options)
        before = 0 if now or place is None else cart[place].quantity
        total = min(before + visit.quantity, most)
        line = CartLine(visit.product, visit.options, total)
        if place is None:
            cart.append(line)
        else:
            cart[place] = line
        if now:
            return self._load(visit, "checkout", cart=tuple(cart))
        return replace(visit, cart=tuple(cart))

    def _without(self, visit: Browsing, name: str) -> Browsing:
        names = line_names(self.catalogue, visit.cart)
        cart = [line for n, line in zip(names, visit.cart, strict=True) if n != name]
        return replace(visit, cart=tuple(cart))

    def _change_line(self, visit: Browsing, rest: str) -> Browsing:
        name, _, verb = rest.partition(".")
        if verb == "delete":
            return self._without(visit, name)
        place = line_names(self.catalogue, visit.cart).index(name)
        line = visit.cart[place]
        if verb == "checkbox":
            line = line._replace(selected=not line.selected)
        else:
            line = line._replace(quantity=line.quantity + (1 if verb == "increase" else -1))
        return replace(visit, cart=(*visit.cart[:place], line, *visit.cart[place + 1 :]))

    # --- what is seen ---

    def offered_texts(self, visit: Browsing, user_id: str) -> tuple[str, ...]:
        """Return the texts that the search field offers: the goal's queries, then others'.

        `step` takes other texts too.
        """
        goals, own = self.catalogue.goals, self.catalogue.goals[visit.goal].queries
        count = max(self.config.texts - 2, min(self.config.texts, 1))
        others = [
            goals[stable_key(user_id, visit.goal, "query", n) % len(goals)].queries[0]
            for n in range(2)
        ]
        texts = filter(actions.is_typable, dict.fromkeys([*own[:count], *others]))
        return tuple(texts)[: self.config.texts]

    def _show(self, state: State, visit: Browsing, feedback: str = "") -> State:
        if visit.place == "search":
            order = results(self.catalogue, visit.query, visit.filters, visit.sort)
            last = count_pages(len(order), self.config.per_page)
            if visit.number > last:
                visit = replace(visit, number=last)
        if visit.place == "detail":
            most = most_in_line(
                self.catalogue, visit.cart, visit.product, visit.options, self.config
            )
            if visit.quantity > max(most, 1):
                visit = replace(visit, quantity=max(most, 1))
        page = view(self.catalogue, visit, self.config)
        texts = self.offered_texts(visit, state.user_id)
        typed = [Action("input", SEARCH_INPUT, text=text) for text in texts]
        clicks = [actions.click(name) for name in page.elements if name != SEARCH_INPUT]
        return replace(
            state,
            page=page.number,
            place=page.place,
            text=page.text(feedback),
            actions=(*typed, *clicks, actions.TERMINATE),
            feedback=feedback,
            source="generated",
            inside=visit,
        )

    def _end(self, state: State, visit: Browsing) -> State:
        text = SESSION_ENDED
        if visit.ordered:
            count = sum(line.quantity for line in visit.ordered)
            total = money(subtotal(self.catalogue, visit.ordered))
            noun = "item" if count == 1 else "items"
            text = f"ORDER PLACED: {count} {noun}, {total}\n{SESSION_ENDED}"
        return replace(
            state,
            kind="end",
            place="end",
            text=text,
            actions=(),
            feedback="",
            source="generated",
            inside=visit,
        )
