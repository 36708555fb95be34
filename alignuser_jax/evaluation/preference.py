"""1:m preference: does the agent pick what its human really interacted with?

METHOD.md section 12.1: positives from validation + test, negatives from never-observed items.
Uniform negatives mostly test popularity, so popularity-matched ones stand beside them
(EVIDENCE.md "Held-out truth").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from alignuser_jax.datasets import Log
from alignuser_jax.randomness import named_generator
from alignuser_jax.statistics.paired import Interval, ratio_interval

Negatives = Literal["uniform", "popularity"]


@dataclass(frozen=True)
class PreferenceCase:
    """One user's shuffled list: item codes [n] and whether the user interacted [n]."""

    user: int
    items: np.ndarray
    interacted: np.ndarray


def preference_cases(
    log: Log,
    users: Sequence[int],
    *,
    items: int = 20,
    m: int = 1,
    negatives: Negatives = "uniform",
    page: int = 4,
    seed: int = 0,
) -> list[PreferenceCase]:
    """Lists of at most `items` items, one interacted to `m` not, per user (codes); a list
    fills whole pages of `page` items, so that it can be shown as a site shows it.

    Popularity-matched negatives are the never-observed items whose train count is nearest to
    each positive's, each taken once. Users without held-out interactions are left out.
    """
    held_out, train = log.of_split("validation", "test"), log.of_split("train")
    counts = np.bincount(train.item, minlength=log.n_items)
    cases = []
    for user in users:
        rng = named_generator("preference", seed, user)
        positives = np.unique(held_out.item[held_out.user == user])
        observed = np.unique(log.item[log.user == user])
        never = np.setdiff1d(np.arange(log.n_items), observed)
        n = min(len(positives), items // (m + 1), len(never) // m)
        n -= next(drop for drop in range(n + 1) if (n - drop) * (m + 1) % page == 0)
        if n == 0:
            continue
        positives = rng.choice(positives, n, replace=False)
        if negatives == "uniform":
            chosen = rng.choice(never, n * m, replace=False)
        else:
            never, chosen_list = rng.permutation(never), []
            for count in np.repeat(counts[positives], m):
                nearest = int(np.argmin(np.abs(counts[never] - count)))
                chosen_list.append(never[nearest])
                never = np.delete(never, nearest)
            chosen = np.array(chosen_list)
        order = rng.permutation(n * (m + 1))
        items_shown = np.concatenate([positives, chosen])[order]
        cases.append(
            PreferenceCase(int(user), items_shown, (np.arange(n * (m + 1)) < n)[order])
        )
    return cases


@dataclass(frozen=True)
class PreferenceScores:
    """`best_accuracy` uses the one threshold that is best over all users (the same freedom for
    every predictor); accuracy, precision, recall and F1 are at 0.5, averaged per user, and are
    NaN for predictors whose scores are not probabilities."""

    name: str
    best_accuracy: Interval
    accuracy: float
    precision: float
    recall: float
    f1: float
    pooled_f1: float


def score_preferences(
    name: str,
    cases: Sequence[PreferenceCase],
    scores: Sequence[np.ndarray],
    *,
    probabilities: bool = True,
    seed: int = 0,
) -> PreferenceScores:
    """scores: one [n] array per case, higher = more likely interacted."""
    truth = np.concatenate([case.interacted for case in cases])
    flat = np.concatenate(scores)
    user = np.repeat(np.arange(len(cases)), [len(case.items) for case in cases])
    order = np.argsort(-flat, kind="stable")
    last = np.append(np.diff(flat[order]) != 0, True)  # thresholds lie between distinct scores
    hits = np.cumsum(truth[order])
    correct = hits + (~truth).sum() - (np.arange(1, len(flat) + 1) - hits)
    cut = int(np.argmax(np.where(last, correct, -1)))
    threshold = flat[order[cut]]
    right = np.bincount(user, (flat >= threshold) == truth, len(cases))
    best = ratio_interval(
        right, np.bincount(user, minlength=len(cases)).astype(float), seed=seed
    )
    if not probabilities:
        return PreferenceScores(name, best, *[float("nan")] * 5)
    picked = flat >= 0.5
    n = len(cases)
    tp, fp = np.bincount(user, picked & truth, n), np.bincount(user, picked & ~truth, n)
    fn = np.bincount(user, ~picked & truth, n)
    size = np.bincount(user, minlength=n)
    precision = tp / np.maximum(tp + fp, 1)
    recall = tp / np.maximum(tp + fn, 1)
    f1 = 2 * tp / np.maximum(2 * tp + fp + fn, 1)
    pooled = 2 * tp.sum() / max(2 * tp.sum() + fp.sum() + fn.sum(), 1)
    return PreferenceScores(
        name,
        best,
        float(((size - fp - fn) / size).mean()),
        float(precision.mean()),
        float(recall.mean()),
        float(f1.mean()),
        float(pooled),
    )
