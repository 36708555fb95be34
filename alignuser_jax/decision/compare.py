"""Which recommender is better: METHOD.md section 12.7's metrics per user and arm, compared.

Input is the event table that a simulation leaves; a metric is one number per (arm, user).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from alignuser_jax.statistics.multiple import Verdict, holm, verdict
from alignuser_jax.statistics.paired import Difference, paired_difference

METRICS = ("likes per exposed", "likes per viewed", "mean rating", "view ratio")
"""Metrics that rating logs can speak to; a like is a rating > 3 (METHOD.md section 12.7)."""
NOT_VALIDATED = ("exit page", "satisfaction")
"""Rating logs hold no human browsing (EVIDENCE.md): shown apart, never given a verdict."""


@dataclass(frozen=True)
class ArmMetrics:
    """One value per arm, metric and user: `values[arm][metric]` is float [users], NaN where a
    user has no value (no item viewed)."""

    arms: tuple[str, ...]
    user_ids: tuple[str, ...]
    values: dict[str, dict[str, np.ndarray]]

    def mean(self, arm: str, metric: str) -> float:
        column = self.values[arm][metric]
        return float(np.nanmean(column)) if np.isfinite(column).any() else float("nan")


def arm_metrics(events: pa.Table) -> ArmMetrics:
    """Sum each user's events per arm over all of their sessions and form the ratios.

    Raises ValueError when an arm lacks users that another has: a paired comparison needs
    every user in every arm.
    """
    arm_names, arm = np.unique(
        events["arm"].to_numpy(zero_copy_only=False), return_inverse=True
    )
    users, user = np.unique(
        events["user_id"].to_numpy(zero_copy_only=False), return_inverse=True
    )
    kind = events["kind"].to_numpy(zero_copy_only=False)
    value = events["value"].to_numpy()
    shape, cell = (len(arm_names), len(users)), arm * len(users) + user

    def total(mask: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        picked = None if weights is None else weights[mask]
        return np.bincount(cell[mask], picked, shape[0] * shape[1]).reshape(shape)

    if (missing := total(np.ones(len(cell), bool)) == 0).any():
        names = [
            f"{arm_names[i]}: {int(row.sum())}" for i, row in enumerate(missing) if row.any()
        ]
        raise ValueError(
            "a paired comparison needs every user in every arm; users missing per arm: "
            + ", ".join(names)
            + "; finish or re-run the simulation"
        )
    with np.errstate(divide="ignore", invalid="ignore"):
        exposed = total(kind == "page")
        viewed = total((kind == "screen") & (value > 0))
        rated, likes = total(kind == "rate"), total((kind == "rate") & (value > 3))
        sessions = total(kind == "exit")
        interviews = total(kind == "interview")
        table = {
            "likes per exposed": likes / exposed,
            "likes per viewed": likes / rated,
            "mean rating": total(kind == "rate", value) / rated,
            "view ratio": viewed / exposed,
            "exit page": total(kind == "exit", value) / sessions,
            "satisfaction": total(kind == "interview", value) / interviews,
        }
    values = {
        str(name): {
            metric: np.where(np.isfinite(t[i]), t[i], np.nan) for metric, t in table.items()
        }
        for i, name in enumerate(arm_names)
    }
    return ArmMetrics(tuple(map(str, arm_names)), tuple(map(str, users)), values)


@dataclass(frozen=True)
class Comparison:
    """A treatment against the control on one metric."""

    treatment: str
    control: str
    metric: str
    difference: Difference
    adjusted_p: float
    verdict: Verdict


def compare(
    metrics: ArmMetrics,
    control: str,
    treatments: Sequence[str] | None = None,
    *,
    names: Sequence[str] = METRICS,
    resamples: int = 2000,
    seed: int = 0,
) -> list[Comparison]:
    """Every treatment against the control; Holm over the whole table (treatments x metrics)."""
    if control not in metrics.arms:
        raise ValueError(
            f"control arm {control!r} is not in the run; arms: {list(metrics.arms)}"
        )
    treatments = [a for a in metrics.arms if a != control] if treatments is None else treatments
    pairs = [(treatment, metric) for treatment in treatments for metric in names]
    differences = [
        paired_difference(
            metrics.values[t][m], metrics.values[control][m], resamples=resamples, seed=seed
        )
        for t, m in pairs
    ]
    adjusted = holm([d.p for d in differences])
    return [
        Comparison(t, control, m, d, float(p), verdict(d, p))
        for (t, m), d, p in zip(pairs, differences, adjusted, strict=True)
    ]


def across_exposures(verdicts: Sequence[Verdict]) -> str:
    """One verdict from the same comparison under several exposure assumptions
    (EVIDENCE.md: what fills the page decides who wins)."""
    if len(set(verdicts)) == 1:
        return verdicts[0]
    return "depends on the exposure assumption"
