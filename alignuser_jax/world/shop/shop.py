"""A web shop known from a log, as a pure function: pages replayed, by rule, or by a model.

A log is no live site. The page after an action comes from the log if some session did the same
on the same kind of page, else from a rule, else the state asks for it (`state.needs`) and a
language model elsewhere writes it; `state.source` says which (docs/method.md section 7).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from alignuser_jax.randomness import stable_key
from alignuser_jax.records import Action, NextPageRequest, Slate, State
from alignuser_jax.text import one_line, shorten
from alignuser_jax.world.shop import actions
from alignuser_jax.world.shop.log import LoggedStep, ReplayIndex, replay_key
from alignuser_jax.world.shop.page import MAX_TEXT, ShopPage, read_page
from alignuser_jax.world.shop.rules import (
    DEFAULT_ELEMENTS,
    END_PAGE,
    IN_PLACE,
    KEEPS_PRODUCTS,
    rule_page,
    with_change,
)
from alignuser_jax.world.site.site import SESSION_ENDED

PAGE_SOURCES = ("log", "rule", "model")
"""What can make a page, in the order in which they are tried."""
NOT_LOGGED = -2
"""The order of a page that no session showed: no logged page comes right after it."""

_THOUGHT = re.compile(r"<think>.*?(</think>|$)", re.DOTALL)
_FENCE = re.compile(r"^\s*```.*$", re.MULTILINE)
_CART = re.compile(r"(^|[._])(cart|basket)([._]|$)")


@dataclass(frozen=True, slots=True)
class WebShopConfig:
    """What makes the pages of a web shop and how long a visit may be.

    Attributes:
        sources: What may make a next page, some of `PAGE_SOURCES`, always tried in that order.
            If none can, nothing happens and the page says so.
        texts: The most texts that a search field offers.
        products: How many products a page of results has that a rule makes.
        max_steps: The most actions of a visit.
    """

    sources: tuple[str, ...] = PAGE_SOURCES
    texts: int = 6
    products: int = 4
    max_steps: int = 200

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.sources) - set(PAGE_SOURCES)):
            raise ValueError(f"sources holds {unknown}, expected some of {PAGE_SOURCES}")
        for name, least in (("texts", 0), ("products", 1), ("max_steps", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}, expected {least} or more")


@dataclass(frozen=True, slots=True)
class LoggedVisit:
    """Where a visit to a web shop is; `State.inside` of its states.

    Attributes:
        page: The current page.
        session_id: The logged session that the visit is nearest to.
        order: The number of that session's step that shows the page, `NOT_LOGGED` for none.
        typed_text: The text that was last typed.
        steps: How many actions were taken.
        purchased: Whether a click of the type "purchase" was made.
    """

    page: ShopPage
    session_id: str = ""
    order: int = 0
    typed_text: str = ""
    steps: int = 0
    purchased: bool = False


def visit_of(state: State) -> LoggedVisit:
    """Return where a state of `WebShop` is; raises `TypeError` for a state of another world."""
    if not isinstance(state.inside, LoggedVisit):
        raise TypeError(f"state.inside is {state.inside!r}: this is no state of a WebShop")
    return state.inside


@dataclass(frozen=True)
class WebShop:
    """A shop rebuilt from a log; a `World`.

    Attributes:
        index: What is known from the log (`build_index`); an empty shop by default.
        queries: The texts that a user may want to type, by user id. A field offers these, then
            the user's own texts of the log and then other users', at most `config.texts`.
        config: What makes the pages and how long a visit may be.

    Example:
        >>> shop = WebShop(queries={"ann": ("green tea",)}, config=WebShopConfig(texts=1))
        >>> state = shop.reset("ann", seed=0)
        >>> state.actions[1].token
        '[INPUT:nav_bar.search_input|green tea]'
        >>> state = shop.step(state, state.actions[1])
        >>> (state.place, state.source)
        ('search', 'rule')

        A shop of a log, and the states in which people of its test part were::

            from alignuser_jax.datasets.sessions import sessions

            shop = WebShop(build_index(logged_steps(sessions(dataset, "train"))))
            states = [shop.at(step) for step in logged_steps(sessions(dataset, "test"))]
    """

    index: ReplayIndex = field(default_factory=ReplayIndex)
    queries: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    config: WebShopConfig = WebShopConfig()

    def reset(self, user_id: str, seed: int) -> State:
        """Return the first page of one of the user's logged sessions, which the seed draws.

        For a user without a session it is the first page of any session, and for an empty log
        the home page of an empty shop.
        """
        by_user = self.index.first_pages
        everybody = (page for pages in by_user.values() for page in pages)
        pool = by_user.get(user_id) or tuple(everybody)
        state = State(user_id, seed, "page", 1)
        if not pool:
            page = ShopPage("browse", 1, "Home page", (), DEFAULT_ELEMENTS)
            return self._show(state, LoggedVisit(page), "rule")
        first = pool[stable_key(seed, "shop", user_id) % len(pool)]
        return self._show(state, LoggedVisit(first.page, first.session_id, first.order), "log")

    def at(self, step: LoggedStep, seed: int = 0) -> State:
        """Return the state that a person of the log was in, to ask what else they could do.

        The step may be of any split: nothing of it is added to the actions on offer, neither
        the person's action nor their text.
        """
        visit = LoggedVisit(step.page, step.session_id, step.order, step.typed_text)
        return self._show(State(step.user_id, seed, "page", 1), visit, "log")

    def valid_action(self, state: State, action: Action) -> bool:
        """Return whether `state` lists the action, or it types into a field on the page.

        A field takes any text that `actions.is_typable` accepts.
        """
        if state.terminal or state.needs is not None:
            return False
        if action.kind != "input":
            return action in state.actions
        return action == Action("input", action.target, text=action.text) and (
            actions.is_typable(action.text)
            and action.target in visit_of(state).page.elements
            and self.index.is_field(action.target)
        )

    def goal_text(self, state: State) -> str:
        """Return "": a log does not say what a visitor came for."""
        return ""

    def has_purchase(self, state: State) -> bool:
        """Return whether a click of the type "purchase" was made, which OPeRA counts as one."""
        return visit_of(state).purchased

    def click_type(self, action: Action) -> str:
        """Return the type of a click, "other" if the log lacks its id; "" if it is no click."""
        return actions.click_type(action, self.index.click_types)

    def step(self, state: State, action: Action) -> State:
        """Return the state after `action`.

        An action that is not valid leaves the page as it is and adds one error line. Raises
        `RuntimeError` if the state still needs its page.
        """
        if state.needs is not None:
            raise RuntimeError(
                f"the state of user {state.user_id!r} has no page yet: "
                "answer state.needs with resolve() before step()"
            )
        if state.terminal:
            return state
        visit = visit_of(state)
        if not self.valid_action(state, action):
            error = f"Invalid action: {shorten(one_line(action.token), MAX_TEXT)}"
            return self._show(state, visit, state.source, error)
        kind = self.click_type(action)
        typed_text = action.text if action.kind == "input" else visit.typed_text
        purchased = visit.purchased or kind == "purchase"
        after = replace(
            visit, steps=visit.steps + 1, typed_text=typed_text, purchased=purchased
        )
        if action.kind == "terminate" or after.steps >= self.config.max_steps:
            return self._end(state, after, "rule")
        if "log" in self.config.sources:
            replayed = self._replayed(state, action, after)
            if replayed is not None:
                return self._show(state, replayed, "log")
        page = None
        if "rule" in self.config.sources:
            page = rule_page(
                visit.page, action, kind, visit.typed_text, self.index, self.config.products
            )
        if page is END_PAGE:
            return self._end(state, after, "rule")
        if page is not None:
            return self._show(state, replace(after, page=page, order=NOT_LOGGED), "rule")
        if "model" not in self.config.sources:
            note = f"Nothing happened: {shorten(one_line(action.token), MAX_TEXT)}"
            return self._show(state, after, state.source, note)
        request = NextPageRequest(
            state.user_id,
            visit.page.text(),
            action,
            stable_key(state.seed, "next page", after.steps),
        )
        return replace(state, inside=after, text="", actions=(), feedback="", needs=request)

    def resolve(self, state: State, answer: Slate | str) -> State:
        """Return the state with the page that a language model wrote, marked `source="model"`.

        Reasoning, code fences and everything before the page are dropped. A page without
        semantic ids gets those that are common to its kind.

        Args:
            state: A state that needs a page.
            answer: The model's text.

        Raises:
            ValueError: If the state needs no page, or if the text shows no page (`PageError`):
                the model failed, and nothing is invented in its place.
        """
        request = state.needs
        if not isinstance(request, NextPageRequest):
            raise ValueError(f"the state of user {state.user_id!r} needs no page")
        if not isinstance(answer, str):
            raise ValueError(f"got {type(answer).__name__}, expected the text of a page")
        text = _FENCE.sub("", _THOUGHT.sub("", answer))
        visit = visit_of(state)
        state = replace(state, needs=None)
        if SESSION_ENDED in (line.strip() for line in text.splitlines()):
            return self._end(state, visit, "model")
        page = read_page(text)
        place = guess_place(page, request.action, self.click_type(request.action))
        if not page.elements:
            common = self.index.common_ids.get(place, DEFAULT_ELEMENTS)
            page = replace(page, elements=common)
        visit = replace(visit, page=replace(page, place=place), order=NOT_LOGGED)
        return self._show(state, visit, "model")

    def offered_texts(self, user_id: str, name: str) -> tuple[str, ...]:
        """Return the texts that the field `name` offers; `step` takes other texts too."""
        logged = self.index.typed_texts.get(name, ())
        own = [text for user, text in logged if user == user_id]
        others = [text for user, text in logged if user != user_id]
        texts = dict.fromkeys(
            actions.type_text(name, t).text
            for t in (*self.queries.get(user_id, ()), *own, *others)
        )
        return tuple([t for t in texts if actions.is_typable(t)][: self.config.texts])

    def _replayed(self, state: State, action: Action, visit: LoggedVisit) -> LoggedVisit | None:
        kind = self.click_type(action)
        before = visit_of(state)
        key = replay_key(before.page.place, action, kind, before.typed_text)
        logged = self.index.find(key, visit.session_id, state.user_id, visit.order, state.seed)
        if logged is None:
            return None
        page = logged.page
        elsewhere = (logged.session_id, logged.order) != (visit.session_id, visit.order + 1)
        if elsewhere and action.kind == "click_element" and kind in KEEPS_PRODUCTS:
            # the page is of another moment, but the visitor still looks at the same products
            page = replace(page, products=before.page.products)
            if page.place == before.page.place:
                context = before.page.context
                if kind in IN_PLACE:
                    context = with_change(context, IN_PLACE[kind], action.target)
                    page = replace(page, elements=before.page.elements)
                page = replace(page, context=context, number=before.page.number)
        return replace(visit, page=page, session_id=logged.session_id, order=logged.order)

    def _show(self, state: State, visit: LoggedVisit, source: str, feedback: str = "") -> State:
        page = visit.page
        offered = []
        for name in page.elements:
            offered.append(actions.click(name))
            if self.index.is_field(name):
                texts = self.offered_texts(state.user_id, name)
                offered += [Action("input", name, text=text) for text in texts]
        return replace(
            state,
            page=page.number,
            place=page.place,
            text=page.text(feedback),
            actions=(*offered, actions.TERMINATE),
            feedback=feedback,
            source=source,
            inside=visit,
        )

    def _end(self, state: State, visit: LoggedVisit, source: str) -> State:
        return replace(
            state,
            kind="end",
            place="end",
            text=SESSION_ENDED,
            actions=(),
            feedback="",
            source=source,
            inside=visit,
        )


def guess_place(page: ShopPage, action: Action, click_type: str) -> str:
    """Return the kind of a page whose text does not say it.

    It follows from how the context begins, else from a word in front of what the page is about
    (before ` | `, `: ` or ` for "`), else from the action that led there.

    Args:
        page: The page.
        action: The action that led to it.
        click_type: The type of that click, "" for no click.
    """
    context = page.context.lower()
    named = re.split(r' \| |: | for "', context)[0]
    places = (
        ("checkout", ("checkout", "place your order", "payment")),
        ("cart", ("cart", "basket")),
        ("search", ("search result", "results for", "search")),
        ("detail", ("product page", "product detail", "detail page", "product:")),
        ("browse", ("home",)),
    )
    begins = [place for place, words in places if context.startswith(words)]
    holds = [p for p, words in places if re.search(rf"\b({'|'.join(words)})", named)]
    for place in (*begins, *holds):
        return place
    if action.kind == "input" or click_type in ("search", "suggested_term", "filter"):
        return "search"
    if _CART.search(action.target.lower()):
        return "cart"
    return "detail" if len(page.products) == 1 else "browse"
