"""Held-out truth: how much of a slate users really went on to rate, and to like.

What a simulated A/B test is held against (EVIDENCE: agreement is necessary, not sufficient,
since held-out ratings themselves favour what was popular).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from alignuser_jax.datasets import Dataset, Log, item_statistics
from alignuser_jax.randomness import stable_key
from alignuser_jax.recommenders.base import generator
from alignuser_jax.records import LIKED_FROM, RecommendationRequest, Recommender


@dataclass(frozen=True)
class HeldOutHits:
    """Per user, over one slate of k: `hits` and `liked` are shares of the k slots that the
    user rated (4 or more, for `liked`) in the held-out part; `slate_rating` is the mean over
    the slate of the items' mean ratings in the known part (nan where none has any)."""

    user_ids: tuple[str, ...]
    k: int
    hits: np.ndarray  # float64[users]
    liked: np.ndarray  # float64[users]
    slate_rating: np.ndarray  # float64[users]
    held_out: tuple[str, ...] = ("validation", "test")

    @property
    def like_given_hit(self) -> float:
        total = self.hits.sum()
        return float(self.liked.sum() / total) if total else float("nan")


def held_out_hits(
    recommender: Recommender,
    dataset: Dataset,
    users: Sequence[str],
    k: int = 20,
    *,
    known: Sequence[str] = ("train",),
    held_out: Sequence[str] = ("validation", "test"),
    batch: int = 64,
) -> HeldOutHits:
    """Ask for one slate of k per user, history and exclusions from the `known` splits.

    Means something only for a recommender that was fitted on the `known` splits.
    """
    users = tuple(users)
    code_of = {user: code for code, user in enumerate(dataset.user_ids)}
    unknown = [user for user in users if user not in code_of]
    if unknown:
        raise ValueError(
            f"{len(unknown)} of {len(users)} users are not in the dataset, e.g. {unknown[0]!r}"
        )
    known_log, truth_log = dataset.log.of_split(*known), dataset.log.of_split(*held_out)
    item_mean, _ = item_statistics(known_log)
    means = dict(zip(dataset.item_ids, item_mean.tolist(), strict=True))
    truth = _rated(dataset, truth_log, [code_of[user] for user in users])
    hits, liked, ratings = (
        np.zeros(len(users)),
        np.zeros(len(users)),
        np.full(len(users), np.nan),
    )
    for start in range(0, len(users), batch):
        requests = []
        for user in users[start : start + batch]:
            history = dataset.history(known_log, user)
            seen = frozenset(i.item_id for i in history)
            seed = stable_key("held-out", user)
            requests.append(
                RecommendationRequest(user, tuple(history), k=k, exclude=seen, seed=seed)
            )
        for n, slate in enumerate(recommender.recommend(requests), start):
            found = [truth[n][item] for item in slate.item_ids if item in truth[n]]
            hits[n] = len(found) / k
            liked[n] = sum(rating >= LIKED_FROM for rating in found) / k
            scores = [m for item in slate.item_ids if not np.isnan(m := means[item])]
            ratings[n] = np.mean(scores) if scores else np.nan
    return HeldOutHits(users, k, hits, liked, ratings, tuple(held_out))


def _rated(dataset: Dataset, log: Log, codes: Sequence[int]) -> list[dict[str, float]]:
    """For each user code, item id -> rating in `log` (sorted by user)."""
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
    held_out: Sequence[str] = ("validation", "test"),
) -> tuple[str, ...]:
    """At most `count` users that have held-out ratings, drawn by `seed`, in dataset order."""
    candidates = np.unique(dataset.log.of_split(*held_out).user)
    if count < len(candidates):
        chosen = generator("held-out users", seed).choice(candidates, count, replace=False)
        candidates = np.sort(chosen)
    return tuple(dataset.user_ids[code] for code in candidates)


def held_out_table(results: Mapping[str, HeldOutHits]) -> str:
    """A table of `{name: held_out_hits(…)}`, means over users."""
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
