"""A recommendation site as a pure function: pages of items, details, ratings, search and exit.

`reset` and `step` return states that may need a slate (`state.needs`); `resolve` puts it in.
Pages that were seen before come back unchanged, and every new page asks the recommender again
with the ratings so far (docs/method.md sections 2 and 3). The site makes a page of search
results by itself, without a recommender.
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
from alignuser_jax.text import one_line
from alignuser_jax.world.site import page as pages
from alignuser_jax.world.site.search import SearchIndex

SESSION_ENDED = "SESSION ENDED"
"""The text of the last state of a visit."""
SIMILAR_ITEMS = 2
"""How many similar items a line names (docs/method.md section 2.2)."""
CACHED_USERS = 4096
"""How many users' ratings a site keeps at hand by item."""


@dataclass(frozen=True, slots=True)
class SiteConfig:
    """What a recommendation site shows and how long a visit may be.

    Attributes:
        items_per_page: How many items a page has.
        max_pages: The last page of a visit that the user may also leave with [EXIT].
        horizon: Fixes the length of a visit instead: there is no [EXIT], and [NEXT_PAGE] on
            page `horizon` ends it.
        show_mean_rating: Whether an item that the user has not rated shows its mean rating.
        summary: What an item's summary says: its genres, its description or both.
        summary_chars: The most characters of a description on a page.
        detail_chars: The most characters of a description after a click.
        similar_items: Whether each item names two items like it; off as for plain AlignUSER.
        search: Whether pages offer searches, each of which opens a new page, the next in
            number; off as in the paper.
        queries_per_page: The most searches that a page offers.

    Example:
        >>> SiteConfig(horizon=3).last_page
        3
    """

    items_per_page: int = 4
    max_pages: int = 20
    horizon: int | None = None
    show_mean_rating: bool = True
    summary: pages.ItemSummary = "genres"
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
        """The number of the last page of a visit."""
        return self.max_pages if self.horizon is None else self.horizon


