"""Adapters from human logs to one `Dataset`, its splits and its checks."""

from alignuser_jax.datasets.dataset import Dataset, load_dataset
from alignuser_jax.datasets.filters import Filters, filtered
from alignuser_jax.datasets.log import Log, item_statistics, mean_ratings
from alignuser_jax.datasets.splits import (
    check_leaks,
    chronological_split,
    global_time_split,
    profile_and_targets,
)

__all__ = [
    "Dataset",
    "Filters",
    "Log",
    "check_leaks",
    "chronological_split",
    "filtered",
    "global_time_split",
    "item_statistics",
    "load_dataset",
    "mean_ratings",
    "profile_and_targets",
]
