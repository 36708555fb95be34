"""Reconstruct visits: cut a rating log into short visits and lay each out as pages.

Rating logs hold no browsing, so *which* items stood beside the rated ones is not in the data:
it is a declared assumption (`ExposureMixture`). This reconstruction is a DEFAULT of this
project, not the paper's. The visits give models without a pretrained backbone training targets
for every kind of call; they are never part of the reflection loss L_CR.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from alignuser_jax.datasets import Dataset, Log
from alignuser_jax.randomness import named_generator
from alignuser_jax.records import RATINGS, Interaction, RecommendationRequest, Recommender
from alignuser_jax.views import View

_TRIES = 1000
"""Draws from one source before the items that are left are listed instead."""
_REQUESTS_PER_CALL = 512


@dataclass(frozen=True)
class ExposureMixture:
    """Weights of the three sources that fill a page with unrated items.

    Only the ratios of the weights count: `ExposureMixture(popularity=0, model_top=0)` is
    uniform filler. Which filler is assumed decides which recommender wins
    (docs/evidence.md), so it is declared in every manifest.

    Attributes:
        uniform: Weight of a uniform draw over the catalogue.
        popularity: Weight of a draw by the number of ratings in the profile part.
        model_top: Weight of a uniform draw from the best items of a recommender for this user.
        model_top_n: How many best items `model_top` draws from.
    """

    uniform: float = 1.0
    popularity: float = 1.0
    model_top: float = 1.0
    model_top_n: int = 300

    def __post_init__(self) -> None:
        weights = (self.uniform, self.popularity, self.model_top)
        if not all(weight >= 0 for weight in weights) or not 0 < sum(weights) < np.inf:
            raise ValueError(
                f"the exposure weights are {weights}: expected finite weights of 0 or more, at "
                "least one of them above 0"
            )
        if self.model_top_n < 1:
            raise ValueError(f"model_top_n is {self.model_top_n}, expected at least 1")

    @property
    def shares(self) -> tuple[float, float, float]:
        """The weights of (uniform, popularity, model_top), scaled to sum to 1."""
        weights = np.array((self.uniform, self.popularity, self.model_top))
        return tuple((weights / weights.sum()).tolist())

    def describe(self) -> dict[str, float]:
        """Return the shares by source, as manifests record them."""
        shares = dict(zip(("uniform", "popularity", "model_top"), self.shares, strict=True))
        return shares | ({"model_top_n": self.model_top_n} if self.model_top else {})


@dataclass(frozen=True)
class VisitConfig:
    """How a user's ratings are cut into visits and laid out as pages.

    Attributes:
        gap_seconds: A longer pause between two ratings ends a visit. 30 minutes is the usual
            session gap in web logs.
        mean_items: Mean number of rated items per visit (a geometric draw). The median session
            of MovieLens-1M has 7; its mean of 41 is bulk rating (docs/evidence.md).
        max_pages: Pages of a visit, at most.
        items_per_page: Items of a page; must equal that of the site.
        rated_share: Probability that a place on a page holds a rated item; the rest is filler.
        exposure: Where the filler comes from.
    """

    gap_seconds: int = 1800
    mean_items: float = 6.0
    max_pages: int = 5
    items_per_page: int = 4
    rated_share: float = 0.5
    exposure: ExposureMixture = field(default_factory=ExposureMixture)

    def __post_init__(self) -> None:
        if self.gap_seconds < 0:
            raise ValueError(f"gap_seconds is {self.gap_seconds}, expected 0 or more")
        for name in ("mean_items", "max_pages", "items_per_page"):
            value = getattr(self, name)
            if not 1 <= value < np.inf:
                raise ValueError(f"{name} is {value}, expected a number of at least 1")
        if not 0 < self.rated_share <= 1:
            raise ValueError(f"rated_share is {self.rated_share}, expected 0 < share <= 1")


def stars(rating: float) -> int:
    """Return a logged rating as an answer of 1 to 5; halves are rounded up."""
    return min(max(int(rating + 0.5), RATINGS[0]), RATINGS[-1])


@dataclass(frozen=True, slots=True)
class Visit:
    """One reconstructed visit of a user.

    Attributes:
        user_id: Whose visit it is.
        number: Place among the user's visits, from 0, in time order.
        pages: Item ids of each page, in the order in which they stand on it.
        rated: The ratings that were given on these pages, in time order.
    """

    user_id: str
    number: int
    pages: tuple[tuple[str, ...], ...]
    rated: tuple[Interaction, ...]

    @property
    def ratings(self) -> dict[str, int]:
        """The answer of 1 to 5 that each rated item id got."""
        return {r.item_id: stars(r.rating) for r in self.rated}

    @property
    def satisfaction(self) -> int:
        """Satisfaction of 1 to 10: twice the visit's mean rating, halves rounded up.

        A DEFAULT, not a measurement: rating logs hold no satisfaction.
        """
        mean = sum(r.rating for r in self.rated) / len(self.rated)
        return min(max(int(2 * mean + 0.5), 1), 10)


def reconstruct_visits(
    dataset: Dataset,
    view: View,
    config: VisitConfig,
    *,
    model: Recommender | None = None,
    users: Sequence[str] | None = None,
    seed: int = 0,
    max_visits: int | None = None,
) -> list[Visit]:
    """Cut the target ratings into visits, user by user.

    A page never shows as filler what the user rated before the visit, what the visit itself
    rates, or what its pages show already; what the user rates later may be shown. A page is
    always full: where the catalogue has no filler left, the visit ends.

    Args:
        dataset: The log.
        view: Its profile are the ratings known before the first visit; its targets are the
            ratings that the visits are made of.
        config: How visits are cut and laid out.
        model: The recommender behind `exposure.model_top`, fitted on the profile. May be
            `None` only if that weight is 0.
        users: User ids whose ratings are cut (default: all).
        seed: Names every draw, together with the user id, so that a user's visits do not
            depend on which other users are asked for.
        max_visits: Visits of one user, at most (the first ones); `None` for all.

    Returns:
        The visits in the order of `users`, each user's in time order.

    Example:
        >>> uniform = ExposureMixture(popularity=0, model_top=0)
        >>> config = VisitConfig(exposure=uniform)
        >>> visits = reconstruct_visits(dataset, training_view(dataset), config, users=["u1"])
    """
    profile, targets = view.profile, view.targets
    if config.exposure.model_top > 0 and model is None:
        raise ValueError(
            f"exposure.model_top is {config.exposure.model_top}, but no `model` was passed: "
            "pass a recommender fitted on the profile part, or set model_top=0"
        )
    codes = {user_id: code for code, user_id in enumerate(dataset.user_ids)}
    users = dataset.user_ids if users is None else users
    chosen = [codes[user_id] for user_id in users]
    earlier, later = _rows(profile), _rows(targets)
    chosen = [code for code in chosen if later(code).start < later(code).stop]
    popularity = np.cumsum(np.bincount(profile.item, minlength=len(dataset.item_ids)))
    tops = _model_tops(dataset, profile, chosen, config.exposure, model)
    visits = []
    for code, top in zip(chosen, tops, strict=True):
        user_id = dataset.user_ids[code]
        rng = named_generator(seed, "visits", user_id)
        ratings = _Ratings.of(user_id, targets, later(code))
        filler = _Filler(rng, config.exposure, len(dataset.item_ids), popularity, top)
        seen = set(profile.item[earlier(code)].tolist())
        visits += _user_visits(ratings, seen, filler, config, dataset.item_ids, max_visits)
    return visits


@dataclass(frozen=True)
class _Ratings:
    """One user's target ratings in time order: item codes, ratings, seconds."""

    user_id: str
    items: list[int]
    values: list[float]
    times: list[int]

    @classmethod
    def of(cls, user_id: str, log: Log, rows: slice) -> _Ratings:
        columns = (log.item[rows], log.rating[rows], log.timestamp[rows])
        return cls(user_id, *(column.tolist() for column in columns))

    def end(self, start: int, most: int, gap_seconds: int) -> int:
        """Where a visit of at most `most` ratings ends that begins at `start`."""
        end, stop = start + 1, min(len(self.items), start + most)
        while end < stop and self.times[end] - self.times[end - 1] <= gap_seconds:
            end += 1
        return end


