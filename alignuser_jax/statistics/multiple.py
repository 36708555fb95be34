"""Correct for many comparisons, and name the verdict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from alignuser_jax.statistics.paired import Difference

Verdict = Literal["better", "worse", "cannot tell"]


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Holm's step-down adjusted p-values, in the given order (Holm 1979)."""
    p = np.asarray(p_values, float)
    order = np.argsort(p, kind="stable")
    adjusted = np.maximum.accumulate((len(p) - np.arange(len(p))) * p[order])
    result = np.empty_like(p)
    result[order] = np.minimum(adjusted, 1.0)
    return result


def verdict(difference: Difference, adjusted_p: float, alpha: float = 0.05) -> Verdict:
    """`better` or `worse` only where the family-wise test rejects; else `cannot tell`."""
    if not adjusted_p < alpha:
        return "cannot tell"
    return "better" if difference.mean > 0 else "worse"
