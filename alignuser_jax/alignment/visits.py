"""Reconstructed visits: a rating log cut into short visits laid out as pages among filler.

A DEFAULT of this project, not the paper's: rating logs hold no browsing, so *which* items were
shown beside the rated ones is a declared assumption (`ExposureMixture`). The visits give models
without a pretrained backbone targets for every kind of call and are never part of L_CR.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from alignuser_jax.datasets import Dataset, Log
from alignuser_jax.randomness import named_generator
from alignuser_jax.records import RATINGS, Interaction, RecommendationRequest, Recommender

_TRIES = 1000  # draws from one source before the remaining items are listed
_REQUESTS_PER_CALL = 512


@dataclass(frozen=True)
class ExposureMixture:
    """What the page is filled with: the weights of three sources of unrated items.

    `uniform`: any item · `popularity`: by number of ratings in the profile part · `model_top`:
    any of the `model_top_n` best of a model, for that user. Only their ratios count, so that
    `ExposureMixture(popularity=0, model_top=0)` is uniform filler.
    """

    uniform: float = 1.0
    popularity: float = 1.0
    model_top: float = 1.0
    model_top_n: int = 300

    def __post_init__(self) -> None:
        weights = (self.uniform, self.popularity, self.model_top)
        if min(weights) < 0 or not 0 < sum(weights) < np.inf:
            raise ValueError(
                f"the exposure weights are {weights}: none may be negative, one must be more"
            )
        if self.model_top_n < 1:
            raise ValueError(f"model_top_n is {self.model_top_n}, expected at least 1")

    @property
    def shares(self) -> tuple[float, float, float]:
        weights = np.array((self.uniform, self.popularity, self.model_top))
        return tuple((weights / weights.sum()).tolist())

    def describe(self) -> dict[str, float]:
        """Shares by source, for manifests."""
        shares = dict(zip(("uniform", "popularity", "model_top"), self.shares, strict=True))
        return shares | ({"model_top_n": self.model_top_n} if self.model_top else {})


@dataclass(frozen=True)
class VisitConfig:
    """How visits are cut and laid out; `mean_items` counts rated items."""

    gap_seconds: int = 1800
    mean_items: float = 6.0
    max_pages: int = 5
    items_per_page: int = 4
    rated_share: float = 0.5
    exposure: ExposureMixture = field(default_factory=ExposureMixture)

    def __post_init__(self) -> None:
        if self.mean_items < 1 or self.max_pages < 1 or self.items_per_page < 1:
            raise ValueError(
                f"mean_items {self.mean_items}, max_pages {self.max_pages} and items_per_page "
                f"{self.items_per_page} must each be at least 1"
            )
        if not 0 < self.rated_share <= 1:
            raise ValueError(f"rated_share is {self.rated_share}, expected 0 < share <= 1")


def stars(rating: float) -> int:
    """A logged rating as the answer it stands for, 1 to 5; halves are rounded up."""
    return min(max(int(rating + 0.5), RATINGS[0]), RATINGS[-1])


@dataclass(frozen=True, slots=True)
class Visit:
    """One reconstructed visit: pages of item ids, and what was rated on them, in time order."""

    user_id: str
    number: int
    pages: tuple[tuple[str, ...], ...]
    rated: tuple[Interaction, ...]

    @property
    def ratings(self) -> dict[str, int]:
        return {r.item_id: stars(r.rating) for r in self.rated}

    @property
    def satisfaction(self) -> int:
        """1 to 10; DEFAULT, not measured: twice the visit's mean rating, rounded half up."""
        mean = sum(r.rating for r in self.rated) / len(self.rated)
        return min(max(int(2 * mean + 0.5), 1), 10)


def reconstruct_visits(
    dataset: Dataset,
    profile: Log,
    targets: Log,
    config: VisitConfig,
    *,
    model: Recommender | None = None,
    users: Sequence[str] | None = None,
    seed: int = 0,
    max_visits: int | None = None,
) -> list[Visit]:
    """Visits made of `targets`, at most `max_visits` of each user, in user order.

    `model` (fitted on `profile`) answers for the `model_top` share and may be `None` only where
    that share is 0. Excluded from the filler are what the user rated before the visit, the
    visit's own rated items and what its pages show already; never what is rated later. A page
    is always full: where the catalogue has no filler left, the visit ends.
    """
    if config.exposure.model_top > 0 and model is None:
        raise ValueError("exposure.model_top > 0 needs a `model` fitted on the profile part")
    codes = {user_id: code for code, user_id in enumerate(dataset.user_ids)}
    users = dataset.user_ids if users is None else users
    chosen = [codes[user_id] for user_id in users]
    earlier, later = _rows(profile), _rows(targets)
    chosen = [code for code in chosen if later(code).start < later(code).stop]
    popularity = np.cumsum(np.bincount(profile.item, minlength=len(dataset.item_ids)))
    tops = _model_tops(dataset, profile, earlier, chosen, config, model)
    visits = []
    for code, top in zip(chosen, tops, strict=True):
        user_id = dataset.user_ids[code]
        rng = named_generator(seed, "visits", user_id)
        fill = _Filler(rng, config.exposure, len(dataset.item_ids), popularity, top)
        rows = later(code)
        visits += _user_visits(
            dataset.item_ids,
            user_id,
            set(profile.item[earlier(code)].tolist()),
            targets.item[rows].tolist(),
            targets.rating[rows].tolist(),
            targets.timestamp[rows].tolist(),
            fill,
            rng,
            config,
            max_visits,
        )
    return visits