def _user_visits(
    ratings: _Ratings,
    seen: set[int],
    filler: _Filler,
    config: VisitConfig,
    item_ids: Sequence[str],
    max_visits: int | None,
) -> list[Visit]:
    """The visits of one user; `seen` (item codes rated so far) grows visit by visit."""
    visits: list[Visit] = []
    rng, start = filler.rng, 0
    while start < len(ratings.items) and (max_visits is None or len(visits) < max_visits):
        most = int(rng.geometric(1 / config.mean_items))
        per_page = rng.binomial(config.items_per_page, config.rated_share, config.max_pages)
        counts = np.maximum(per_page, 1).tolist()
        end = ratings.end(start, min(most, sum(counts)), config.gap_seconds)
        # an item rated before is on no page again; of two ratings in one visit the last counts
        rows = enumerate(ratings.items[start:end], start)
        row_of = {item: row for row, item in rows if item not in seen}
        start, own = end, list(row_of)
        pages, placed = _lay_out(own, counts, seen | set(own), filler, config.items_per_page)
        seen.update(own)
        if pages:
            rated = tuple(
                Interaction(item_ids[i], ratings.values[row_of[i]], ratings.times[row_of[i]])
                for i in own[:placed]
            )
            named = tuple(tuple(item_ids[item] for item in page) for page in pages)
            visits.append(Visit(ratings.user_id, len(visits), named, rated))
    return visits


