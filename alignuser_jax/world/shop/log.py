"""Index logged shop sessions by what followed: (kind of page, semantic id) -> the next page.

Only training steps may enter (docs/method.md section 7): a counterfactual of a test session
must not show a page of a test session.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from alignuser_jax.datasets.sessions import Session
from alignuser_jax.datasets.shop_page_text import PageProduct
from alignuser_jax.randomness import stable_key
from alignuser_jax.records import Action
from alignuser_jax.world.shop import actions
from alignuser_jax.world.shop.page import ShopPage, slug

ReplayKey = tuple[str, str, str]
"""(kind of page, semantic id, text): what decides which page comes next (`replay_key`)."""

_WORD = re.compile(r"[a-z0-9]+")
_FIELD = re.compile(r"(^|[._])(search_input|search_box|search_field|text_input|input)$")


@dataclass(frozen=True, slots=True)
class LoggedStep:
    """What a person saw and then did.

    Attributes:
        session_id: The session.
        user_id: Whose session it is.
        order: The number of the step in its session, from 0.
        page: The page that the person saw.
        action: What they did; `None` for what no agent can do, such as a scroll.
        click_type: The type of the click, one of `datasets.sessions.CLICK_TYPES`.
        rationale: The person's reason in words, "" where the log has none.
        typed_text: The text that was last typed before this step.
        split: "train", "validation" or "test".
    """

    session_id: str
    user_id: str
    order: int
    page: ShopPage
    action: Action | None
    click_type: str = ""
    rationale: str = ""
    typed_text: str = ""
    split: str = "train"


def logged_steps(sessions: Iterable[Session]) -> list[LoggedStep]:
    """Return the steps of logged sessions, in order.

    Only clicks, inputs and terminations become actions. Other steps keep their page, which is
    what followed the action before them. Semantic ids that are empty or cannot be printed on
    one line are left out.
    """
    steps = []
    for session in sessions:
        typed_text = ""
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
                    typed_text,
                    session.split,
                )
            )
            typed_text = action.text if action and action.kind == "input" else typed_text
    return steps


@dataclass(frozen=True, slots=True)
class LoggedPage:
    """A page of a log and where it stands there.

    Attributes:
        session_id: The session.
        user_id: Whose session it is.
        order: The number of its step in the session, from 0.
        page: The page.
    """

    session_id: str
    user_id: str
    order: int
    page: ShopPage


@dataclass(frozen=True)
class ReplayIndex:
    """What a shop knows from a log.

    Attributes:
        next_pages: The pages that followed an action, by `replay_key`.
        click_types: The type of a click by semantic id.
        field_ids: The semantic ids that text was typed into.
        typed_texts: (user id, text) pairs by field, in the order of the log.
        common_ids: The semantic ids that most pages of a kind have, by kind of page.
        first_pages: The first page of each session, by user id.
        products: Every product that was shown, by slug.
        product_links: The semantic id that opens a product, by slug.
        session_ids: All sessions that the index was built from.
    """

    next_pages: Mapping[ReplayKey, tuple[LoggedPage, ...]] = field(default_factory=dict)
    click_types: Mapping[str, str] = field(default_factory=dict)
    field_ids: frozenset[str] = frozenset()
    typed_texts: Mapping[str, tuple[tuple[str, str], ...]] = field(default_factory=dict)
    common_ids: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    first_pages: Mapping[str, tuple[LoggedPage, ...]] = field(default_factory=dict)
    products: Mapping[str, PageProduct] = field(default_factory=dict)
    product_links: Mapping[str, str] = field(default_factory=dict)
    session_ids: frozenset[str] = frozenset()

    def is_field(self, name: str) -> bool:
        """Return whether text is typed into this id: the log shows it or the name says it."""
        return "|" not in name and (name in self.field_ids or bool(_FIELD.search(name)))

    def find(
        self, key: ReplayKey, session_id: str, user_id: str, order: int, seed: int
    ) -> LoggedPage | None:
        """Return the page that followed an action, or `None` if the log has none.

        The same session comes first (its nearest step), then other sessions of the same user,
        then any session.

        Args:
            key: The action, as `replay_key` names it.
            session_id: The logged session that the visit is nearest to.
            user_id: Who visits.
            order: The number of the visit's current page in that session.
            seed: Draws among several pages of other sessions.
        """
        candidates = self.next_pages.get(key, ())
        if not candidates:
            return None
        same = [c for c in candidates if c.session_id == session_id]
        if same:
            return min(same, key=lambda c: (abs(c.order - 1 - order), c.order))
        pool = [c for c in candidates if c.user_id == user_id] or candidates
        return pool[stable_key(seed, "replay", *key) % len(pool)]

    def search(self, query: str, count: int) -> tuple[PageProduct, ...]:
        """Return at most `count` logged products that share most words with `query`.

        A product shares at least one word; equals come in the order of their slugs.
        """
        words = set(_WORD.findall(query.lower()))
        scores = [(-len(words & set(name.split("_"))), name) for name in self.products if words]
        best = sorted(score for score in scores if score[0])[:count]
        return tuple(self.products[name] for _, name in best)


def replay_key(place: str, action: Action, click_type: str, typed_text: str) -> ReplayKey:
    """Return what decides which page follows an action.

    The text matters for typed text, and for a click on a search button, whose text was typed
    before.

    Args:
        place: The kind of the page on which the action is taken.
        action: The action.
        click_type: The type of the click, "" for no click.
        typed_text: The text that was last typed.
    """
    if action.kind == "input":
        text = action.text
    else:
        text = typed_text if click_type == "search" else ""
    return place, action.target, " ".join(text.lower().split())


def build_index(steps: Iterable[LoggedStep], common_share: float = 0.5) -> ReplayIndex:
    """Return the index of training steps.

    Args:
        steps: The steps, in any order.
        common_share: A semantic id is common to a kind of page if at least this share of its
            pages has it.

    Raises:
        ValueError: If a step is not of the training split, or if a session has two steps of the
            same order.
    """
    sessions = _sessions(steps)
    everything = [step for session in sessions.values() for step in session]
    types = actions.click_type_map(
        (s.action.target, s.click_type)
        for s in everything
        if s.action is not None and s.action.kind == "click_element"
    )
    next_pages: dict[ReplayKey, list[LoggedPage]] = defaultdict(list)
    typed: dict[str, list[tuple[str, str]]] = defaultdict(list)
    first: dict[str, list[LoggedPage]] = defaultdict(list)
    for name, session in sessions.items():
        user_id = session[0].user_id
        first[user_id].append(LoggedPage(name, user_id, 0, session[0].page))
        for step, after in zip(session, session[1:], strict=False):
            if step.action is None or step.action.kind == "terminate":
                continue
            kind = actions.click_type(step.action, types)
            key = replay_key(step.page.place, step.action, kind, step.typed_text)
            next_pages[key].append(LoggedPage(name, step.user_id, after.order, after.page))
        for step in session:
            if step.action is not None and step.action.kind == "input":
                typed[step.action.target].append((step.user_id, step.action.text))
    products, links = _products(everything)
    return ReplayIndex(
        next_pages={key: tuple(pages) for key, pages in next_pages.items()},
        click_types=types,
        field_ids=frozenset(typed),
        typed_texts={name: tuple(texts) for name, texts in typed.items()},
        common_ids=_common_ids(everything, common_share),
        first_pages={user: tuple(pages) for user, pages in first.items()},
        products=products,
        product_links=links,
        session_ids=frozenset(sessions),
    )


def _sessions(steps: Iterable[LoggedStep]) -> dict[str, list[LoggedStep]]:
    """The steps of each session in order; the sessions sorted by id."""
    by_order: dict[str, dict[int, LoggedStep]] = defaultdict(dict)
    for step in steps:
        if step.split != "train":
            raise ValueError(
                f"step {step.order} of session {step.session_id!r} is of the {step.split!r} "
                "split: only training sessions may enter the replay index; leave it out"
            )
        if step.order in by_order[step.session_id]:
            raise ValueError(f"session {step.session_id!r} has two steps {step.order}")
        by_order[step.session_id][step.order] = step
    return {
        name: [session[order] for order in sorted(session)]
        for name, session in sorted(by_order.items())
    }


def _common_ids(steps: Sequence[LoggedStep], share: float) -> dict[str, tuple[str, ...]]:
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    pages: Counter[str] = Counter()
    for step in steps:
        pages[step.page.place] += 1
        counts[step.page.place].update(step.page.elements)
    return {
        place: tuple(name for name, n in count.items() if n >= share * pages[place])
        for place, count in counts.items()
    }


def _products(
    steps: Sequence[LoggedStep],
) -> tuple[dict[str, PageProduct], dict[str, str]]:
    """Every product by slug, and the id that opens it.

    That is an id that was clicked to open it, else the first id that names the product.
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
            if (name_of := _named_product(element, in_order)) is not None:
                listed.setdefault(name_of, element)
        if step.action is not None and step.click_type == "product_link":
            name_of = _named_product(step.action.target, in_order)
            if name_of is not None:
                clicked.setdefault(name_of, step.action.target)
    return products, listed | clicked


def named_product(element: str, slugs: Iterable[str]) -> str | None:
    """Return the slug of the product that a semantic id names, or `None`.

    A part of the id between dots names a product by its slug, in full or cut to 8 characters or
    more. Of several products it is the first in the alphabet.

    Args:
        element: The semantic id.
        slugs: The slugs of the products in question.
    """
    return _named_product(element, sorted(slugs))


def _named_product(element: str, slugs: list[str]) -> str | None:
    """`named_product` for slugs in alphabetical order."""
    for part in element.split("."):
        name = slug(part)
        place = bisect_left(slugs, name) if name else len(slugs)
        match = slugs[place] if place < len(slugs) else ""
        if match and (match == name or len(name) >= 8 and match.startswith(name)):
            return match
    return None