def _user_visits(
    item_ids: Sequence[str],
    user_id: str,
    seen: set[int],
    items: list[int],
    ratings: list[float],
    times: list[int],
    fill: _Filler,
    rng: np.random.Generator,
    config: VisitConfig,
    max_visits: int | None,
) -> list[Visit]:
    """`seen` (codes rated so far) grows visit by visit; lists are one user's, in time order."""
    visits: list[Visit] = []
    start, n = 0, len(items)
    while start < n and (max_visits is None or len(visits) < max_visits):
        wanted = int(rng.geometric(1 / config.mean_items))
        per_page = rng.binomial(config.items_per_page, config.rated_share, config.max_pages)
        end = start + 1
        stop = min(n, start + wanted, start + int(np.maximum(per_page, 1).sum()))
        while end < stop and times[end] - times[end - 1] <= config.gap_seconds:
            end += 1
        # an item rated before is on no page again; of two ratings in one visit the last counts
        at = {item: i for i, item in enumerate(items[start:end], start) if item not in seen}
        start, own, taken = end, list(at), seen | set(at)
        pages, placed = [], 0
        for count in np.maximum(per_page, 1).tolist():
            page = own[placed : placed + count]
            page += fill.draw(config.items_per_page - len(page), taken) if page else []
            if len(page) < config.items_per_page:
                break  # all rated items are placed, or the catalogue is used up
            placed = min(placed + count, len(own))
            pages.append(tuple(item_ids[page[i]] for i in rng.permutation(len(page))))
        seen.update(own)
        if pages:
            rated = tuple(
                Interaction(item_ids[i], ratings[at[i]], times[at[i]]) for i in own[:placed]
            )
            visits.append(Visit(user_id, len(visits), tuple(pages), rated))
    return visits


class _Filler:
    """Draws filler items of one user from the mixture, each source without what is taken."""

    def __init__(
        self,
        rng: np.random.Generator,
        exposure: ExposureMixture,
        n_items: int,
        popularity: np.ndarray,
        top: np.ndarray,
    ) -> None:
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

    def draw(self, n: int, taken: set[int]) -> list[int]:
        """`n` distinct items not in `taken` (fewer where the catalogue has no more); adds them
        to `taken`."""
        drawn: list[int] = []
        for source in np.searchsorted(self.bounds, self.rng.random(n), side="right").tolist():
            item = self._one(self.sources[min(source, 2)], taken)
            if item is None:
                break
            taken.add(item)
            drawn.append(item)
        return drawn

    def _one(self, source: Iterator[int], taken: set[int]) -> int | None:
        for _ in range(_TRIES):
            item = next(source)
            if item not in taken:
                return item
        rest = [item for item in range(self.n_items) if item not in taken]
        return rest[int(self.rng.integers(len(rest)))] if rest else None


def _stream(draw: Callable[[int], np.ndarray]) -> Iterator[int]:
    while True:
        yield from draw(64).tolist()


def _rows(log: Log) -> Callable[[int], slice]:
    """The rows of a user code in a log sorted by user."""
    bounds = np.searchsorted(log.user, np.arange(log.n_users + 1))
    return lambda code: slice(int(bounds[code]), int(bounds[code + 1]))


def _model_tops(
    dataset: Dataset,
    profile: Log,
    earlier: Callable[[int], slice],
    chosen: list[int],
    config: VisitConfig,
    model: Recommender | None,
) -> list[np.ndarray]:
    """The item codes of the model's top for each chosen user; empty arrays without a model."""
    if config.exposure.model_top == 0 or model is None:
        return [np.empty(0, np.int64)] * len(chosen)
    code_of = {item_id: code for code, item_id in enumerate(dataset.item_ids)}
    tops: list[np.ndarray] = []
    for first in range(0, len(chosen), _REQUESTS_PER_CALL):
        requests = []
        for code in chosen[first : first + _REQUESTS_PER_CALL]:
            history = dataset.history(profile, dataset.user_ids[code])
            exclude = frozenset(row.item_id for row in history)
            k = min(config.exposure.model_top_n, len(code_of) - len(exclude))
            requests.append(
                RecommendationRequest(dataset.user_ids[code], history, k=k, exclude=exclude)
            )
        for slate in model.recommend(requests):
            tops.append(np.array([code_of[item_id] for item_id in slate.item_ids], np.int64))
    return tops
