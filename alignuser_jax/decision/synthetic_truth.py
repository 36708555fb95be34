"""Compute what a perfect simulator would find: the lift in a synthetic dataset's utilities."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from alignuser_jax.datasets import Dataset


def true_lift(dataset: Dataset, events: pa.Table, control: str) -> dict[tuple[str, str], float]:
    """Return the lift over `control` that the slates have in a synthetic dataset's utilities.

    This is what a perfect simulator would find in expectation.

    Args:
        dataset: A synthetic dataset: only those have true utilities.
        events: The event table of a simulation; its pages say what each arm showed.
        control: The arm that the others are compared with.

    Returns:
        (arm, metric) -> lift, for the metrics of `compare.VERDICT_METRICS`.

    Raises:
        ValueError: The dataset has no true utilities, or the events no arm `control`.
    """
    if not dataset.truth:
        raise ValueError(
            f"dataset {dataset.name!r} has no true utilities: only a synthetic one has them"
        )
    pages = events.filter(pa.compute.equal(events["kind"], "page"))
    users = pa.compute.index_in(pages["user_id"], pa.array(dataset.user_ids)).to_numpy()
    items = pa.compute.index_in(pages["item_id"], pa.array(dataset.item_ids)).to_numpy()
    arm_of = np.array(pages["arm"].to_pylist())
    if control not in (arms := np.unique(arm_of).tolist()):
        raise ValueError(f"control arm {control!r} is not in the events; their arms: {arms}")
    watch, like = (dataset.truth[name][users, items] for name in ("watch", "like"))
    utility = dataset.truth["utility"][users, items]

    def per_user(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
        return np.bincount(users[mask], values[mask], len(dataset.user_ids))

    value: dict[tuple[str, str], float] = {}
    for arm in arms:
        mask = arm_of == arm
        exposed = per_user(np.ones(len(users)), mask)
        viewed, liked = per_user(watch, mask), per_user(watch * like, mask)
        rating, has_page = per_user(watch * utility, mask), exposed > 0
        value[arm, "likes per exposed"] = float((liked[has_page] / exposed[has_page]).mean())
        value[arm, "likes per viewed"] = float((liked[has_page] / viewed[has_page]).mean())
        value[arm, "mean rating"] = float((rating[has_page] / viewed[has_page]).mean())
        value[arm, "view ratio"] = float((viewed[has_page] / exposed[has_page]).mean())
    return {
        (arm, metric): v - value[control, metric]
        for (arm, metric), v in value.items()
        if arm != control
    }
