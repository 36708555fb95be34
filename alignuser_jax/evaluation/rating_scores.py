"""Score predicted ratings beside baselines, as numbers and as tables.

The primary figure is the RMSE of the expected rating. Total variation alone is won by sampling
noise (docs/evidence.md), so it never stands by itself. Intervals resample users: ratings of one
user are not independent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from alignuser_jax.datasets import Log
from alignuser_jax.randomness import generator_of
from alignuser_jax.records import RATINGS
from alignuser_jax.statistics.paired import Interval, ratio_interval
from alignuser_jax.text import markdown_table

SUSPECTED_LEAK_BELOW = 0.80
"""An RMSE below this on MovieLens is a leak until shown otherwise (docs/evidence.md)."""


@dataclass(frozen=True)
class RatingScores:
    """One predictor's scores. Those of distributions are NaN for a predictor of numbers.

    Attributes:
        name: The predictor.
        rmse: RMSE of the expected rating.
        mae: Mean absolute error of the expected rating.
        rmse_argmax: RMSE of the likeliest rating.
        rmse_sample: RMSE of a drawn rating.
        nll: Mean negative log-likelihood of the true rating, in nats.
        total_variation: Distance between the mean distribution and the shares of the true
            ratings.
        gain_over: Baseline -> paired interval of (this RMSE - that RMSE); below 0 is better.
    """

    name: str
    rmse: Interval
    mae: float
    rmse_argmax: float
    rmse_sample: float
    nll: float
    total_variation: float
    gain_over: dict[str, Interval]


def score(
    truth: Log,
    points: Mapping[str, np.ndarray],
    distributions: Mapping[str, np.ndarray],
    *,
    against: tuple[str, ...] = ("user mean", "item mean"),
    seed: int = 0,
    resamples: int = 2000,
) -> list[RatingScores]:
    """Score predictors of the ratings of `truth`.

    Args:
        truth: The interactions with their true ratings, n of them.
        points: Predictor -> predicted ratings, float[n]; clipped to [1, 5].
        distributions: Predictor -> predicted distributions, float[n, 5].
        against: Predictors with whose RMSE the others are compared.
        seed: Names the resamples and the drawn ratings.
        resamples: Bootstrap resamples of the users.

    Raises:
        ValueError: A prediction's length differs from n, or a distribution does not sum to 1.
    """
    per_user, actual = _summed_per_user(truth), truth.rating.astype(np.float64)
    counts = per_user(np.ones(len(truth)))
    expected = {name: np.clip(p, 1, 5) for name, p in points.items()}
    expected |= {name: _expected(name, p, len(truth)) for name, p in distributions.items()}
    squared = {}
    for name, prediction in expected.items():
        if prediction.shape != actual.shape:
            raise ValueError(
                f"{name}: expected {len(actual)} predictions, one per rating, got an array of "
                f"shape {prediction.shape}"
            )
        squared[name] = per_user((prediction - actual) ** 2)

    def rmse_interval(name: str, minus: str | None = None) -> Interval:
        return ratio_interval(
            squared[name],
            counts,
            transform=np.sqrt,
            minus=None if minus is None else (squared[minus], counts),
            seed=seed,
            resamples=resamples,
        )

    rng = generator_of(seed)
    return [
        RatingScores(
            name,
            rmse_interval(name),
            float(np.abs(prediction - actual).mean()),
            *_distribution_scores(distributions.get(name), actual, rng),
            {b: rmse_interval(name, b) for b in against if b in squared and b != name},
        )
        for name, prediction in expected.items()
    ]


def _summed_per_user(truth: Log) -> Callable[[np.ndarray], np.ndarray]:
    """A function from one value per interaction to the sum per user."""
    _, user = np.unique(truth.user, return_inverse=True)
    n_users = user.max() + 1
    return lambda values: np.bincount(user, values, n_users)


def _expected(name: str, p: np.ndarray, n: int) -> np.ndarray:
    """The means of the distributions `p`, float[n, 5]."""
    if p.shape != (n, len(RATINGS)) or not np.allclose(p.sum(1), 1, atol=1e-4):
        raise ValueError(
            f"{name}: expected one distribution over {len(RATINGS)} ratings for each of "
            f"{n} interactions, got shape {p.shape} with row sums "
            f"{p.sum(-1).min():.4f} to {p.sum(-1).max():.4f}"
        )
    return p @ np.array(RATINGS, float)


def _distribution_scores(
    p: np.ndarray | None, actual: np.ndarray, rng: np.random.Generator
) -> tuple[float, float, float, float]:
    """(RMSE of the argmax, RMSE of a sample, NLL, total variation); NaN without `p`."""
    if p is None:
        return (float("nan"),) * 4
    stars = np.array(RATINGS, float)

    def rmse(prediction: np.ndarray) -> float:
        return float(np.sqrt(np.mean((prediction - actual) ** 2)))

    cumulative = np.cumsum(p, 1)
    drawn = (rng.random((len(p), 1)) * cumulative[:, -1:] > cumulative).sum(1)
    shares = np.array([(actual == star).mean() for star in stars])
    return (
        rmse(stars[p.argmax(1)]),
        rmse(stars[np.minimum(drawn, len(stars) - 1)]),
        float(_nll(p, actual).mean()),
        float(0.5 * np.abs(p.mean(0) - shares).sum()),
    )


def _nll(p: np.ndarray, actual: np.ndarray) -> np.ndarray:
    """float[n]: the negative log-likelihood of each true rating under `p`, float[n, 5]."""
    return -np.log(np.maximum(p[np.arange(len(p)), actual.astype(int) - 1], 1e-12))


@dataclass(frozen=True)
class SeedScores:
    """The scores of several policies that differ in their seed only.

    Attributes:
        name: The policies' common name.
        seeds: How many there are.
        rmse: RMSE; the squared error of a rating is its mean over the seeds.
        lowest: The lowest RMSE of a single seed.
        highest: The highest RMSE of a single seed.
        nll: Negative log-likelihood, a mean over the seeds too.
        gain: Paired interval of (this RMSE - that of the first name); `None` for the first.
        nll_gain: The same of the negative log-likelihood.
    """

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
    """Average policies over their seeds and compare each name with the first.

    The intervals resample users; they hold no uncertainty of training beyond the seeds that
    were averaged.

    Args:
        truth: The interactions with their true ratings, n of them.
        groups: Name -> one array of distributions, float[n, 5], per seed.
        seed: Names the resamples.
        resamples: Bootstrap resamples of the users.
    """
    per_user, actual = _summed_per_user(truth), truth.rating.astype(np.float64)
    stars, counts = np.array(RATINGS, float), per_user(np.ones(len(truth)))

    def interval(
        sums: np.ndarray, minus: np.ndarray | None = None, root: bool = False
    ) -> Interval:
        return ratio_interval(
            sums,
            counts,
            transform=np.sqrt if root else np.positive,
            minus=None if minus is None else (minus, counts),
            seed=seed,
            resamples=resamples,
        )

    scores: list[SeedScores] = []
    first: tuple[np.ndarray, np.ndarray] | None = None
    for name, arrays in groups.items():
        squared = np.stack([(p @ stars - actual) ** 2 for p in arrays])
        error = per_user(squared.mean(0))
        nll = per_user(np.stack([_nll(p, actual) for p in arrays]).mean(0))
        single = np.sqrt(squared.mean(1))
        scores.append(
            SeedScores(
                name,
                len(arrays),
                interval(error, root=True),
                float(single.min()),
                float(single.max()),
                interval(nll),
                None if first is None else interval(error, first[0], root=True),
                None if first is None else interval(nll, first[1]),
            )
        )
        first = first or (error, nll)
    return scores


def acceptance(scores: RatingScores) -> list[str]:
    """Return why a policy is not accepted, in sentences; empty if it is.

    It must be below user mean and item mean with intervals that exclude 0, and not so low that
    it must be a leak.
    """
    failures = [
        f"{scores.name} is not below {other}: difference {gain.text(sign='+')}"
        for other, gain in scores.gain_over.items()
        if not gain.high < 0
    ]
    if scores.rmse.value < SUSPECTED_LEAK_BELOW:
        failures.append(
            f"{scores.name}: RMSE {scores.rmse.value:.3f} is below {SUSPECTED_LEAK_BELOW}: a "
            "suspected leak; look for the target's rating in persona, history or page"
        )
    return failures


def table(scores: Sequence[RatingScores]) -> str:
    """Return a Markdown table with one row per predictor."""

    def number(value: float) -> str:
        return "" if np.isnan(value) else f"{value:.3f}"

    against = sorted({name for s in scores for name in s.gain_over})
    rows = [
        [
            s.name,
            s.rmse.text(),
            number(s.mae),
            number(s.rmse_argmax),
            number(s.rmse_sample),
            number(s.nll),
            number(s.total_variation),
            *(s.gain_over[a].text(sign="+") if a in s.gain_over else "" for a in against),
        ]
        for s in scores
    ]
    headers = ["predictor", "RMSE expected", "MAE", "RMSE argmax", "RMSE sample", "NLL", "TV"]
    return markdown_table(rows, [*headers, *(f"RMSE - {a}" for a in against)])


def seeds_table(scores: Sequence[SeedScores]) -> str:
    """Return a Markdown table with one row per group of seeds."""
    first = scores[0].name
    rows = [
        [
            s.name,
            str(s.seeds),
            s.rmse.text(),
            f"{s.lowest:.3f} to {s.highest:.3f}",
            s.gain.text(sign="+") if s.gain else "",
            s.nll.text(),
            s.nll_gain.text(sign="+") if s.nll_gain else "",
        ]
        for s in scores
    ]
    headers = ["policy", "seeds", "RMSE expected", "single seeds", f"RMSE - {first}", "NLL"]
    return markdown_table(rows, [*headers, f"NLL - {first}"])