def _lay_out(
    own: list[int], counts: list[int], excluded: set[int], filler: _Filler, size: int
) -> tuple[list[list[int]], int]:
    """Lay the rated items `own` out as shuffled pages of `size` items among filler.

    `counts[n]` rated items go to page n; `excluded` holds what may not be filler and grows.
    Returns the pages and how many of `own` stand on them.
    """
    pages, placed = [], 0
    for count in counts:
        page = own[placed : placed + count]
        page += filler.draw(size - len(page), excluded) if page else []
        if len(page) < size:
            break  # all rated items are placed, or the catalogue is used up
        placed = min(placed + count, len(own))
        pages.append([page[i] for i in filler.rng.permutation(len(page))])
    return pages, placed


class _Filler:
    """Draws filler items for one user from the exposure mixture."""

    def __init__(
        self,
        rng: np.random.Generator,
        exposure: ExposureMixture,
        n_items: int,
        popularity: np.ndarray,
        top: np.ndarray,
    ) -> None:
        """`popularity` is int[n_items], cumulative counts; `top` int[n], the model's best."""
        self.rng, self.n_items = rng, n_items
        self.bounds = np.cumsum(exposure.shares)
        total = int(popularity[-1]) if n_items else 0

        def uniform(n: int) -> np.ndarray:
            return rng.integers(n_items, size=n)

        def by_popularity(n: int) -> np.ndarray:
            return np.searchsorted(popularity, rng.integers(total, size=n), side="right")

        def by_model(n: int) -> np.ndarray:
            return top[rng.integers(len(top), size=n)]

        self.sources = (
            _stream(uniform),
            _stream(by_popularity if total else uniform),
            _stream(by_model if len(top) else uniform),
        )

    def draw(self, n: int, excluded: set[int]) -> list[int]:
        """Draw `n` distinct items that are not in `excluded` and add them to it.

        Returns fewer where the catalogue has no more.
        """
        drawn: list[int] = []
        for source in np.searchsorted(self.bounds, self.rng.random(n), side="right").tolist():
            item = self._one(self.sources[min(source, 2)], excluded)
            if item is None:
                break
            excluded.add(item)
            drawn.append(item)
        return drawn

    def _one(self, source: Iterator[int], excluded: set[int]) -> int | None:
        for _ in range(_TRIES):
            item = next(source)
            if item not in excluded:
                return item
        rest = [item for item in range(self.n_items) if item not in excluded]
        return rest[int(self.rng.integers(len(rest)))] if rest else None


def _stream(draw: Callable[[int], np.ndarray]) -> Iterator[int]:
    """The items of `draw`, which are drawn 64 at a time."""
    while True:
        yield from draw(64).tolist()


def _rows(log: Log) -> Callable[[int], slice]:
    """A function from a user code to the user's rows in `log`, which is sorted by user."""
    bounds = np.searchsorted(log.user, np.arange(log.n_users + 1))
    return lambda code: slice(int(bounds[code]), int(bounds[code + 1]))


def _model_tops(
    dataset: Dataset,
    profile: Log,
    users: list[int],
    exposure: ExposureMixture,
    model: Recommender | None,
) -> list[np.ndarray]:
    """Codes of the model's best items for each user code; empty arrays without a model."""
    if exposure.model_top == 0 or model is None:
        return [np.empty(0, np.int64)] * len(users)
    code_of = {item_id: code for code, item_id in enumerate(dataset.item_ids)}
    tops: list[np.ndarray] = []
    for first in range(0, len(users), _REQUESTS_PER_CALL):
        requests = []
        for code in users[first : first + _REQUESTS_PER_CALL]:
            history = dataset.history(profile, dataset.user_ids[code])
            exclude = frozenset(row.item_id for row in history)
            k = min(exposure.model_top_n, len(code_of) - len(exclude))
            requests.append(
                RecommendationRequest(dataset.user_ids[code], history, k=k, exclude=exclude)
            )
        for slate in model.recommend(requests):
            tops.append(np.array([code_of[item_id] for item_id in slate.item_ids], np.int64))
    return tops
