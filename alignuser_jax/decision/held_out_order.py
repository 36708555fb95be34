"""Check whether the simulated order of recommenders agrees with held-out behaviour.

Held-out hits favour what was popular, so agreement is necessary but not sufficient. Two
trivial predictors of the order stand beside the simulator: a slate's mean item rating and its
log popularity. A simulator that does not beat counting popularity adds nothing
(docs/evidence.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from alignuser_jax.decision.compare import ArmMetrics
from alignuser_jax.statistics.paired import Interval, kendall_interval
from alignuser_jax.text import markdown_table

METRIC = "likes per exposed"
"""The simulated metric whose order of the arms is checked."""


@dataclass(frozen=True)
class Agreement:
    """How predictors of the order of arms agree with held-out hits.

    Attributes:
        arms: The arms that have held-out hits.
        simulated: The mean of the simulated metric per arm.
        held_out: The mean share of the slate that users consumed later (hit@k), per arm.
        tau: Predictor of the order -> Kendall's tau with the held-out hits and its interval
            over resampled users.
    """

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
    seed: int = 0,
) -> Agreement:
    """Correlate the simulated metric and the trivial predictors with held-out hits.

    Args:
        metrics: The simulated metrics of every arm.
        held_out: Arm -> user id -> share of the slate that the user really consumed later.
            Arms that are not in it are left out.
        events: The event table of the simulation; its pages say what each arm showed.
        popularity: Item id -> number of ratings in the training part.
        mean_ratings: Item id -> mean rating in the training part.
        seed: Names the resamples.

    Raises:
        ValueError: Fewer than two arms have held-out hits.
    """
    arms = tuple(arm for arm in metrics.arms if arm in held_out)
    if len(arms) < 2:
        raise ValueError(
            f"an order needs two arms or more with held-out hits, got {list(arms)}"
        )
    users = metrics.user_ids
    truth = np.array([[held_out[arm].get(u, np.nan) for u in users] for arm in arms])
    simulated = np.array([metrics.values[arm][METRIC] for arm in arms])
    exposure_mean = _exposure_means(events, arms, users)
    log_popularity = {item: float(np.log1p(count)) for item, count in popularity.items()}
    average = float(np.mean(list(mean_ratings.values())))
    predictors = {
        "simulated " + METRIC: simulated,
        "log popularity of the slate": exposure_mean(log_popularity, 0.0),
        "mean item rating of the slate": exposure_mean(mean_ratings, average),
    }
    return Agreement(
        arms,
        tuple(float(np.nanmean(row)) for row in simulated),
        tuple(float(np.nanmean(row)) for row in truth),
        {name: kendall_interval(rows, truth, seed=seed) for name, rows in predictors.items()},
    )


def _exposure_means(
    events: pa.Table, arms: Sequence[str], users: Sequence[str]
) -> Callable[[Mapping[str, float], float], np.ndarray]:
    """A function from (value by item id, default) to float64[arms, users].

    It returns the mean value over the items that an arm showed a user.
    """
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

    return exposure_mean


def agreement_table(result: Agreement) -> str:
    """Return two Markdown tables: the arms by held-out hits, and tau by predictor."""
    rows = [
        [result.arms[i], f"{result.simulated[i]:.3f}", f"{result.held_out[i]:.4f}"]
        for i in np.argsort(result.held_out)
    ]
    taus = [[name, tau.text(2)] for name, tau in result.tau.items()]
    return "\n\n".join(
        [
            markdown_table(rows, ["arm", f"simulated {METRIC}", "held-out hit@20"]),
            markdown_table(taus, ["order by", "Kendall's tau with held-out hits [95 %]"]),
        ]
    )
