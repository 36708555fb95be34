"""Recall@k and nDCG@k of rankings against held-out items, per user, so that they can be paired.

Recall@k is the share of a user's held-out items that stand in the first k; nDCG@k has gain 1
for each, discount 1 / log2(place + 1), and the best possible ranking as its norm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from alignuser_jax.datasets import Dataset, Log
from alignuser_jax.randomness import stable_key
from alignuser_jax.records import RecommendationRequest, Recommender

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix


@dataclass(frozen=True)
class Ranking:
    """`recall` and `ndcg` of one slate of k for each of `user_ids`."""

    user_ids: tuple[str, ...]
    k: int
    recall: np.ndarray  # float64[users]
    ndcg: np.ndarray  # float64[users]


def pairs(log: Log) -> csr_matrix:
    """float32[n_users, n_items], 1 where the user has the item in `log`, whatever the rating;
    sorted, each pair once."""
    from scipy.sparse import csr_matrix

    shape = (log.n_users, log.n_items)
    made = csr_matrix((np.ones(len(log), np.float32), (log.user, log.item)), shape=shape)
    made.sort_indices()
    made.data[:] = 1.0  # a pair seen twice counts once
    return made


def top_codes(scores: np.ndarray, seen: csr_matrix, k: int) -> np.ndarray:
    """int64[users, k]: each row's k best items that are not in its row of `seen`, best first,
    ties by code; -1 where fewer are left. `scores` is finite and is overwritten."""
    rows = np.repeat(np.arange(len(scores)), np.diff(seen.indptr))
    scores[rows, seen.indices] = -np.inf
    k = min(k, scores.shape[1])
    cut = np.partition(scores, -k, axis=1)[:, -k]
    top = np.full((len(scores), k), -1, np.int64)
    for row, (values, least) in enumerate(zip(scores, cut, strict=True)):
        best = np.flatnonzero((values >= least) & (values > -np.inf))
        best = best[np.argsort(-values[best], kind="stable")][:k]
        top[row, : len(best)] = best
    return top


def recall_ndcg(shown: np.ndarray, truth: csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    """float64[users] each, of the rankings `shown` (int64[users, k], -1 for none), row by row
    against `truth`. A user without held-out items has nan."""
    width = truth.shape[1]
    wanted = np.diff(truth.indptr)
    held = np.repeat(np.arange(len(wanted)), wanted) * width + truth.indices
    asked = np.arange(len(shown))[:, None] * width + shown
    hit = np.isin(asked, held) & (shown >= 0)
    gain = 1 / np.log2(np.arange(2, shown.shape[1] + 2))
    best = np.concatenate([[0.0], np.cumsum(gain)])[np.minimum(wanted, shown.shape[1])]
    with np.errstate(invalid="ignore"):
        return hit.sum(1) / wanted, hit @ gain / best


def held_out_ranking(
    recommender: Recommender,
    dataset: Dataset,
    users: Sequence[str],
    k: int = 20,
    *,
    known: Sequence[str] = ("train",),
    skipped: Sequence[str] = ("validation",),
    held_out: Sequence[str] = ("test",),
    batch: int = 64,
) -> Ranking:
    """Ask for one slate of k per user: histories from the `known` splits, their items and those
    of the `skipped` splits excluded. Users without a held-out item are left out.

    Honest only for a recommender that saw neither `held_out` in fitting nor in stopping.
    """
    code_of = {user: code for code, user in enumerate(dataset.user_ids)}
    item_of = {item: code for code, item in enumerate(dataset.item_ids)}
    unknown = [user for user in users if user not in code_of]
    if unknown:
        raise ValueError(
            f"{len(unknown)} of {len(users)} users are not in the dataset, e.g. {unknown[0]!r}"
        )
    known_log = dataset.log.of_split(*known)
    truth = pairs(dataset.log.of_split(*held_out))
    apart = dataset.log.of_split(*known, *skipped)
    users = tuple(u for u in users if truth.indptr[code_of[u] + 1] > truth.indptr[code_of[u]])
    shown = np.full((len(users), k), -1, np.int64)
    for start in range(0, len(users), batch):
        requests = [
            RecommendationRequest(
                user,
                dataset.history(known_log, user),
                k=k,
                exclude=frozenset(i.item_id for i in dataset.history(apart, user)),
                seed=stable_key("held-out", user),
            )
            for user in users[start : start + batch]
        ]
        for row, slate in enumerate(recommender.recommend(requests), start):
            shown[row, : len(slate.item_ids)] = [item_of.get(i, -1) for i in slate.item_ids]
    recall, ndcg = recall_ndcg(shown, truth[[code_of[user] for user in users]])
    return Ranking(users, k, recall, ndcg)


def ranking_table(results: Mapping[str, Ranking]) -> str:
    """A table of `{name: held_out_ranking(…)}`, means over users."""
    first = next(iter(results.values()))
    width = max(len("recommender"), *map(len, results))
    lines = [f"{'recommender':<{width}}  recall@{first.k:<4} ndcg@{first.k}"]
    for name, r in results.items():
        lines.append(f"{name:<{width}}  {r.recall.mean():<11.4f} {r.ndcg.mean():.4f}")
    return "\n".join([*lines, f"({len(first.user_ids)} users, held-out test)"])
