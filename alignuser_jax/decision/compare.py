"""Compare recommenders: metrics per arm and user from events, differences and verdicts.

Input is the event table that a simulation writes. A metric is one number per (arm, user), by
the definitions of docs/method.md section 12.7.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from alignuser_jax.statistics.multiple import Verdict, holm, verdict
from alignuser_jax.statistics.paired import Difference, paired_difference
from alignuser_jax.text import markdown_table

VERDICT_METRICS = ("likes per exposed", "likes per viewed", "mean rating", "view ratio")
"""The metrics that get a verdict; a like is a rating > 3 (docs/method.md section 12.7)."""
UNVALIDATED_METRICS = ("exit page", "satisfaction")
"""Rating logs hold no human browsing (docs/evidence.md): printed apart, without a verdict."""
VERDICTS_BY_HOLM = (
    "Intervals are per metric; a verdict is Holm's over the whole table, so an interval may "
    'exclude 0 where the verdict is "cannot tell".'
)
"""The note under a table of comparisons."""


@dataclass(frozen=True)
class ArmMetrics:
    """The metrics of every user in every arm.

    Attributes:
        arms: Names of the arms, sorted.
        user_ids: The users, sorted; the same in every arm.
        values: `values[arm][metric]` is float64[users], NaN where a user has no value, such as
            a mean rating without an item viewed.
    """

    arms: tuple[str, ...]
    user_ids: tuple[str, ...]
    values: dict[str, dict[str, np.ndarray]]

    def mean(self, arm: str, metric: str) -> float:
        """Return the mean over the users who have a value; NaN if none has."""
        column = self.values[arm][metric]
        return float(np.nanmean(column)) if np.isfinite(column).any() else float("nan")


def arm_metrics(events: pa.Table) -> ArmMetrics:
    """Sum each user's events per arm over all of the user's sessions, and form the ratios.

    Raises:
        ValueError: An arm lacks a user whom another arm has: a paired comparison needs every
            user in every arm.
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


def arms_table(metrics: ArmMetrics) -> str:
    """Return the means per arm of the metrics that get a verdict, as a Markdown table."""
    rows = [
        [arm, *(f"{metrics.mean(arm, m):.3f}" for m in VERDICT_METRICS)] for arm in metrics.arms
    ]
    return markdown_table(rows, ["arm", *VERDICT_METRICS])


def not_validated_table(metrics: ArmMetrics) -> str:
    """Return the means per arm of exit page and satisfaction, labelled as not validated.

    A simulation without interviews has no satisfaction, which then reads "not asked".
    """

    def number(mean: float) -> str:
        return f"{mean:.2f}" if np.isfinite(mean) else "not asked"

    rows = [
        [arm, *(number(metrics.mean(arm, m)) for m in UNVALIDATED_METRICS)]
        for arm in metrics.arms
    ]
    return markdown_table(rows, ["arm", *(f"{m} (not validated)" for m in UNVALIDATED_METRICS)])


@dataclass(frozen=True)
class Comparison:
    """A treatment against the control on one metric.

    Attributes:
        treatment: The arm under test.
        control: The arm it is compared with.
        metric: The metric's name.
        difference: Treatment minus control, paired over users.
        adjusted_p: The p-value, adjusted by Holm over all comparisons of the table.
        verdict: "better", "worse" or "cannot tell".
    """

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
    names: Sequence[str] = VERDICT_METRICS,
    resamples: int = 2000,
    seed: int = 0,
) -> list[Comparison]:
    """Compare every treatment with the control; Holm corrects over the whole table.

    Args:
        metrics: The metrics of every arm.
        control: The arm that the others are compared with.
        treatments: The other arms (default: all).
        names: The metrics to compare on.
        resamples: Bootstrap resamples of the users.
        seed: Names the resamples.

    Returns:
        One comparison per treatment and metric, treatment by treatment.

    Example:
        >>> events = pq.read_table("runs/demo/simulation/events.parquet")
        >>> comparisons = compare(arm_metrics(events), control="random")
        >>> print(comparison_table(comparisons))
    """
    if control not in metrics.arms:
        raise ValueError(
            f"control arm {control!r} is not in the run; its arms: {list(metrics.arms)}"
        )
    treatments = [a for a in metrics.arms if a != control] if treatments is None else treatments
    if unknown := sorted(set(treatments) - set(metrics.arms)):
        raise ValueError(
            f"treatments {unknown} are not in the run; its arms: {list(metrics.arms)}"
        )
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
    """Merge the verdicts of one comparison under several exposure assumptions.

    What fills the page can decide who wins (docs/evidence.md), so verdicts that differ are no
    verdict.
    """
    if len(set(verdicts)) == 1:
        return verdicts[0]
    return "depends on the exposure assumption"


def comparison_table(
    comparisons: Sequence[Comparison],
    true_lift: Mapping[tuple[str, str], float] | None = None,
    others: Mapping[str, Sequence[Comparison]] | None = None,
) -> str:
    """Return a Markdown table with one row per treatment and metric.

    Args:
        comparisons: The comparisons, in the order of the rows.
        true_lift: (treatment, metric) -> the lift in the true utilities, for a column of its
            own; only synthetic data has it (`synthetic_truth.true_lift`).
        others: Another exposure assumption's name -> the same comparisons under it. Each adds
            a column, and a verdict that differs becomes "depends on the exposure assumption".
    """
    headers = ["treatment", "control", "metric", "difference [95 %]", "p (Holm)", "verdict"]
    others = others or {}
    if true_lift is not None:
        headers.insert(4, "true lift")
    if others:
        headers[-1:] = [*(f"verdict, {name}" for name in others), "verdict"]
    verdict_of = [
        {(o.treatment, o.control, o.metric): o.verdict for o in theirs}
        for theirs in others.values()
    ]
    rows = []
    for c in comparisons:
        difference = c.difference.interval.text(sign="+")
        row = [c.treatment, c.control, c.metric, difference, f"{c.adjusted_p:.3f}"]
        if true_lift is not None:
            lift = true_lift.get((c.treatment, c.metric))
            row.insert(4, "" if lift is None else f"{lift:+.3f}")
        place = c.treatment, c.control, c.metric
        if lacking := [n for n, v in zip(others, verdict_of, strict=True) if place not in v]:
            raise ValueError(f"{lacking} do not compare {c.treatment!r} on {c.metric!r}")
        verdicts = [other[place] for other in verdict_of]
        rows.append([*row, *verdicts, across_exposures([c.verdict, *verdicts])])
    return markdown_table(rows, headers)
