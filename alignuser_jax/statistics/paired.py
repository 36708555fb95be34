"""Paired comparisons over users: symmetric bootstrap-t intervals, Holm's correction, verdicts.

Everything here takes plain arrays with one value per user and knows nothing of recommenders.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from alignuser_jax.randomness import named_generator


@dataclass(frozen=True)
class Difference:
    """Mean over users of (treatment - control), its 95 % interval and two-sided p-value.

    `n` counts the users for whom both sides are defined. `p` and the interval come from the
    same bootstrap-t distribution, so p < 0.05 exactly when the interval excludes 0.
    """

    mean: float
    low: float
    high: float
    p: float
    n: int


def bootstrap_generator(*name: object) -> np.random.Generator:
    """A NumPy generator named by its purpose (Philox keyed with `stable_key`)."""
    return named_generator("bootstrap", *name)


def resample_weights(n: int, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """[resamples, n] counts of how often each of n users is drawn, with replacement."""
    return rng.multinomial(n, np.full(n, 1.0 / n), size=resamples).astype(np.float64)


def paired_difference(
    treatment: np.ndarray,
    control: np.ndarray,
    *,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Difference:
    """Symmetric bootstrap-t over users of the mean paired difference.

    treatment, control: [users], NaN where a user has no value (dropped in pairs). Source:
    Efron & Tibshirani, An Introduction to the Bootstrap, ch. 12; symmetric variant of Hall
    (1988). Where so few users differ that more than 1 % of the resamples miss them all and
    have no spread, Student's t stands in. Raises ValueError when the arrays differ in length.
    """
    treatment, control = np.asarray(treatment, float), np.asarray(control, float)
    if treatment.shape != control.shape:
        raise ValueError(
            f"paired arms must hold the same users: got {treatment.shape} and {control.shape}"
        )
    difference = treatment - control
    difference = difference[np.isfinite(difference)]
    n = len(difference)
    if n < 2:
        return Difference(float(difference.mean()) if n else np.nan, np.nan, np.nan, 1.0, n)
    mean, error = difference.mean(), difference.std(ddof=1) / np.sqrt(n)
    if error <= 1e-12 * max(abs(mean), 1.0):  # all users differ by the same amount
        return Difference(mean, mean, mean, 1.0 if abs(mean) < 1e-12 else 0.0, n)
    weights = resample_weights(n, resamples, bootstrap_generator("paired", seed, n))
    means = weights @ difference / n
    variances = (weights @ difference**2 / n - means**2) * n / (n - 1)
    flat = variances <= 1e-9 * n * error**2
    if flat.mean() > 0.01:
        from scipy.stats import t

        half_width = t.ppf((1 + level) / 2, n - 1) * error
        p = 2 * t.sf(abs(mean) / error, n - 1)
        return Difference(mean, mean - half_width, mean + half_width, float(p), n)
    errors = np.sqrt(np.where(flat, 1e-24, variances) / n)
    statistic = np.abs(means - mean) / errors
    half_width = np.quantile(statistic, level) * error
    p = (1 + np.count_nonzero(statistic >= abs(mean) / error)) / (resamples + 1)
    return Difference(mean, mean - half_width, mean + half_width, float(p), n)


@dataclass(frozen=True)
class Interval:
    value: float
    low: float
    high: float


def ratio_interval(
    numerator: np.ndarray,
    denominator: np.ndarray,
    *,
    transform=lambda x: x,
    minus: tuple[np.ndarray, np.ndarray] | None = None,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap over users of f(sum num / sum den), or of a difference of two such.

    For an RMSE: numerator = squared errors summed per user, denominator = ratings per user,
    transform = np.sqrt; `minus` gives the other predictor's (numerator, denominator), so that
    the interval is paired: both sides see the same resampled users.
    """

    def statistic(weights: np.ndarray) -> np.ndarray:
        value = transform((weights @ numerator) / (weights @ denominator))
        if minus is not None:
            value = value - transform((weights @ minus[0]) / (weights @ minus[1]))
        return value

    n = len(numerator)
    rng = bootstrap_generator("ratio", seed, n)
    draws = statistic(resample_weights(n, resamples, rng))
    tail = (1 - level) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Interval(float(statistic(np.ones((1, n)))[0]), float(low), float(high))


def kendall_interval(
    predicted: np.ndarray, actual: np.ndarray, *, resamples: int = 2000, seed: int = 0
) -> Interval:
    """Kendall's tau-b between arm means, with a percentile interval over resampled users.

    predicted, actual: [arms, users], one simulated and one held-out value per user and arm;
    NaN where undefined (left out of that arm's mean).
    """
    from scipy.stats import kendalltau

    def means(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
        defined = np.isfinite(values)
        total = np.where(defined, values, 0.0) @ weights.T
        return total / np.maximum(defined @ weights.T, 1e-12)

    n = predicted.shape[1]
    weights = resample_weights(n, resamples, bootstrap_generator("kendall", seed, n))
    left, right = means(predicted, weights), means(actual, weights)
    draws = np.array(
        [kendalltau(left[:, b], right[:, b]).statistic for b in range(resamples)], float
    )
    point = kendalltau(np.nanmean(predicted, 1), np.nanmean(actual, 1)).statistic
    low, high = np.nanquantile(draws, [0.025, 0.975])
    return Interval(float(point), float(low), float(high))
