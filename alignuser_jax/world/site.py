"""A recommendation site as a pure function: four items a page, paging, details, ratings, exit.

`reset` and `step` return states that may say what slate they need; `resolve` puts it in. Pages
already seen come back as they were, and every new page asks the recommender again with what was
rated so far (METHOD.md sections 2 and 3).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from alignuser_jax.records import (
    RATINGS,
    Action,
    Interaction,
    Item,
    RecommendationRequest,
    Slate,
    State,
    stable_key,
)
from alignuser_jax.world import page as pages

SESSION_ENDED = "SESSION ENDED"


@dataclass(frozen=True, slots=True)
class SiteConfig:
    """`max_pages` caps a visit that the user may also leave with [EXIT]; a `horizon` fixes its
    length instead: no [EXIT], and [NEXT_PAGE] on page `horizon` ends it. `summary_chars` and
    `detail_chars` cut descriptions on the page and after a click."""

    items_per_page: int = 4
    max_pages: int = 20
    horizon: int | None = None
    show_mean_rating: bool = True
    summary: pages.Summary = "genres"
    summary_chars: int = 80
    detail_chars: int = 400
    similar_items: bool = False

    def __post_init__(self) -> None:
        for name in ("items_per_page", "max_pages", "horizon", "summary_chars", "detail_chars"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}, expected 1 or more")
        if self.summary not in ("genres", "description", "both"):
            raise ValueError(
                f"summary is {self.summary!r}, expected 'genres', 'description' or 'both'"
            )

    @property
    def last_page(self) -> int:
        return self.max_pages if self.horizon is None else self.horizon


@dataclass(frozen=True, slots=True)
class RecommendationSite:
    """`histories` and `mean_ratings` decide what a page shows as `History ratings`, so they
    must hold only what the user could know by then (no held-out rating).

    `frozen`: the ranking is made from the history alone, when the session starts. No request
    carries the session, all have the seed of the first page, and what was shown is excluded, so
    that the pages of a session walk down one ranking.
    """

    items: Mapping[str, Item]
    histories: Mapping[str, tuple[Interaction, ...]]
    mean_ratings: Mapping[str, float]
    config: SiteConfig = SiteConfig()
    frozen: bool = False

    def reset(self, user_id: str, seed: int) -> State:
        return self._turn_to(State(user_id, seed, "page", 1), 1)

    def valid_action(self, state: State, action: Action) -> bool:
        """True for the actions in `state.actions`, and for a rating of an item on the page."""
        if state.terminal or state.needs is not None:
            return False
        if action.kind == "rate":
            known = pages.position_of(action.target, len(state.slate)) is not None
            return known and action.value in RATINGS
        return action in state.actions

    def step(self, state: State, action: Action) -> State:
        """The state after `action`; the same page and one error line where it is not valid.

        Raises RuntimeError on a state that still needs its slate: that is the caller's mistake,
        not the user's.
        """
        if state.needs is not None:
            raise RuntimeError(
                f"page {state.page} of user {state.user_id!r} has no slate yet: "
                "answer state.needs with resolve() before step()"
            )
        if state.terminal:
            return state
        if not self.valid_action(state, action):
            error = f"Invalid action: {pages.one_line(action.token)}"
            return self._show(replace(state, feedback=error))
        if action.kind == "exit":
            return self._end(state)
        if action.kind == "next_page":
            return self._turn_to(state, state.page + 1)
        if action.kind == "previous_page":
            return self._turn_to(state, state.page - 1)
        position = pages.position_of(action.target, len(state.slate))
        item_id = state.slate[position - 1]
        if action.kind == "click":
            return self._show(replace(state, kind="detail", detail=item_id, feedback=""))
        rated = Interaction(item_id, float(action.value))
        echo = f"You rated {action.target}: {action.value}/5"
        return self._show(replace(state, session=(*state.session, rated), feedback=echo))

    def resolve(self, state: State, answer: Slate | str) -> State:
        """The state with its slate; ValueError where the slate breaks the recommender contract
        (unique known ids, nothing excluded, `k` of them or all that are left)."""
        request = state.needs
        if not isinstance(request, RecommendationRequest):
            raise ValueError(f"page {state.page} of user {state.user_id!r} asks for no slate")
        if not isinstance(answer, Slate):
            raise ValueError(f"got {type(answer).__name__}, expected a Slate")
        slate = tuple(answer.item_ids)
        problem = ""
        if len(set(slate)) != len(slate):
            problem = "ids that repeat"
        elif unknown := [i for i in slate if i not in self.items]:
            problem = f"ids that the catalogue does not have: {unknown}"
        elif shown := [i for i in slate if i in request.exclude]:
            problem = f"ids that the request excludes: {shown}"
        elif len(slate) != request.k:
            left = sum(i not in request.exclude for i in self.items)
            if len(slate) != min(left, request.k):
                problem = f"{len(slate)} ids, expected {min(left, request.k)}"
        if problem:
            raise ValueError(
                f"the slate for user {request.user_id!r}, page {request.page} has {problem} "
                f"(slate {list(slate)}); check the recommender against its contract"
            )
        return self._show(replace(state, pages=(*state.pages, slate), needs=None))

    def rating_text(self, user_id: str, item_id: str) -> str:
        """The user's own past rating of the item, else its mean rating, in two decimals."""
        for past in reversed(self.histories.get(user_id, ())):
            if past.item_id == item_id:
                return f"{past.rating:.2f}"
        if not self.config.show_mean_rating:
            return pages.HIDDEN
        mean = float(self.mean_ratings.get(item_id, math.nan))
        return pages.NONE if math.isnan(mean) else f"{mean:.2f}"

    def item_line(self, user_id: str, position: int, item_id: str) -> str:
        """One line of a page as `user_id` sees it."""
        config = self.config
        return pages.item_line(
            position,
            self.items[item_id],
            self.rating_text(user_id, item_id),
            config.summary,
            config.summary_chars,
            self._similar(user_id, item_id) if config.similar_items else (),
        )

    def _similar(self, user_id: str, item_id: str) -> list[tuple[str, float]]:
        """At most two items of the user's history that share the most genres, latest first."""
        genres = set(self.items[item_id].genres)
        shared = [
            (len(genres.intersection(self.items[past.item_id].genres)), order, past)
            for order, past in enumerate(self.histories.get(user_id, ()))
            if past.item_id in self.items and past.item_id != item_id
        ]
        best = sorted((s for s in shared if s[0]), key=lambda s: s[:2], reverse=True)[:2]
        return [(self.items[past.item_id].title, past.rating) for _, _, past in best]

    def _turn_to(self, state: State, number: int) -> State:
        if number > self.config.last_page:
            return self._end(state)
        state = replace(state, kind="page", page=number, detail="", feedback="")
        if number <= len(state.pages):
            return self._show(state)
        history = self.histories.get(state.user_id, ())
        exclude = frozenset(past.item_id for past in history).union(*state.pages)
        if all(item_id in exclude for item_id in self.items):
            return self._end(state)  # the catalogue is used up
        request = RecommendationRequest(
            user_id=state.user_id,
            history=history,
            session=() if self.frozen else state.session,
            k=self.config.items_per_page,
            page=number,
            exclude=exclude,
            seed=stable_key(state.seed, state.user_id, 1 if self.frozen else number),
        )
        return replace(state, text="", actions=(), needs=request)

    def _show(self, state: State) -> State:
        slate = enumerate(state.slate, 1)
        lines = [self.item_line(state.user_id, n, item_id) for n, item_id in slate]
        details = ""
        if state.detail:
            position = state.slate.index(state.detail) + 1
            details = pages.details_line(
                position, self.items[state.detail], self.config.detail_chars
            )
        text = pages.page_text(state.page, lines, details, state.feedback)
        actions = [Action("next_page")]
        if state.page > 1:
            actions.append(Action("previous_page"))
        actions += [Action("click", pages.item_id(n)) for n in range(1, len(lines) + 1)]
        if self.config.horizon is None:
            actions.append(Action("exit"))
        return replace(state, text=text, actions=tuple(actions))

    def _end(self, state: State) -> State:
        page = min(max(state.page, 1), max(len(state.pages), 1))
        return replace(
            state, kind="end", page=page, detail="", feedback="", text=SESSION_ENDED, actions=()
        )
