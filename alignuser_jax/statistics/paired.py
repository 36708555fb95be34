"""Compare users in pairs: bootstrap intervals of differences, ratios and rank correlations.

Everything here takes plain arrays with one value per user and knows nothing of recommenders.
Users are resampled, never single ratings or page views: what one user does is not independent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from alignuser_jax.randomness import named_generator


@dataclass(frozen=True)
class Interval:
    """A figure and the interval around it.

    Attributes:
        value: The figure itself.
        low: The lower end of the interval.
        high: The upper end.
    """

    value: float
    low: float
    high: float

    def text(self, digits: int = 3, sign: str = "") -> str:
        """Return `value [low, high]` as tables show it; `sign="+"` prints the plus too.

        Example:
            >>> Interval(0.5, 0.25, 0.75).text(2, sign="+")
            '+0.50 [+0.25, +0.75]'
        """
        number = f"{sign}.{digits}f"
        return f"{self.value:{number}} [{self.low:{number}}, {self.high:{number}}]"


@dataclass(frozen=True)
class Difference:
    """The mean over users of (treatment - control), and how sure it is.

    `p` and the interval come from the same bootstrap-t distribution, so p < 0.05 exactly when
    the 95 % interval excludes 0.

    Attributes:
        mean: The mean difference; NaN without users.
        low: The lower end of the interval.
        high: The upper end.
        p: The two-sided p-value.
        n: How many users have a value on both sides.
    """

    mean: float
    low: float
    high: float
    p: float
    n: int

    @property
    def interval(self) -> Interval:
        """The mean and its interval."""
        return Interval(self.mean, self.low, self.high)


def bootstrap_generator(*name: object) -> np.random.Generator:
    """Return the generator of a bootstrap, named by its purpose."""
    return named_generator("bootstrap", *name)


def resample_weights(n: int, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Return float64[resamples, n]: how often each of n users is drawn, with replacement."""
    return rng.multinomial(n, np.full(n, 1.0 / n), size=resamples).astype(np.float64)


def paired_difference(
    treatment: np.ndarray,
    control: np.ndarray,
    *,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Difference:
    """Return the mean paired difference with its symmetric bootstrap-t interval.

    Where so few users differ that more than 1 % of the resamples miss them all, and so have no
    spread to divide by, Student's t interval is returned instead.

    Sources: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 12; the
    symmetric variant is Hall's (1988, Journal of the Royal Statistical Society B 50).

    Args:
        treatment: float[users], NaN where a user has no value; such users are dropped.
        control: float[users], the same users in the same order.
        resamples: Bootstrap resamples of the users.
        level: Coverage of the interval.
        seed: Names the resamples.

    Raises:
        ValueError: The arrays differ in shape.

    Example:
        >>> control = np.array([3.0, 2.0, 4.0, 3.0])
        >>> paired_difference(control + 0.5, control)
        Difference(mean=0.5, low=0.5, high=0.5, p=0.0, n=4)
    """
    treatment, control = np.asarray(treatment, float), np.asarray(control, float)
    if treatment.shape != control.shape:
        raise ValueError(
            f"paired arms must hold the same users: got arrays of shape {treatment.shape} and "
            f"{control.shape}"
        )
    difference = treatment - control
    difference = difference[np.isfinite(difference)]
    n = len(difference)
    if n < 2:
        return Difference(float(difference.mean()) if n else np.nan, np.nan, np.nan, 1.0, n)
    mean, error = difference.mean(), difference.std(ddof=1) / np.sqrt(n)
    if error <= 1e-12 * max(abs(mean), 1.0):  # all users differ by the same amount
        mean = float(mean)
        return Difference(mean, mean, mean, 1.0 if abs(mean) < 1e-12 else 0.0, n)
    weights = resample_weights(n, resamples, bootstrap_generator("paired", seed, n))
    width, p = _bootstrap_t(difference, weights, level)
    half_width = width * error
    return Difference(mean, mean - half_width, mean + half_width, p, n)


def _bootstrap_t(
    difference: np.ndarray, weights: np.ndarray, level: float
) -> tuple[float, float]:
    """(half width in standard errors, p-value) of the symmetric bootstrap-t.

    `difference` is float[n], `weights` float[resamples, n]. Student's t where more than 1 % of
    the resamples have no spread.
    """
    n, resamples = len(difference), len(weights)
    mean, error = difference.mean(), difference.std(ddof=1) / np.sqrt(n)
    means = weights @ difference / n
    variances = (weights @ difference**2 / n - means**2) * n / (n - 1)
    flat = variances <= 1e-9 * n * error**2
    if flat.mean() > 0.01:
        from scipy.stats import t

        return t.ppf((1 + level) / 2, n - 1), float(2 * t.sf(abs(mean) / error, n - 1))
    errors = np.sqrt(np.where(flat, 1e-24, variances) / n)
    statistic = np.abs(means - mean) / errors
    p = (1 + np.count_nonzero(statistic >= abs(mean) / error)) / (resamples + 1)
    return np.quantile(statistic, level), float(p)


def ratio_interval(
    numerator: np.ndarray,
    denominator: np.ndarray,
    *,
    transform: Callable[[np.ndarray], np.ndarray] = np.positive,
    minus: tuple[np.ndarray, np.ndarray] | None = None,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Return the percentile bootstrap interval of a ratio of sums over users.

    The figure is `transform(sum(numerator) / sum(denominator))`, or with `minus` the difference
    of two such figures. For an RMSE the numerator is each user's sum of squared errors, the
    denominator the user's number of ratings, and the transform `np.sqrt`.

    Source: Efron and Tibshirani (1993), chapter 13.

    Args:
        numerator: float[users].
        denominator: float[users].
        transform: Applied to the ratio, elementwise; `np.positive` leaves it as it is.
        minus: The other side's (numerator, denominator). Both sides are computed on the same
            resampled users, so the interval is a paired one.
        resamples: Bootstrap resamples of the users.
        level: Coverage of the interval.
        seed: Names the resamples.

    Example:
        >>> squared_errors, ratings = np.array([2.0, 0.5, 3.0]), np.array([4.0, 1.0, 3.0])
        >>> rmse = ratio_interval(squared_errors, ratings, transform=np.sqrt)
        >>> round(rmse.value, 3), rmse.low <= rmse.value <= rmse.high
        (0.829, True)
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
    """Return Kendall's tau-b between the orders of arm means, with its 95 % interval.

    The interval is the percentile bootstrap over users (Efron and Tibshirani 1993,
    chapter 13); tau-b allows for ties (Kendall 1945, Biometrika 33).

    Args:
        predicted: float[arms, users], one simulated value per arm and user; a NaN is left out
            of its arm's mean.
        actual: float[arms, users], the held-out values.
        resamples: Bootstrap resamples of the users.
        seed: Names the resamples.
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
