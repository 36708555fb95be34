"""Correct p-values for many comparisons, and turn a comparison into a verdict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from alignuser_jax.statistics.paired import Difference

Verdict = Literal["better", "worse", "cannot tell"]


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Return Holm's step-down adjusted p-values, float64[n], in the order of `p_values`.

    Rejecting where the adjusted p is below alpha holds the probability of any false rejection
    in the family at alpha, whatever the dependence between the tests. Source: Holm (1979),
    Scandinavian Journal of Statistics 6.

    Example:
        >>> holm([0.01, 0.04, 0.03, 0.005]).round(2).tolist()
        [0.03, 0.06, 0.06, 0.02]
    """
    p = np.asarray(p_values, float)
    order = np.argsort(p, kind="stable")
    adjusted = np.maximum.accumulate((len(p) - np.arange(len(p))) * p[order])
    result = np.empty_like(p)
    result[order] = np.minimum(adjusted, 1.0)
    return result


def verdict(difference: Difference, adjusted_p: float, alpha: float = 0.05) -> Verdict:
    """Return `better` or `worse` only if the family-wise test rejects, else `cannot tell`.

    Args:
        difference: The comparison; its sign decides between better and worse.
        adjusted_p: Its p-value, adjusted for the whole family of comparisons (`holm`).
        alpha: The family-wise error rate.
    """
    if not adjusted_p < alpha:
        return "cannot tell"
    return "better" if difference.mean > 0 else "worse"
