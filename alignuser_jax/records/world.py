"""Actions, requests and states: what passes between a world and whoever acts in it."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Literal

from alignuser_jax.records.data import Interaction

ActionKind = Literal[
    "next_page", "previous_page", "click", "rate", "search", "exit",
    "click_element", "input", "terminate",
]  # fmt: skip
"""The kinds of action: the first six on a recommendation site, the last three in a web shop."""


@dataclass(frozen=True, slots=True)
class Action:
    """One action of a user.

    Attributes:
        kind: What kind of action it is.
        target: The page-local id that it acts on (`2`; in a web shop the semantic id of
            an element), or the query of a search.
        value: The rating of a "rate" action, 1 to 5.
        text: The text that an "input" action types.

    Example:
        >>> Action("rate", "2", 4).token
        '[RATE:2:4]'
    """

    kind: ActionKind
    target: str = ""
    value: int = 0
    text: str = ""

    @property
    def token(self) -> str:
        """The action as agents write it (docs/method.md section 3)."""
        if self.kind == "click":
            return f"[CLICK_ITEM:{self.target}]"
        if self.kind == "rate":
            return f"[RATE:{self.target}:{self.value}]"
        if self.kind == "search" and self.target:
            return f"[SEARCH:{self.target}]"
        if self.kind == "click_element":
            return f"[CLICK:{self.target}]"
        if self.kind == "input":
            return f"[INPUT:{self.target}|{self.text}]"
        return f"[{self.kind.upper()}]"


@dataclass(frozen=True, slots=True)
class RecommendationRequest:
    """Everything that a recommender may need to make one slate.

    The user's live history travels with every request, so a recommender needs no state.

    Attributes:
        user_id: For whom the slate is.
        history: What the user rated before this session, oldest first.
        session: What the user rated in this session so far, oldest first.
        k: The number of items that the slate must hold.
        page: The number of the page to fill, from 1.
        exclude: Item ids that the slate must not hold.
        seed: A key for whatever the recommender draws at random.
        purpose: "browse" for a page that an agent really sees; "counterfactual" for a page that
            is only imagined and must leave no trace in the recommender.
    """

    user_id: str
    history: tuple[Interaction, ...]
    session: tuple[Interaction, ...] = ()
    k: int = 4
    page: int = 1
    exclude: frozenset[str] = frozenset()
    seed: int = 0
    purpose: Literal["browse", "counterfactual"] = "browse"


@dataclass(frozen=True, slots=True)
class NextPageRequest:
    """A request for a page that no recommender makes, such as a shop's search or cart page.

    Attributes:
        user_id: Who browses.
        state_text: The text of the current page.
        action: The action that leads to the next page.
        seed: A key for whatever is drawn at random.
        purpose: "browse" or "counterfactual", as in `RecommendationRequest`.
    """

    user_id: str
    state_text: str
    action: Action
    seed: int = 0
    purpose: Literal["browse", "counterfactual"] = "browse"


@dataclass(frozen=True, slots=True)
class Slate:
    """The items that a recommender shows on one page, best first.

    Attributes:
        item_ids: The items, in the order of the page.
        scores: The recommender's score of each item; `None` where it gives none.
        propensities: The probability with which each item was shown; `None` where the
            recommender is deterministic or does not say.
    """

    item_ids: tuple[str, ...]
    scores: tuple[float, ...] | None = None
    propensities: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class State:
    """What a user sees and may do. Immutable; only a `World` makes one.

    Attributes:
        user_id: Who browses.
        seed: The key that the visit was started with.
        kind: "page" (a list of items, or any page of a shop), "detail" (one item) or "end".
        page: The number of the current page, from 1.
        pages: Every slate seen so far, page 1 first.
        session: What was rated in this visit so far, oldest first.
        detail: The id of the item whose details are open, "" otherwise.
        feedback: The line that echoes the last action (`You rated 2: 4/5`).
        text: The page as text.
        actions: The valid actions.
        needs: The request that must be answered with `World.resolve` first; `text` and
            `actions` mean nothing until then. `None` when the state is complete.
        searches: (page, query) for every page in `pages` that a search made.
        place: In a web shop the kind of page ("search", "cart", ...).
        source: In a web shop what made the page ("log", "rule", "model" or "generated").
        inside: The world's own immutable memory of the visit, of no meaning to others.
    """

    user_id: str
    seed: int
    kind: Literal["page", "detail", "end"]
    page: int
    pages: tuple[tuple[str, ...], ...] = ()
    session: tuple[Interaction, ...] = ()
    detail: str = ""
    feedback: str = ""
    text: str = ""
    actions: tuple[Action, ...] = ()
    needs: RecommendationRequest | NextPageRequest | None = None
    searches: tuple[tuple[int, str], ...] = ()
    place: str = ""
    source: str = ""
    inside: Hashable = None

    @property
    def slate(self) -> tuple[str, ...]:
        """The item ids of the current page, the first at position 1."""
        return self.pages[self.page - 1] if 0 < self.page <= len(self.pages) else ()

    @property
    def query(self) -> str:
        """The query if a search made the current page, else ""."""
        return dict(self.searches).get(self.page, "") if self.searches else ""

    @property
    def terminal(self) -> bool:
        """Whether the visit is over."""
        return self.kind == "end"


@dataclass(frozen=True, slots=True)
class Transition:
    """One step of a visit: (s, a, s') of docs/method.md section 1.

    Attributes:
        state: The state before the action.
        action: What was done.
        next_state: The state that followed.
        source: "human", "rollout" or "counterfactual".
    """

    state: State
    action: Action
    next_state: State
    source: str
