"""A recommendation site as a pure function: four items a page, paging, details, ratings, exit,
and search where it is switched on.

`reset` and `step` return states that may say what slate they need; `resolve` puts it in. Pages
already seen come back as they were, and every new page asks the recommender again with what was
rated so far (METHOD.md sections 2 and 3). A page of search results is the site's own: no
recommender makes it, so it needs none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

from alignuser_jax.randomness import stable_key
from alignuser_jax.records import (
    RATINGS,
    Action,
    Interaction,
    Item,
    RecommendationRequest,
    Slate,
    State,
)
from alignuser_jax.world.site import page as pages
from alignuser_jax.world.site.search import SearchIndex

SESSION_ENDED = "SESSION ENDED"
SIMILAR_ITEMS = 2
"""How many similar items a line names (METHOD.md section 2.2)."""
USERS_REMEMBERED = 4096


@dataclass(frozen=True, slots=True)
class SiteConfig:
    """`max_pages` caps a visit that the user may also leave with [EXIT]; a `horizon` fixes its
    length instead: no [EXIT], and [NEXT_PAGE] on page `horizon` ends it. `summary_chars` and
    `detail_chars` cut descriptions on the page and after a click. `similar_items` names two
    items beside each (off as for plain AlignUSER). `search` offers up to `queries_per_page`
    searches, each of which opens a new page, the next in number; off as in the paper.
    """

    items_per_page: int = 4
    max_pages: int = 20
    horizon: int | None = None
    show_mean_rating: bool = True
    summary: pages.Summary = "genres"
    summary_chars: int = 80
    detail_chars: int = 400
    similar_items: bool = False
    search: bool = False
    queries_per_page: int = 8

    def __post_init__(self) -> None:
        for name in (
            *("items_per_page", "max_pages", "horizon", "summary_chars", "detail_chars"),
            "queries_per_page",
        ):
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
    must hold only what the user could know by then (no held-out rating); `known_site` takes
    them from the training part of a dataset.

    `frozen`: the ranking is made from the history alone, when the session starts. No request
    carries the session, all have the seed of the first page, and what was shown is excluded, so
    that the pages of a session walk down one ranking.

    `neighbours`: item id -> the ids most like it, best first (a preference graph), for
    `SiteConfig.similar_items`; without it the user's own history is looked through for items
    of the same genres. None of the mappings may change afterwards: the site remembers them.
    """

    items: Mapping[str, Item]
    histories: Mapping[str, tuple[Interaction, ...]]
    mean_ratings: Mapping[str, float]
    config: SiteConfig = SiteConfig()
    frozen: bool = False
    neighbours: Mapping[str, Sequence[str]] | None = None
    _own: dict[str, dict[str, float]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _index: SearchIndex | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.config.search:
            object.__setattr__(self, "_index", SearchIndex.of(self.items))

    def reset(self, user_id: str, seed: int) -> State:
        return self._turn_to(State(user_id, seed, "page", 1), 1)

    def valid_actions(self, state: State) -> tuple[Action, ...]:
        """All that is valid in `state`: `state.actions`, then every rating of an item on the
        page. Nothing at the end, or where the slate is still missing.
        """
        if state.terminal or state.needs is not None:
            return ()
        return state.actions + _rating_actions(len(state.slate))

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
            return replace(state, feedback=error, text=f"{_without_feedback(state)}\n{error}")
        if action.kind == "exit":
            return self._end(state)
        if action.kind == "next_page":
            return self._turn_to(state, state.page + 1)
        if action.kind == "previous_page":
            return self._turn_to(state, state.page - 1)
        if action.kind == "search":
            return self._search(state, action.target)
        position = pages.position_of(action.target, len(state.slate))
        item_id = state.slate[position - 1]
        if action.kind == "click":
            details = pages.details_line(
                position, self.items[item_id], self.config.detail_chars
            )
            text = f"{_first_lines(state.text, 1 + len(state.slate))}\n{details}"
            return replace(state, kind="detail", detail=item_id, feedback="", text=text)
        rated = Interaction(item_id, float(action.value))
        echo = f"You rated {action.target}: {action.value}/5"
        text = f"{_without_feedback(state)}\n{echo}"
        return replace(state, session=(*state.session, rated), feedback=echo, text=text)

    def resolve(self, state: State, answer: Slate | str) -> State:
        """The state with its slate; ValueError where the slate breaks the recommender contract
        (unique known ids, nothing excluded, `k` of them or all that are left).
        """
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
        return self._show(state, state.page, (*state.pages, slate))

    def rating_text(self, user_id: str, item_id: str) -> str:
        """The user's own past rating of the item, else its mean rating, in two decimals."""
        rating, known = self._rating(user_id, item_id)
        if math.isnan(rating):
            return pages.NONE if known else pages.HIDDEN
        return f"{rating:.2f}"

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

    def _rating(self, user_id: str, item_id: str) -> tuple[float, bool]:
        """The rating that the user may see (NaN: none), and whether means are shown at all."""
        own = self._ratings_of(user_id).get(item_id)
        if own is not None:
            return own, True
        if not self.config.show_mean_rating:
            return math.nan, False
        return float(self.mean_ratings.get(item_id, math.nan)), True

    def _ratings_of(self, user_id: str) -> dict[str, float]:
        """The user's past ratings by item, the latest of each."""
        own = self._own.get(user_id)
        if own is None:
            own = {past.item_id: past.rating for past in self.histories.get(user_id, ())}
            if len(self._own) >= USERS_REMEMBERED:
                self._own.clear()
            self._own[user_id] = own
        return own

    def _similar(self, user_id: str, item_id: str) -> list[tuple[str, float]]:
        """At most two items like this one with a rating the user knows: the graph's neighbours,
        or without a graph those of the history that share the most genres, latest first.
        """
        if self.neighbours is not None:
            near = (n for n in self.neighbours.get(item_id, ()) if n in self.items)
            rated = ((n, self._rating(user_id, n)[0]) for n in near if n != item_id)
            known = ((self.items[n].title, round(r, 1)) for n, r in rated if not math.isnan(r))
            return [pair for pair, _ in zip(known, range(SIMILAR_ITEMS), strict=False)]
        genres = set(self.items[item_id].genres)
        shared = [
            (len(genres.intersection(self.items[past.item_id].genres)), order, past)
            for order, past in enumerate(self.histories.get(user_id, ()))
            if past.item_id in self.items and past.item_id != item_id
        ]
        best = sorted((s for s in shared if s[0]), key=lambda s: s[:2], reverse=True)
        return [(self.items[p.item_id].title, p.rating) for _, _, p in best[:SIMILAR_ITEMS]]

    def _seen(self, user_id: str, shown: tuple[tuple[str, ...], ...]) -> frozenset[str]:
        """What must not be shown again: the history and every page so far."""
        return frozenset(self._ratings_of(user_id)).union(*shown)

    def _turn_to(self, state: State, number: int) -> State:
        if number > self.config.last_page:
            return self._end(state)
        if number <= len(state.pages):
            return self._show(state, number, state.pages)
        exclude = self._seen(state.user_id, state.pages)
        if all(item_id in exclude for item_id in self.items):
            return self._end(state)  # the catalogue is used up
        request = RecommendationRequest(
            user_id=state.user_id,
            history=self.histories.get(state.user_id, ()),
            session=() if self.frozen else state.session,
            k=self.config.items_per_page,
            page=number,
            exclude=exclude,
            seed=stable_key(state.seed, state.user_id, 1 if self.frozen else number),
        )
        return replace(
            state,
            kind="page",
            page=number,
            detail="",
            feedback="",
            text="",
            actions=(),
            needs=request,
        )

    def _search(self, state: State, query: str) -> State:
        exclude = self._seen(state.user_id, state.pages)
        found = self._index.find(query, self.config.items_per_page, exclude)
        number = len(state.pages) + 1
        searched = replace(state, searches=(*state.searches, (number, query)))
        return self._show(searched, number, (*state.pages, found))

    def _show(self, state: State, number: int, shown: tuple[tuple[str, ...], ...]) -> State:
        """Page `number` of the slates `shown`."""
        slate = shown[number - 1]
        lines = [self.item_line(state.user_id, n, i) for n, i in enumerate(slate, 1)]
        query = dict(state.searches).get(number, "") if state.searches else ""
        actions = _page_actions(number > 1, len(slate), self.config.horizon is None)
        if self._index is not None and len(shown) < self.config.last_page:
            queries = self._index.offered(
                [self.items[item_id] for item_id in slate],
                self._seen(state.user_id, shown),
                self.config.queries_per_page,
            )
            actions += tuple(Action("search", query) for query in queries)
        return replace(
            state,
            kind="page",
            page=number,
            pages=shown,
            detail="",
            feedback="",
            text=pages.page_text(number, lines, query=query),
            actions=actions,
            needs=None,
        )

    def _end(self, state: State) -> State:
        page = min(max(state.page, 1), max(len(state.pages), 1))
        return replace(
            state, kind="end", page=page, detail="", feedback="", text=SESSION_ENDED, actions=()
        )


@lru_cache(maxsize=1024)
def _page_actions(back: bool, slate_size: int, leave: bool) -> tuple[Action, ...]:
    return (
        Action("next_page"),
        *((Action("previous_page"),) if back else ()),
        *(Action("click", pages.item_id(n)) for n in range(1, slate_size + 1)),
        *((Action("exit"),) if leave else ()),
    )


@lru_cache(maxsize=1024)
def _rating_actions(slate_size: int) -> tuple[Action, ...]:
    places = range(1, slate_size + 1)
    return tuple(Action("rate", pages.item_id(n), stars) for n in places for stars in RATINGS)


def _first_lines(text: str, count: int) -> str:
    return "\n".join(text.split("\n", count)[:count])


def _without_feedback(state: State) -> str:
    """The page as it stands, details too. It is all in the text already: a line per item, one
    above them and one below for details.
    """
    return _first_lines(state.text, 1 + len(state.slate) + bool(state.detail))
