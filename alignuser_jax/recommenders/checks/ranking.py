"""Recall@k and nDCG@k of rankings against held-out items, per user, so that they can be paired.

Recall@k is the share of a user's held-out items that stand in the first k. nDCG@k has gain 1
for each of them, discount 1 / log2(place + 1), and the best possible ranking as its norm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from alignuser_jax.datasets import Dataset, Log
from alignuser_jax.recommenders.checks.held_out import (
    HeldOutSplits,
    request_batches,
    user_codes,
)
from alignuser_jax.records import Recommender

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

RANKING_SPLITS = HeldOutSplits(skipped=("validation",), truth=("test",))
"""History from train, test judges, and the items of validation are excluded."""


@dataclass(frozen=True)
class Ranking:
    """How one slate of k items ranks each user's held-out items.

    Attributes:
        user_ids: users with a held-out item.
        k: items on a slate.
        recall: float64[users].
        ndcg: float64[users].
    """

    user_ids: tuple[str, ...]
    k: int
    recall: np.ndarray
    ndcg: np.ndarray


def interaction_matrix(log: Log) -> csr_matrix:
    """Return float32[n_users, n_items], 1 for each pair in `log`, whatever its rating.

    Indices are sorted, and a pair that occurs twice counts once.
    """
    from scipy.sparse import csr_matrix

    shape = (log.n_users, log.n_items)
    matrix = csr_matrix((np.ones(len(log), np.float32), (log.user, log.item)), shape=shape)
    matrix.sort_indices()
    matrix.data[:] = 1.0
    return matrix


def top_codes(scores: np.ndarray, seen: csr_matrix, k: int) -> np.ndarray:
    """Return each row's k best items that are not in its row of `seen`, best first.

    Args:
        scores: float[users, n_items], finite; it is overwritten.
        seen: float32[users, n_items], what is left out.
        k: length of a ranking.

    Returns:
        int64[users, k]; equal scores by code, -1 where fewer are left.
    """
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


def recall_ndcg(rankings: np.ndarray, truth: csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    """Return recall and nDCG of rankings, float64[users] each; nan for a user without truth.

    Args:
        rankings: int64[users, k] item codes, best first, -1 where there is none.
        truth: float32[users, n_items], the held-out items of the same users.
    """
    width = truth.shape[1]
    held_out = np.diff(truth.indptr)
    truth_pairs = np.repeat(np.arange(len(held_out)), held_out) * width + truth.indices
    pairs = np.arange(len(rankings))[:, None] * width + rankings
    hit = np.isin(pairs, truth_pairs) & (rankings >= 0)
    gain = 1 / np.log2(np.arange(2, rankings.shape[1] + 2))
    best = np.concatenate([[0.0], np.cumsum(gain)])[np.minimum(held_out, rankings.shape[1])]
    with np.errstate(invalid="ignore"):
        return hit.sum(1) / held_out, hit @ gain / best


def held_out_ranking(
    recommender: Recommender,
    dataset: Dataset,
    users: Sequence[str],
    k: int = 20,
    *,
    splits: HeldOutSplits = RANKING_SPLITS,
    batch: int = 64,
) -> Ranking:
    """Ask for one slate for each user and rank the held-out items by it.

    It is honest only for a recommender that saw the truth neither in fitting nor in stopping.

    Args:
        recommender: what to judge.
        dataset: where histories and truth come from.
        users: whom to ask for; those without a held-out item are left out.
        k: items on a slate.
        splits: which parts of the log are history, left out, and truth.
        batch: requests in one call.

    Raises:
        ValueError: if a user is not in the dataset.
    """
    truth = interaction_matrix(dataset.log.of_split(*splits.truth))
    held_out = np.diff(truth.indptr)
    code_of = {u: c for u, c in zip(users, user_codes(dataset, users), strict=True)}
    users = tuple(user for user in users if held_out[code_of[user]])
    item_of = {item: code for code, item in enumerate(dataset.item_ids)}
    rankings = np.full((len(users), k), -1, np.int64)
    for start, requests in request_batches(dataset, users, k, splits, batch):
        for row, slate in enumerate(recommender.recommend(requests), start):
            codes = [item_of.get(item, -1) for item in slate.item_ids]
            rankings[row, : len(codes)] = codes
    recall, ndcg = recall_ndcg(rankings, truth[[code_of[user] for user in users]])
    return Ranking(users, k, recall, ndcg)


def ranking_table(results: Mapping[str, Ranking]) -> str:
    """Return a table of means over users, a line for each named result."""
    first = next(iter(results.values()))
    width = max(len("recommender"), *map(len, results))
    lines = [f"{'recommender':<{width}}  recall@{first.k:<4} ndcg@{first.k}"]
    for name, r in results.items():
        lines.append(f"{name:<{width}}  {r.recall.mean():<11.4f} {r.ndcg.mean():.4f}")
    return "\n".join([*lines, f"({len(first.user_ids)} users, held-out test)"])