@dataclass(frozen=True, slots=True)
class RecommendationSite:
    """A site whose pages a recommender fills; a `World`.

    No mapping may change after construction, because the site keeps what it derives from them.

    Attributes:
        items: The catalogue.
        histories: What each user rated before the visit, oldest first, by user id. Together
            with `mean_ratings` it decides which rating of an item a page shows, so both must
            hold only what the user could know by then: no held-out rating. `site_of_dataset`
            takes them from the training part of a dataset.
        mean_ratings: The mean rating by item id; items that are missing have none.
        config: What pages show and how long a visit may be.
        frozen: Whether the ranking is made from the history alone, when the session starts.
            Then no request carries the session, all have the seed of the first page, and the
            items of earlier pages are excluded, so that the pages of a session walk down one
            ranking.
        neighbours: Item id -> the ids most like it, best first (a preference graph), for
            `SiteConfig.similar_items`. Without it the site takes items of the same genres from
            the user's own history.

    Example:
        >>> from alignuser_jax.records import Action, Item, Slate
        >>> items = {"1": Item("1", "Up"), "2": Item("2", "Antz")}
        >>> config = SiteConfig(items_per_page=1)
        >>> site = RecommendationSite(items, {"ann": ()}, {"1": 4.5}, config)
        >>> state = site.reset("ann", seed=0)
        >>> state.needs.k  # no page yet: the state asks for one item
        1
        >>> state = site.resolve(state, Slate(("1",)))
        >>> print(site.step(state, Action("rate", "1", 5)).text)
        PAGE 1
        1. Up | rated 4.5
        You rated 1: 5/5
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
        """Return the start of a visit, which needs the slate of page 1.

        The visit is over at once if the user has seen the whole catalogue.
        """
        return self._turn_to(State(user_id, seed, "page", 1), 1)

    def valid_actions(self, state: State) -> tuple[Action, ...]:
        """Return every valid action: `state.actions`, then each rating of an item on the page.

        There is none at the end of a visit or while the slate is missing.
        """
        if state.terminal or state.needs is not None:
            return ()
        return state.actions + _rating_actions(len(state.slate))

    def valid_action(self, state: State, action: Action) -> bool:
        """Return whether the action is in `state.actions` or rates an item on the page."""
        if state.terminal or state.needs is not None:
            return False
        if action.kind == "rate":
            position = pages.position_of(action.target, len(state.slate))
            return position is not None and action.value in RATINGS
        return action in state.actions

    def step(self, state: State, action: Action) -> State:
        """Return the state after `action`.

        An action that is not valid leaves the page as it is and adds one error line
        (docs/method.md section 2.5). Raises `RuntimeError` if the state still needs its slate:
        that is the caller's mistake, not the user's.
        """
        if state.needs is not None:
            raise RuntimeError(
                f"page {state.page} of user {state.user_id!r} has no slate yet: "
                "answer state.needs with resolve() before step()"
            )
        if state.terminal:
            return state
        if not self.valid_action(state, action):
            error = f"Invalid action: {one_line(action.token)}"
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
        assert position is not None  # the action is valid
        item_id = state.slate[position - 1]
        if action.kind == "click":
            details = pages.details_line(
                position, self.items[item_id], self.config.detail_chars
            )
            text = f"{_first_lines(state.text, 1 + len(state.slate))}\n{details}"
            return replace(state, kind="detail", detail=item_id, feedback="", text=text)
        rating = Interaction(item_id, float(action.value))
        echo = f"You rated {action.target}: {action.value}/5"
        text = f"{_without_feedback(state)}\n{echo}"
        return replace(state, session=(*state.session, rating), feedback=echo, text=text)

    def resolve(self, state: State, answer: Slate | str) -> State:
        """Return the state with its slate filled in.

        Raises `ValueError` if the state needs no slate, and if the slate breaks the contract of
        recommenders: ids of the catalogue, none twice, none excluded, and `k` of them or all
        that are left.
        """
        request = state.needs
        if not isinstance(request, RecommendationRequest):
            raise ValueError(f"page {state.page} of user {state.user_id!r} needs no slate")
        if not isinstance(answer, Slate):
            raise ValueError(f"got {type(answer).__name__}, expected a Slate")
        slate = tuple(answer.item_ids)
        problem = ""
        if len(set(slate)) != len(slate):
            problem = "ids that repeat"
        elif unknown := [i for i in slate if i not in self.items]:
            problem = f"ids that the catalogue does not have: {unknown}"
        elif excluded := [i for i in slate if i in request.exclude]:
            problem = f"ids that the request excludes: {excluded}"
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
        """Return the rating that a page shows: the user's own, else the mean, with one decimal.

        Without either it is "none", and "hidden" if the site shows no means.
        """
        rating, visible = self._rating(user_id, item_id)
        if math.isnan(rating):
            return pages.NONE if visible else pages.HIDDEN
        return f"{rating:.1f}"

    def item_line(self, user_id: str, position: int, item_id: str) -> str:
        """Return an item's line as `user_id` sees it at `position` of a page."""
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
        """The rating that the user may see (NaN for none) and whether it may be seen at all."""
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
            if len(self._own) >= CACHED_USERS:
                self._own.clear()
            self._own[user_id] = own
        return own

    def _similar(self, user_id: str, item_id: str) -> list[tuple[str, float]]:
        """(title, rating) of at most two items like this one.

        They are the graph's neighbours, as far as the user can see a rating of them; without a
        graph the items of the history that share the most genres, the latest first.
        """
        if self.neighbours is not None:
            near = (n for n in self.neighbours.get(item_id, ()) if n in self.items)
            ratings = ((n, self._rating(user_id, n)[0]) for n in near if n != item_id)
            pairs = (
                (self.items[n].title, round(r, 1)) for n, r in ratings if not math.isnan(r)
            )
            return [pair for pair, _ in zip(pairs, range(SIMILAR_ITEMS), strict=False)]
        genres = set(self.items[item_id].genres)
        shared = [
            (len(genres.intersection(self.items[past.item_id].genres)), order, past)
            for order, past in enumerate(self.histories.get(user_id, ()))
            if past.item_id in self.items and past.item_id != item_id
        ]
        best = sorted((s for s in shared if s[0]), key=lambda s: s[:2], reverse=True)
        return [(self.items[p.item_id].title, p.rating) for _, _, p in best[:SIMILAR_ITEMS]]

    def _not_again(self, user_id: str, slates: tuple[tuple[str, ...], ...]) -> frozenset[str]:
        """The ids that must not be shown again: the history and every page so far."""
        return frozenset(self._ratings_of(user_id)).union(*slates)

    def _turn_to(self, state: State, number: int) -> State:
        if number > self.config.last_page:
            return self._end(state)
        if number <= len(state.pages):
            return self._show(state, number, state.pages)
        exclude = self._not_again(state.user_id, state.pages)
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
        exclude = self._not_again(state.user_id, state.pages)
        assert self._index is not None  # no valid action searches without it
        matches = self._index.find(query, self.config.items_per_page, exclude)
        number = len(state.pages) + 1
        searched = replace(state, searches=(*state.searches, (number, query)))
        return self._show(searched, number, (*state.pages, matches))

    def _show(self, state: State, number: int, slates: tuple[tuple[str, ...], ...]) -> State:
        """The state that shows page `number` of `slates`."""
        slate = slates[number - 1]
        lines = [self.item_line(state.user_id, n, i) for n, i in enumerate(slate, 1)]
        query = dict(state.searches).get(number, "") if state.searches else ""
        actions = _page_actions(number > 1, len(slate), self.config.horizon is None)
        if self._index is not None and len(slates) < self.config.last_page:
            queries = self._index.queries_of(
                [self.items[item_id] for item_id in slate],
                self._not_again(state.user_id, slates),
                self.config.queries_per_page,
            )
            actions += tuple(Action("search", query) for query in queries)
        return replace(
            state,
            kind="page",
            page=number,
            pages=slates,
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
        *(Action("click", pages.local_id(n)) for n in range(1, slate_size + 1)),
        *((Action("exit"),) if leave else ()),
    )


@lru_cache(maxsize=1024)
def _rating_actions(slate_size: int) -> tuple[Action, ...]:
    ids = [pages.local_id(n) for n in range(1, slate_size + 1)]
    return tuple(Action("rate", item, stars) for item in ids for stars in RATINGS)


def _first_lines(text: str, count: int) -> str:
    return "\n".join(text.split("\n", count)[:count])


def _without_feedback(state: State) -> str:
    """The text of the page and its details: a header, a line per item, one of details."""
    return _first_lines(state.text, 1 + len(state.slate) + bool(state.detail))
