"""Does the simulated order of recommenders agree with held-out behaviour? (EVIDENCE.md)

Held-out hits favour what was popular: agreement is necessary, not sufficient. Two trivial
predictors of the order stand beside the simulator: a slate's mean item rating and its log
popularity; a simulator that does not beat counting popularity adds nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from alignuser_jax.decision.compare import ArmMetrics
from alignuser_jax.statistics.paired import Interval, kendall_interval


@dataclass(frozen=True)
class Agreement:
    """`held_out` is hit@k per arm; `tau` maps a predictor of the order to Kendall's tau with
    its interval over resampled users."""

    arms: tuple[str, ...]
    simulated: tuple[float, ...]
    held_out: tuple[float, ...]
    tau: dict[str, Interval]


def agreement(
    metrics: ArmMetrics,
    held_out: Mapping[str, Mapping[str, float]],
    events: pa.Table,
    popularity: Mapping[str, float],
    mean_ratings: Mapping[str, float],
    *,
    arms: Sequence[str] | None = None,
    metric: str = "likes per exposed",
    seed: int = 0,
) -> Agreement:
    """Kendall's tau of the simulated metric, and of the trivial predictors, with held-out hits.

    held_out: arm -> user id -> share of the slate that the user really consumed later.
    popularity, mean_ratings: item id -> count / mean rating in the training part.
    """
    arms = tuple(a for a in metrics.arms if a in held_out) if arms is None else tuple(arms)
    if len(arms) < 2:
        raise ValueError(f"an order needs two arms or more, got {list(arms)}")
    users = metrics.user_ids
    truth = np.array([[held_out[arm].get(u, np.nan) for u in users] for arm in arms])
    simulated = np.array([metrics.values[arm][metric] for arm in arms])
    pages = events.filter(pa.compute.equal(events["kind"], "page"))
    index = {user: i for i, user in enumerate(users)}
    items = pages["item_id"].to_pylist()
    user = np.array([index[u] for u in pages["user_id"].to_pylist()])
    arm_of = np.array(pages["arm"].to_pylist())

    def exposure_mean(value: Mapping[str, float], default: float) -> np.ndarray:
        values = np.array([value.get(item, default) for item in items])
        rows = []
        for arm in arms:
            mask = arm_of == arm
            count = np.bincount(user[mask], minlength=len(users))
            rows.append(
                np.bincount(user[mask], values[mask], len(users)) / np.maximum(count, 1)
            )
        return np.array(rows)

    log_popularity = {item: float(np.log1p(count)) for item, count in popularity.items()}
    average = float(np.mean(list(mean_ratings.values())))
    predictors = {
        "simulated " + metric: simulated,
        "log popularity of the slate": exposure_mean(log_popularity, 0.0),
        "mean item rating of the slate": exposure_mean(mean_ratings, average),
    }
    return Agreement(
        arms,
        tuple(float(np.nanmean(row)) for row in simulated),
        tuple(float(np.nanmean(row)) for row in truth),
        {name: kendall_interval(rows, truth, seed=seed) for name, rows in predictors.items()},
    )
