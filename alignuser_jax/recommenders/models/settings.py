"""What MF, LightGCN and MultVAE ask of their settings and their training data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from alignuser_jax.datasets import Dataset, Log
from alignuser_jax.recommenders.base import digest
from alignuser_jax.recommenders.checks.ranking import pairs

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

AT_LEAST_ONE = ("factors", "latent", "hidden", "layers", "batch_size", "epochs", "patience")
POSITIVE = ("learning_rate",)
NOT_NEGATIVE = ("l2", "kl_cap", "kl_epochs")


def check_settings(name: str, **settings: Any) -> dict[str, Any]:
    """The settings, or `ValueError` naming the first one out of its range."""
    for key, value in settings.items():
        if key in AT_LEAST_ONE and value < 1:
            raise ValueError(f"{name} needs {key} >= 1, got {value}")
        if key in POSITIVE and not value > 0:
            raise ValueError(f"{name} needs {key} > 0, got {value}")
        if key in NOT_NEGATIVE and not value >= 0:
            raise ValueError(f"{name} needs {key} >= 0, got {value}")
        if key == "dropout" and not 0 <= value < 1:
            raise ValueError(f"{name} needs 0 <= dropout < 1, got {value}")
    return settings


def training_pairs(
    recommender: Any, dataset: Dataset, log: Log, validation: Log | None
) -> tuple[csr_matrix, csr_matrix | None, str]:
    """The pairs to train on, those to stop by, and the version that they and the settings name.

    What is fitted again without a `validation` (between rounds) is trained for as many epochs
    as were best before: its settings then say so.

    Raises `ValueError` for an empty log."""
    name = type(recommender).__name__
    if not len(log):
        raise ValueError(f"{name} was given an empty log: fit it on a log with interactions")
    before = getattr(recommender, "fitted", None)
    if validation is None and before:
        recommender.settings = recommender.settings | {"epochs": before["best_epoch"]}
    positives = pairs(log)
    held_out = pairs(validation) if validation is not None else None
    parts = [part for part in (positives, held_out) if part is not None]
    arrays = [array for part in parts for array in (part.indptr, part.indices)]
    version = digest(
        {"kind": recommender.name, **recommender.settings}, dataset.item_ids, *arrays
    )
    return positives, held_out, version
