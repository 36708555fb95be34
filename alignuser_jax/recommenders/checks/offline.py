"""Held-out hits: how much of a slate users really went on to rate, and to like.

A simulated A/B test is held against this. Agreement is necessary, not sufficient, since
held-out ratings themselves favour what was popular (docs/evidence.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from alignuser_jax.datasets import Dataset, Log, item_statistics
from alignuser_jax.randomness import named_generator
from alignuser_jax.recommenders.checks.held_out import (
    HeldOutSplits,
    request_batches,
    user_codes,
)
from alignuser_jax.records import LIKED_FROM, Recommender, Slate

HIT_SPLITS = HeldOutSplits()
"""History from train; validation and test judge."""


@dataclass(frozen=True)
class HeldOutHits:
    """What one slate of k items for each user hits.

    Attributes:
        user_ids: the users.
        k: items on a slate.
        hits: float64[users], share of the k slots whose item the user rated in the held-out
            part.
        liked: float64[users], share of the k slots whose item the user rated 4 or more there.
        slate_rating: float64[users], mean over the slate of the items' mean ratings in the
            history part; nan when none of them has any.
        held_out: the splits that judge.
    """

    user_ids: tuple[str, ...]
    k: int
    hits: np.ndarray
    liked: np.ndarray
    slate_rating: np.ndarray
    held_out: tuple[str, ...] = HIT_SPLITS.truth

    @property
    def like_given_hit(self) -> float:
        """Share of all hits that were liked; nan without a hit."""
        total = self.hits.sum()
        return float(self.liked.sum() / total) if total else float("nan")


def held_out_hits(
    recommender: Recommender,
    dataset: Dataset,
    users: Sequence[str],
    k: int = 20,
    *,
    splits: HeldOutSplits = HIT_SPLITS,
    batch: int = 64,
) -> HeldOutHits:
    """Ask for one slate for each user and count what the user rated later.

    It means something only for a recommender that was fitted on the history splits alone.

    Args:
        recommender: what to judge.
        dataset: where histories and truth come from.
        users: whom to ask for.
        k: items on a slate.
        splits: which parts of the log are history and truth.
        batch: requests in one call.

    Raises:
        ValueError: if a user is not in the dataset.
    """
    users = tuple(users)
    codes = user_codes(dataset, users)
    item_mean, _ = item_statistics(dataset.log.of_split(*splits.history))
    mean_of = dict(zip(dataset.item_ids, item_mean.tolist(), strict=True))
    truth = _ratings_of_users(dataset, dataset.log.of_split(*splits.truth), codes)
    rows = []
    for start, requests in request_batches(dataset, users, k, splits, batch):
        for n, slate in enumerate(recommender.recommend(requests), start):
            rows.append(_slate_figures(slate, truth[n], mean_of, k))
    hits, liked, slate_rating = np.array(rows, np.float64).reshape(len(users), 3).T
    return HeldOutHits(users, k, hits, liked, slate_rating, tuple(splits.truth))


def _slate_figures(
    slate: Slate, truth: Mapping[str, float], mean_of: Mapping[str, float], k: int
) -> tuple[float, float, float]:
    """Return the hits, likes and mean rating of one slate, as `HeldOutHits` defines them."""
    ratings = [truth[item] for item in slate.item_ids if item in truth]
    likes = sum(rating >= LIKED_FROM for rating in ratings)
    means = [m for item in slate.item_ids if not np.isnan(m := mean_of[item])]
    return len(ratings) / k, likes / k, float(np.mean(means)) if means else float("nan")


def _ratings_of_users(
    dataset: Dataset, log: Log, codes: Sequence[int]
) -> list[dict[str, float]]:
    """Return, for each user code, item id to rating in `log`, which is sorted by user."""
    starts = np.searchsorted(log.user, codes, "left")
    ends = np.searchsorted(log.user, codes, "right")
    return [
        {
            dataset.item_ids[item]: float(rating)
            for item, rating in zip(log.item[a:b], log.rating[a:b], strict=True)
        }
        for a, b in zip(starts, ends, strict=True)
    ]


def draw_users(
    dataset: Dataset,
    count: int,
    seed: int = 0,
    held_out: Sequence[str] = HIT_SPLITS.truth,
) -> tuple[str, ...]:
    """Draw at most `count` users that have held-out ratings, in dataset order."""
    candidates = np.unique(dataset.log.of_split(*held_out).user)
    if count < len(candidates):
        draw = named_generator("held-out users", seed)
        candidates = np.sort(draw.choice(candidates, count, replace=False))
    return tuple(dataset.user_ids[code] for code in candidates)


def held_out_table(results: Mapping[str, HeldOutHits]) -> str:
    """Return a table of means over users, a line for each named result."""
    first = next(iter(results.values()))
    hit = f"hit@{first.k}"
    width = max(len("recommender"), *map(len, results))
    lines = [
        f"{'recommender':<{width}}  {hit:>7}  {'liked':>7}  like given hit  slate's mean rating"
    ]
    for name, r in results.items():
        mean = np.nanmean(r.slate_rating) if np.isfinite(r.slate_rating).any() else np.nan
        lines.append(
            f"{name:<{width}}  {r.hits.mean():7.4f}  {r.liked.mean():7.4f}  "
            f"{r.like_given_hit:14.3f}  {mean:19.2f}"
        )
    parts = " and ".join(first.held_out)
    return "\n".join([*lines, f"({len(first.user_ids)} users, held-out {parts})"])
