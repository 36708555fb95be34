"""What a perfect simulator would find: the lift in a synthetic dataset's true utilities."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from alignuser_jax.datasets import Dataset


def true_lift(dataset: Dataset, events: pa.Table, control: str) -> dict[tuple[str, str], float]:
    """(arm, metric) -> the lift over `control` that the shown slates have in the true
    utilities of a synthetic dataset: what a perfect simulator would find in expectation."""
    if not dataset.truth:
        raise ValueError(f"{dataset.name} has no true utilities: only synthetic data has")
    pages = events.filter(pa.compute.equal(events["kind"], "page"))
    users = pa.compute.index_in(pages["user_id"], pa.array(dataset.user_ids)).to_numpy()
    items = pa.compute.index_in(pages["item_id"], pa.array(dataset.item_ids)).to_numpy()
    arm_of = np.array(pages["arm"].to_pylist())
    watch, like = (dataset.truth[name][users, items] for name in ("watch", "like"))
    utility = dataset.truth["utility"][users, items]

    def per_user(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
        return np.bincount(users[mask], values[mask], len(dataset.user_ids))

    value: dict[tuple[str, str], float] = {}
    for arm in np.unique(arm_of):
        mask = arm_of == arm
        shown = per_user(np.ones(len(users)), mask)
        seen, liked = per_user(watch, mask), per_user(watch * like, mask)
        rated, there = per_user(watch * utility, mask), shown > 0
        value[arm, "likes per exposed"] = float((liked[there] / shown[there]).mean())
        value[arm, "likes per viewed"] = float((liked[there] / seen[there]).mean())
        value[arm, "mean rating"] = float((rated[there] / seen[there]).mean())
        value[arm, "view ratio"] = float((seen[there] / shown[there]).mean())
    return {
        (arm, metric): v - value[control, metric]
        for (arm, metric), v in value.items()
        if arm != control
    }
