"""Logged shop sessions as an index of what followed: (kind of page, semantic id) -> next page.

Only training steps may enter (METHOD.md section 7): a counterfactual of a test session must not
show a test session's page.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from alignuser_jax.datasets.sessions import Session
from alignuser_jax.datasets.shop_page_text import PageProduct
from alignuser_jax.randomness import stable_key
from alignuser_jax.records import Action
from alignuser_jax.world.shop import actions
from alignuser_jax.world.shop.page import ShopPage, slug

_WORD = re.compile(r"[a-z0-9]+")
_FIELD = re.compile(r"(^|[._])(search_input|search_box|search_field|text_input|input)$")


@dataclass(frozen=True, slots=True)
class LoggedStep:
    """What a person saw and then did. `order` counts from 0 in the session; `action` is `None`
    for what no agent can do (a scroll); `typed` is the text last typed before this step.
    """

    session_id: str
    user_id: str
    order: int
    page: ShopPage
    action: Action | None
    click_type: str = ""
    rationale: str = ""
    typed: str = ""
    split: str = "train"


def logged_steps(sessions: Iterable[Session]) -> list[LoggedStep]:
    """The steps of `datasets.sessions.Session` records (or of anything with their fields).

    Only click, input and terminate become actions; other steps keep their page, as what
    followed the action before them. Ids that are not one printable line are left out.
    """
    steps = []
    for session in sessions:
        typed = ""
        for step in session.steps:
            products = tuple(product.on_page for product in step.products)
            names = tuple(dict.fromkeys(n for n in step.elements if n and n.isprintable()))
            page = ShopPage(
                step.page_kind, step.page_number, step.page_context, products, names
            )
            action = {
                "click": actions.click(step.target),
                "input": actions.type_text(step.target, step.text),
                "terminate": actions.TERMINATE,
            }.get(step.action_kind)
            steps.append(
                LoggedStep(
                    session.session_id,
                    session.user_id,
                    step.order,
                    page,
                    action,
                    step.click_type,
                    step.rationale,
                    typed,
                    session.split,
                )
            )
            typed = action.text if action and action.kind == "input" else typed
    return steps


@dataclass(frozen=True, slots=True)
class Followed:
    """A logged page that followed an action."""

    session_id: str
    user_id: str
    order: int
    page: ShopPage
    ended: bool = False


@dataclass(frozen=True)
class ReplayIndex:
    """`followed` by `replay_key`; `click_types` by semantic id; `fields` the ids that text was
    typed into; `typed` (user, text) pairs by field, in the log's order; `common` the ids that
    most pages of a place have; `first_pages` of each session by user; `products` every product
    shown, by slug, and `links` the id that opens it; `sessions` all that entered.
    """

    followed: Mapping[tuple[str, str, str], tuple[Followed, ...]] = field(default_factory=dict)
    click_types: Mapping[str, str] = field(default_factory=dict)
    fields: frozenset[str] = frozenset()
    typed: Mapping[str, tuple[tuple[str, str], ...]] = field(default_factory=dict)
    common: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    first_pages: Mapping[str, tuple[Followed, ...]] = field(default_factory=dict)
    products: Mapping[str, PageProduct] = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)
    sessions: frozenset[str] = frozenset()

    def is_field(self, name: str) -> bool:
        """True for ids that text is typed into: seen so in the log, or named so."""
        return "|" not in name and (name in self.fields or bool(_FIELD.search(name)))

    def find(
        self, key: tuple[str, str, str], session_id: str, user_id: str, order: int, seed: int
    ) -> Followed | None:
        """What followed `key` on page `order`: in the same session (the nearest step), else in
        another session of the same user, else in any; among several the seed draws.
        """
        candidates = self.followed.get(key, ())
        if not candidates:
            return None
        same = [c for c in candidates if c.session_id == session_id]
        if same:
            return min(same, key=lambda c: (abs(c.order - 1 - order), c.order))
        pool = [c for c in candidates if c.user_id == user_id] or candidates
        return pool[stable_key(seed, "replay", *key) % len(pool)]

    def search(self, query: str, count: int) -> tuple[PageProduct, ...]:
        """The logged products that share most words with `query`, at least one."""
        wanted = set(_WORD.findall(query.lower()))
        scores = [
            (-len(wanted & set(name.split("_"))), name) for name in self.products if wanted
        ]
        best = sorted(score for score in scores if score[0])[:count]
        return tuple(self.products[name] for _, name in best)


def replay_key(place: str, action: Action, click_type: str, typed: str) -> tuple[str, str, str]:
    """(place, id, text): what is shown next hangs on the text for what is typed, and for a
    click on a search button, whose text was typed before.
    """
    text = action.text if action.kind == "input" else typed if click_type == "search" else ""
    return place, action.target, " ".join(text.lower().split())


def build_index(steps: Iterable[LoggedStep], common_share: float = 0.5) -> ReplayIndex:
    """The index of training steps; `common_share`: an id is common where at least that share of
    a place's pages has it.

    Raises `ValueError` for a step that is not of the training split, and for a (session, order)
    that comes twice.
    """
    sessions: dict[str, dict[int, LoggedStep]] = defaultdict(dict)
    for step in steps:
        if step.split != "train":
            raise ValueError(
                f"step {step.order} of session {step.session_id!r} is of the {step.split!r} "
                "split: only training sessions may enter the replay index; leave it out"
            )
        if step.order in sessions[step.session_id]:
            raise ValueError(f"session {step.session_id!r} has two steps {step.order}")
        sessions[step.session_id][step.order] = step
    in_order = {
        name: [found[n] for n in sorted(found)] for name, found in sorted(sessions.items())
    }
    everything = [step for found in in_order.values() for step in found]
    types = actions.click_type_map(
        (s.action.target, s.click_type)
        for s in everything
        if s.action is not None and s.action.kind == "click_element"
    )
    followed: dict[tuple[str, str, str], list[Followed]] = defaultdict(list)
    typed: dict[str, list[tuple[str, str]]] = defaultdict(list)
    first: dict[str, list[Followed]] = defaultdict(list)
    for name, found in in_order.items():
        first[found[0].user_id].append(Followed(name, found[0].user_id, 0, found[0].page))
        for step, after in zip(found, found[1:], strict=False):
            if step.action is None or step.action.kind == "terminate":
                continue
            key = replay_key(
                step.page.place,
                step.action,
                actions.click_type(step.action, types),
                step.typed,
            )
            followed[key].append(Followed(name, step.user_id, after.order, after.page))
        for step in found:
            if step.action is not None and step.action.kind == "input":
                typed[step.action.target].append((step.user_id, step.action.text))
    products, links = _products(everything)
    return ReplayIndex(
        {key: tuple(found) for key, found in followed.items()},
        types,
        frozenset(typed),
        {name: tuple(found) for name, found in typed.items()},
        _common(everything, common_share),
        {user: tuple(found) for user, found in first.items()},
        products,
        links,
        frozenset(in_order),
    )


def _common(steps: list[LoggedStep], share: float) -> dict[str, tuple[str, ...]]:
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    pages: Counter[str] = Counter()
    for step in steps:
        pages[step.page.place] += 1
        counts[step.page.place].update(step.page.elements)
    return {
        place: tuple(name for name, n in found.items() if n >= share * pages[place])
        for place, found in counts.items()
    }


def _products(steps: list[LoggedStep]) -> tuple[dict[str, PageProduct], dict[str, str]]:
    """Every product by slug, and the id that opens it: one that was clicked for that, else the
    first that names it.
    """
    products: dict[str, PageProduct] = {}
    clicked: dict[str, str] = {}
    listed: dict[str, str] = {}
    for step in steps:
        slugs = {slug(p.title): p for p in step.page.products if slug(p.title)}
        for name, product in slugs.items():
            products.setdefault(name, product)
        in_order = sorted(slugs)
        for element in step.page.elements if slugs else ():
            if (named := _named(element, in_order)) is not None:
                listed.setdefault(named, element)
        if step.action is not None and step.click_type == "product_link":
            named = named_product(step.action.target, slugs)
            if named is not None:
                clicked.setdefault(named, step.action.target)
    return products, listed | clicked


def named_product(element: str, slugs: Iterable[str]) -> str | None:
    """The product (by slug) that a dotted part of `element` names, in full or cut short to 8
    characters or more; of several the first in the alphabet.
    """
    return _named(element, sorted(slugs))


def _named(element: str, slugs: list[str]) -> str | None:
    for part in element.split("."):
        name = slug(part)
        place = bisect_left(slugs, name) if name else len(slugs)
        found = slugs[place] if place < len(slugs) else ""
        if found and (found == name or len(name) >= 8 and found.startswith(name)):
            return found
    return None
