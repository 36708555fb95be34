"""Results as people look at them: Markdown tables for a terminal or a README, and one plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from tabulate import tabulate

from alignuser_jax.decision.compare import (
    METRICS,
    NOT_VALIDATED,
    ArmMetrics,
    Comparison,
    across_exposures,
)
from alignuser_jax.decision.held_out_order import Agreement
from alignuser_jax.evaluation.demographics import METRICS as DEMOGRAPHIC_METRICS
from alignuser_jax.evaluation.demographics import DemographicScores
from alignuser_jax.evaluation.preference import PreferenceScores
from alignuser_jax.evaluation.ratings import RatingScores, SeedScores
from alignuser_jax.statistics.paired import Interval

VERDICTS_BY_HOLM = (
    "Intervals are per metric; a verdict is Holm's over the whole table, so an interval may "
    'exclude 0 where the verdict is "cannot tell".'
)


def table(rows: Sequence[Sequence[object]], headers: Sequence[str]) -> str:
    """A Markdown table; numbers are already text, so nothing is reformatted."""
    return tabulate(rows, headers, tablefmt="pipe", disable_numparse=True)


def interval(value: Interval, digits: int = 3, sign: str = "") -> str:
    number = f"{sign}.{digits}f"
    return f"{value.value:{number}} [{value.low:{number}}, {value.high:{number}}]"


def arms_table(metrics: ArmMetrics, arms: Sequence[str] | None = None) -> str:
    """Mean per arm of the metrics that rating logs can speak to."""
    arms = metrics.arms if arms is None else arms
    rows = [[arm, *(f"{metrics.mean(arm, m):.3f}" for m in METRICS)] for arm in arms]
    return table(rows, ["arm", *METRICS])


def not_validated_table(metrics: ArmMetrics, arms: Sequence[str] | None = None) -> str:
    """Exit page and satisfaction: assumptions, since rating logs hold no browsing."""
    arms = metrics.arms if arms is None else arms
    rows = [[arm, *(f"{metrics.mean(arm, m):.2f}" for m in NOT_VALIDATED)] for arm in arms]
    return table(rows, ["arm", *(f"{m} (not validated)" for m in NOT_VALIDATED)])


def comparison_table(
    comparisons: Sequence[Comparison],
    true_lift: Mapping[tuple[str, str], float] | None = None,
    others: Mapping[str, Sequence[Comparison]] | None = None,
) -> str:
    """One row per treatment and metric. `true_lift` adds the lift in the true utilities
    (synthetic data only); `others` maps another exposure assumption's name to the same
    comparisons under it: a verdict that flips depends on the exposure assumption."""
    headers = ["treatment", "control", "metric", "difference [95 %]", "p (Holm)", "verdict"]
    others = others or {}
    if true_lift is not None:
        headers.insert(4, "true lift")
    if others:
        headers[-1:] = [*(f"verdict, {name}" for name in others), "verdict"]
    rows = []
    for c in comparisons:
        d = c.difference
        row = [
            c.treatment,
            c.control,
            c.metric,
            interval(Interval(d.mean, d.low, d.high), sign="+"),
            f"{c.adjusted_p:.3f}",
        ]
        if true_lift is not None:
            lift = true_lift.get((c.treatment, c.metric))
            row.insert(4, "" if lift is None else f"{lift:+.3f}")
        verdicts = [
            next(
                o.verdict
                for o in comparisons_there
                if (o.treatment, o.control, o.metric) == (c.treatment, c.control, c.metric)
            )
            for comparisons_there in others.values()
        ]
        rows.append([*row, *verdicts, across_exposures([c.verdict, *verdicts])])
    return table(rows, headers)


def ratings_table(scores: Sequence[RatingScores]) -> str:
    def number(value: float) -> str:
        return "" if np.isnan(value) else f"{value:.3f}"

    against = sorted({name for s in scores for name in s.gain_over})
    rows = [
        [
            s.name,
            interval(s.rmse),
            number(s.mae),
            number(s.rmse_argmax),
            number(s.rmse_sample),
            number(s.nll),
            number(s.total_variation),
            *(interval(s.gain_over[a], sign="+") if a in s.gain_over else "" for a in against),
        ]
        for s in scores
    ]
    headers = ["predictor", "RMSE expected", "MAE", "RMSE argmax", "RMSE sample", "NLL", "TV"]
    return table(rows, [*headers, *(f"RMSE - {a}" for a in against)])


def seeds_table(scores: Sequence[SeedScores]) -> str:
    first = scores[0].name
    rows = [
        [
            s.name,
            str(s.seeds),
            interval(s.rmse),
            f"{s.lowest:.3f} to {s.highest:.3f}",
            interval(s.gain, sign="+") if s.gain else "",
            interval(s.nll),
            interval(s.nll_gain, sign="+") if s.nll_gain else "",
        ]
        for s in scores
    ]
    headers = ["policy", "seeds", "RMSE expected", "single seeds", f"RMSE - {first}", "NLL"]
    return table(rows, [*headers, f"NLL - {first}"])


def preference_table(groups: Mapping[str, Sequence[PreferenceScores]]) -> str:
    """groups: kind of negatives -> predictors' scores."""

    def number(value: float) -> str:
        return "" if np.isnan(value) else f"{value:.3f}"

    rows = [
        [
            negatives,
            s.name,
            interval(s.best_accuracy),
            *map(number, (s.accuracy, s.precision, s.recall, s.f1, s.pooled_f1)),
        ]
        for negatives, scores in groups.items()
        for s in scores
    ]
    headers = ["negatives", "predictor", "accuracy, best threshold", "accuracy at 0.5"]
    return table(rows, [*headers, "precision", "recall", "F1 per user", "F1 pooled"])


def demographics_table(scores: Sequence[DemographicScores]) -> str:
    metrics = DEMOGRAPHIC_METRICS
    rows = [
        [s.field, s.name, str(s.users), *(interval(s.scores[metric]) for metric in metrics)]
        for s in scores
    ]
    return table(rows, ["field", "predictor", "users", *metrics])


def agreement_table(result: Agreement) -> str:
    order = np.argsort(result.held_out)
    rows = [
        [result.arms[i], f"{result.simulated[i]:.3f}", f"{result.held_out[i]:.4f}"]
        for i in order
    ]
    taus = [[name, interval(tau, 2)] for name, tau in result.tau.items()]
    return "\n\n".join(
        [
            table(rows, ["arm", "simulated likes per exposed", "held-out hit@20"]),
            table(taus, ["order by", "Kendall's tau with held-out hits [95 %]"]),
        ]
    )
