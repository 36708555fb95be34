"""A web shop known from a log, as a pure function: pages replayed, ruled, or asked of a model.

A log is no live site. What follows an action is had from the log where some session did the
same on the same kind of page, else from a rule, else it is asked for (`state.needs`) and a
language model elsewhere writes it; `state.source` says which (METHOD.md section 7).
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
    END,
    IN_PLACE,
    KEEPS_LIST,
    noted,
    rule_page,
)
from alignuser_jax.world.site.site import SESSION_ENDED

SOURCES = ("log", "rule", "model")
OFF_THE_LOG = -2  # the order of a page that no session showed: none comes right after it

_THOUGHT = re.compile(r"<think>.*?(</think>|$)", re.DOTALL)
_FENCE = re.compile(r"^\s*```.*$", re.MULTILINE)
_CART = re.compile(r"(^|[._])(cart|basket)([._]|$)")


@dataclass(frozen=True, slots=True)
class WebShopConfig:
    """`sources`: what may make a next page, always in the order log, rule, model; where none
    can, nothing happens and the page says so. `texts` is how many texts a search field offers,
    `products` how many a ruled page of results shows, `max_steps` ends a visit.
    """

    sources: tuple[str, ...] = SOURCES
    texts: int = 6
    products: int = 4
    max_steps: int = 200

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.sources) - set(SOURCES)):
            raise ValueError(f"sources holds {unknown}, expected some of {SOURCES}")
        for name, least in (("texts", 0), ("products", 1), ("max_steps", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}, expected {least} or more")


@dataclass(frozen=True, slots=True)
class LoggedVisit:
    """Where a visit is: the page, the logged session and step it is nearest to, the text last
    typed, how many actions were taken, and whether a purchase was clicked.
    """

    page: ShopPage
    session_id: str = ""
    order: int = 0
    typed: str = ""
    steps: int = 0
    bought: bool = False


@dataclass(frozen=True)
class WebShop:
    """`queries` holds what a user may want to type, by user id; the texts that a field offers
    are these, then the user's own and other users' of the log, at most `config.texts`.
    """

    index: ReplayIndex = field(default_factory=ReplayIndex)
    queries: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    config: WebShopConfig = WebShopConfig()

    def reset(self, user_id: str, seed: int) -> State:
        """The first page of one of the user's logged sessions (of any user's where there is
        none, of an empty shop where the log is empty); the seed draws.
        """
        users = self.index.first_pages
        pool = users.get(user_id) or tuple(f for found in users.values() for f in found)
        state = State(user_id, seed, "page", 1)
        if not pool:
            page = ShopPage("browse", 1, "Home page", (), DEFAULT_ELEMENTS)
            return self._show(state, LoggedVisit(page), "rule")
        first = pool[stable_key(seed, "shop", user_id) % len(pool)]
        return self._show(state, LoggedVisit(first.page, first.session_id, first.order), "log")

    def at(self, step: LoggedStep, seed: int = 0) -> State:
        """The state that a person of the log (of any split) was in, to ask what else could have
        been done there. Neither their action nor their text is added to what is offered.
        """
        visit = LoggedVisit(step.page, step.session_id, step.order, step.typed)
        return self._show(State(step.user_id, seed, "page", 1), visit, "log")

    def valid_action(self, state: State, action: Action) -> bool:
        """True for the actions in `state.actions`, and for any typable text in a field that is
        listed there (`shop_actions.is_typable`).
        """
        if state.terminal or state.needs is not None:
            return False
        if action.kind != "input":
            return action in state.actions
        return action == Action("input", action.target, text=action.text) and (
            actions.is_typable(action.text)
            and action.target in state.inside.page.elements
            and self.index.is_field(action.target)
        )

    def wanted(self, state: State) -> str:
        """ "": a log does not say what a visitor is here for."""
        return ""

    def bought(self, state: State) -> bool:
        """Whether a click of the type "purchase" was made, what OPeRA calls one."""
        return state.inside.bought

    def click_type(self, action: Action) -> str:
        return actions.click_type(action, self.index.click_types)

    def step(self, state: State, action: Action) -> State:
        """The state after `action`; the same page and one error line where it is not valid.

        Raises RuntimeError on a state that still needs its page.
        """
        if state.needs is not None:
            raise RuntimeError(
                f"the page of user {state.user_id!r} is not there yet: "
                "answer state.needs with resolve() before step()"
            )
        if state.terminal:
            return state
        visit: LoggedVisit = state.inside
        if not self.valid_action(state, action):
            error = f"Invalid action: {shorten(one_line(action.token), MAX_TEXT)}"
            return self._show(state, visit, state.source, error)
        typed = action.text if action.kind == "input" else visit.typed
        bought = visit.bought or self.click_type(action) == "purchase"
        after = replace(visit, steps=visit.steps + 1, typed=typed, bought=bought)
        if action.kind == "terminate" or after.steps >= self.config.max_steps:
            return self._end(state, after, "rule")
        found = self._replayed(state, action, after) if "log" in self.config.sources else None
        if found is not None:
            return self._show(state, found, "log")
        kind = self.click_type(action)
        page = None
        if "rule" in self.config.sources:
            page = rule_page(
                visit.page, action, kind, visit.typed, self.index, self.config.products
            )
        if page is END:
            return self._end(state, after, "rule")
        if page is not None:
            return self._show(state, replace(after, page=page, order=OFF_THE_LOG), "rule")
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
        """The state with the page that a language model wrote, flagged by `source="model"`.

        Reasoning, code fences and all that stands before the page are dropped; a page without
        ids gets those that its kind commonly has. Raises `ValueError` (`PageError`) for a text
        that shows no page: the model failed, and nothing is made up in its place.
        """
        request = state.needs
        if not isinstance(request, NextPageRequest):
            raise ValueError(f"the visit of user {state.user_id!r} asks for no page")
        if not isinstance(answer, str):
            raise ValueError(f"got {type(answer).__name__}, expected the text of a page")
        text = _FENCE.sub("", _THOUGHT.sub("", answer))
        visit: LoggedVisit = state.inside
        state = replace(state, needs=None)
        if SESSION_ENDED in (line.strip() for line in text.splitlines()):
            return self._end(state, visit, "model")
        page = read_page(text)
        place = guess_place(page, request.action, self.click_type(request.action))
        if not page.elements:
            common = self.index.common.get(place, DEFAULT_ELEMENTS)
            page = replace(page, elements=common)
        visit = replace(visit, page=replace(page, place=place), order=OFF_THE_LOG)
        return self._show(state, visit, "model")

    def offered_texts(self, user_id: str, name: str) -> tuple[str, ...]:
        """What the field `name` offers to be typed; `step` takes other texts too."""
        logged = self.index.typed.get(name, ())
        own = [text for user, text in logged if user == user_id]
        others = [text for user, text in logged if user != user_id]
        texts = dict.fromkeys(
            actions.type_text(name, t).text
            for t in (*self.queries.get(user_id, ()), *own, *others)
        )
        return tuple([t for t in texts if actions.is_typable(t)][: self.config.texts])

    def _replayed(self, state: State, action: Action, visit: LoggedVisit) -> LoggedVisit | None:
        kind = self.click_type(action)
        before: LoggedVisit = state.inside
        key = replay_key(before.page.place, action, kind, before.typed)
        found = self.index.find(key, visit.session_id, state.user_id, visit.order, state.seed)
        if found is None:
            return None
        page = found.page
        elsewhere = (found.session_id, found.order) != (visit.session_id, visit.order + 1)
        if elsewhere and action.kind == "click_element" and kind in KEEPS_LIST:
            # a page of another moment, but what is looked at here stays what it was
            page = replace(page, products=before.page.products)
            if page.place == before.page.place:
                context = before.page.context
                if kind in IN_PLACE:
                    context = noted(context, IN_PLACE[kind], action.target)
                    page = replace(page, elements=before.page.elements)
                page = replace(page, context=context, number=before.page.number)
        return replace(visit, page=page, session_id=found.session_id, order=found.order)

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
    """The kind of a page whose writer did not say: from how its context begins, else from a
    word in front of what it is about (` | `, `: `, ` for "`), else from the action.
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
