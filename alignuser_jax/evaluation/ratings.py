"""Rating prediction on held-out interactions (METHOD.md section 12.2), with paired intervals.

The agent's prediction is a distribution over 1 to 5; the primary figure is the RMSE of its
mean. Total variation alone is won by sampling noise (EVIDENCE.md "Ratings"), so it never
stands by itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from alignuser_jax.datasets import Log
from alignuser_jax.randomness import generator_of
from alignuser_jax.records import RATINGS
from alignuser_jax.statistics.paired import Interval, ratio_interval

SUSPECTED_LEAK_BELOW = 0.80
"""An RMSE below this on MovieLens is a leak until shown otherwise (EVIDENCE.md)."""


def held_out_ratings(log: Log, users: np.ndarray, *, cap: int = 20) -> Log:
    """The first `cap` test interactions, in time order, of each of `users` (codes)."""
    test = log.of_split("test")
    test = test.where(np.isin(test.user, users))
    start = np.searchsorted(test.user, test.user, side="left")  # sorted by user, then time
    return test.where(np.arange(len(test)) - start < cap)


@dataclass(frozen=True)
class RatingScores:
    """One predictor's figures; `gain_over` maps a baseline's name to the paired interval of
    (this RMSE - that RMSE): below 0 is better. Distribution figures are NaN for predictors
    that give a number only."""

    name: str
    rmse: Interval
    mae: float
    rmse_argmax: float
    rmse_sample: float
    nll: float
    total_variation: float
    gain_over: dict[str, Interval]


def _per_user(values: np.ndarray, user_index: np.ndarray, n: int) -> np.ndarray:
    return np.bincount(user_index, values, n)


def score_ratings(
    truth: Log,
    points: Mapping[str, np.ndarray],
    distributions: Mapping[str, np.ndarray],
    *,
    against: tuple[str, ...] = ("user mean", "item mean"),
    seed: int = 0,
    resamples: int = 2000,
) -> list[RatingScores]:
    """Score predictors on `truth`: `points` name -> [n], `distributions` name -> [n, 5].

    Intervals resample users (ratings of one user are not independent). Raises ValueError when
    a prediction's length differs or a distribution does not sum to 1.
    """
    _, user = np.unique(truth.user, return_inverse=True)
    n_users, actual = user.max() + 1, truth.rating.astype(np.float64)
    stars = np.array(RATINGS, float)
    counts = _per_user(np.ones(len(truth)), user, n_users)
    expected = {name: np.clip(p, 1, 5) for name, p in points.items()}
    for name, p in distributions.items():
        if p.shape != (len(truth), len(RATINGS)) or not np.allclose(p.sum(1), 1, atol=1e-4):
            raise ValueError(
                f"{name}: expected one distribution over {len(RATINGS)} ratings for each of "
                f"{len(truth)} interactions, got shape {p.shape} with row sums "
                f"{p.sum(-1).min():.4f} to {p.sum(-1).max():.4f}"
            )
        expected[name] = p @ stars
    squared = {}
    for name, prediction in expected.items():
        if prediction.shape != actual.shape:
            raise ValueError(
                f"{name}: {prediction.shape} predictions for {actual.shape} ratings"
            )
        squared[name] = _per_user((prediction - actual) ** 2, user, n_users)

    def rmse(prediction: np.ndarray) -> float:
        return float(np.sqrt(np.mean((prediction - actual) ** 2)))

    scores = []
    truth_shares = np.array([(actual == star).mean() for star in stars])
    rng = generator_of(seed)
    for name, prediction in expected.items():
        options = {"transform": np.sqrt, "seed": seed, "resamples": resamples}
        gain = {
            other: ratio_interval(
                squared[name], counts, minus=(squared[other], counts), **options
            )
            for other in against
            if other in squared and other != name
        }
        argmax = sample = nll = variation = float("nan")
        if (p := distributions.get(name)) is not None:
            cumulative = np.cumsum(p, 1)
            drawn = (rng.random((len(p), 1)) * cumulative[:, -1:] > cumulative).sum(1)
            argmax, sample = rmse(stars[p.argmax(1)]), rmse(stars[np.minimum(drawn, 4)])
            taken = p[np.arange(len(p)), actual.astype(int) - 1]
            nll = float(-np.log(np.maximum(taken, 1e-12)).mean())
            variation = float(0.5 * np.abs(p.mean(0) - truth_shares).sum())
        scores.append(
            RatingScores(
                name,
                ratio_interval(squared[name], counts, **options),
                float(np.abs(prediction - actual).mean()),
                argmax,
                sample,
                nll,
                variation,
                gain,
            )
        )
    return scores


@dataclass(frozen=True)
class SeedScores:
    """Several policies that differ in their seed only. The error of a rating is its mean over
    the seeds; `lowest` and `highest` are the RMSEs of single seeds; `gain` and `nll_gain` are
    paired intervals of the difference to the first group (`None` for itself)."""

    name: str
    seeds: int
    rmse: Interval
    lowest: float
    highest: float
    nll: Interval
    gain: Interval | None
    nll_gain: Interval | None


def score_over_seeds(
    truth: Log,
    groups: Mapping[str, Sequence[np.ndarray]],
    *,
    seed: int = 0,
    resamples: int = 2000,
) -> list[SeedScores]:
    """`groups`: name -> one distribution array [n, 5] per seed. Intervals resample users; they
    hold no uncertainty of training beyond the seeds that were averaged."""
    _, user = np.unique(truth.user, return_inverse=True)
    n_users, actual = user.max() + 1, truth.rating.astype(np.float64)
    stars, counts = np.array(RATINGS, float), _per_user(np.ones(len(truth)), user, n_users)
    options = {"seed": seed, "resamples": resamples}
    scores: list[SeedScores] = []
    first: tuple[np.ndarray, np.ndarray] | None = None
    for name, distributions in groups.items():
        squared = np.stack([(p @ stars - actual) ** 2 for p in distributions])
        taken = np.stack([p[np.arange(len(p)), actual.astype(int) - 1] for p in distributions])
        error = _per_user(squared.mean(0), user, n_users)
        nll = _per_user(-np.log(np.maximum(taken, 1e-12)).mean(0), user, n_users)
        single = np.sqrt(squared.mean(1))
        gain = nll_gain = None
        if first is None:
            first = error, nll
        else:
            gain = ratio_interval(
                error, counts, transform=np.sqrt, minus=(first[0], counts), **options
            )
            nll_gain = ratio_interval(nll, counts, minus=(first[1], counts), **options)
        scores.append(
            SeedScores(
                name,
                len(distributions),
                ratio_interval(error, counts, transform=np.sqrt, **options),
                float(single.min()),
                float(single.max()),
                ratio_interval(nll, counts, **options),
                gain,
                nll_gain,
            )
        )
    return scores


def acceptance(score: RatingScores) -> list[str]:
    """What fails, in words (empty: accepted): below user mean and item mean with intervals
    that exclude 0, and not so low that it must be a leak."""
    failures = [
        f"{score.name} is not below {other}: difference {gain.value:+.3f} "
        f"[{gain.low:+.3f}, {gain.high:+.3f}]"
        for other, gain in score.gain_over.items()
        if not gain.high < 0
    ]
    if score.rmse.value < SUSPECTED_LEAK_BELOW:
        failures.append(
            f"{score.name}: RMSE {score.rmse.value:.3f} is below {SUSPECTED_LEAK_BELOW}: a "
            "suspected leak; look for the target's rating in persona, history or page"
        )
    return failures
