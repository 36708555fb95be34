"""Make an A/B test of simulated events: comparisons, and the tables that people read.

Several simulations of the same arms, one per assumption about exposure, are compared each for
itself; a verdict that is not the same in all of them depends on the assumption.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from alignuser_jax.datasets import Dataset, item_statistics
from alignuser_jax.decision.compare import (
    VERDICTS_BY_HOLM,
    ArmMetrics,
    Comparison,
    arm_metrics,
    arms_table,
    compare,
    comparison_table,
    not_validated_table,
)
from alignuser_jax.decision.held_out_order import agreement, agreement_table
from alignuser_jax.decision.synthetic_truth import true_lift
from alignuser_jax.randomness import named_generator
from alignuser_jax.recommenders import held_out_hits
from alignuser_jax.records import Recommender


@dataclass(frozen=True)
class AbTestSettings:
    """What is compared with what.

    Attributes:
        control: The arm that the others are compared with.
        treatments: The others; `None` for every other arm.
        resamples: Bootstrap resamples over users.
        seed: Seed of the bootstrap.

    Raises:
        ValueError: If there is no resample.
    """

    control: str
    treatments: Sequence[str] | None = None
    resamples: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse a bootstrap without resamples."""
        if self.resamples < 1:
            raise ValueError(f"resamples is {self.resamples}: expected 1 or more")


@dataclass(frozen=True)
class AbTest:
    r"""The comparisons of one or more simulations; the first one's figures are shown.

    Attributes:
        events: Simulation name to its event table.
        metrics: Simulation name to the metrics of each arm and user.
        comparisons: Simulation name to every treatment against the control.
        settings: What was compared with what.

    Example:
        >>> test = ab_test({"mixed": events}, AbTestSettings(control="random"))
        >>> print("\n\n".join(tables(test, note="SYNTHETIC data")))
    """

    events: Mapping[str, pa.Table]
    metrics: Mapping[str, ArmMetrics]
    comparisons: Mapping[str, list[Comparison]]
    settings: AbTestSettings

    @property
    def first(self) -> str:
        """The name of the simulation whose figures are shown."""
        return next(iter(self.comparisons))


def same_agents(
    events: Mapping[str, pa.Table], count: int, seed: int = 0
) -> dict[str, pa.Table]:
    """Draw `count` of the agents that all simulations share, and keep their events only.

    Raises:
        ValueError: If the simulations share fewer agents, or `count` is below 2.
    """
    users = sorted(set.intersection(*(set(t["user_id"].to_pylist()) for t in events.values())))
    if not 2 <= count <= len(users):
        raise ValueError(
            f"{count} agents were asked for: the simulations share {len(users)} agents, ask "
            f"for 2 to {len(users)}"
        )
    order = named_generator("ab-test agents", seed).permutation(len(users))
    drawn = pa.array([users[n] for n in order[:count]])
    return {name: t.filter(pc.is_in(t["user_id"], drawn)) for name, t in events.items()}


def ab_test(events: Mapping[str, pa.Table], settings: AbTestSettings) -> AbTest:
    """Compare the arms of every simulation.

    Args:
        events: Simulation name to its event table, the main one first.
        settings: What is compared with what.

    Raises:
        ValueError: If an arm is missing, or lacks users that another arm has.
    """
    metrics = {name: arm_metrics(table) for name, table in events.items()}
    comparisons = {
        name: compare(
            values,
            settings.control,
            settings.treatments,
            resamples=settings.resamples,
            seed=settings.seed,
        )
        for name, values in metrics.items()
    }
    return AbTest(events, metrics, comparisons, settings)


def tables(test: AbTest, note: str, dataset: Dataset | None = None) -> list[str]:
    """Return the title, the table of verdicts and the means per arm as Markdown.

    Args:
        test: The comparisons.
        note: What to print beside the result ("SYNTHETIC data; ...").
        dataset: The data set; if it is synthetic, the true lift stands beside the simulated.
    """
    first, *others = test.comparisons
    parts = [f"A/B test, {len(test.metrics[first].user_ids)} agents; {note}"]
    if others:
        names = ", ".join(test.comparisons)
        parts.append(f"figures of {first!r}; verdicts of all: {names}")
    lift = None
    if dataset is not None and dataset.truth:
        lift = true_lift(dataset, test.events[first], test.settings.control)
    parts.append(
        comparison_table(
            test.comparisons[first], lift, {name: test.comparisons[name] for name in others}
        )
    )
    parts.append(VERDICTS_BY_HOLM)
    for name, metrics in test.metrics.items():
        parts += [f"Means per arm, {name}", arms_table(metrics), not_validated_table(metrics)]
    return parts


def held_out_tables(
    test: AbTest, dataset: Dataset, recommenders: Mapping[str, Recommender]
) -> list[str]:
    """Return the simulated order of arms beside held-out hits, as Markdown per simulation.

    Args:
        test: The comparisons.
        dataset: The data set; hits are counted in its held-out part.
        recommenders: Arm to its recommender.

    Raises:
        ValueError: If fewer than two arms have a recommender.
    """
    users = test.metrics[test.first].user_ids
    hits = {}
    for arm, recommender in recommenders.items():
        result = held_out_hits(recommender, dataset, users)
        hits[arm] = dict(zip(result.user_ids, result.hits.tolist(), strict=True))
    mean, count = item_statistics(dataset.log.of_split("train"))
    rated = [(dataset.item_ids[code], code) for code in np.flatnonzero(count).tolist()]
    popularity = {item: float(count[code]) for item, code in rated}
    mean_ratings = {item: float(mean[code]) for item, code in rated}
    parts = []
    for name, metrics in test.metrics.items():
        order = agreement(
            metrics, hits, test.events[name], popularity, mean_ratings, seed=test.settings.seed
        )
        parts += [f"Held-out behaviour, {name}", agreement_table(order)]
    return parts
