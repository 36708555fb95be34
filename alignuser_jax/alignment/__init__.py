"""Turn human logs and a world into training examples: the method itself."""

from alignuser_jax.alignment.build import ShardSource, build_shards
from alignuser_jax.alignment.config import BuildConfig
from alignuser_jax.alignment.rollouts import RolloutConfig, collect_rollouts
from alignuser_jax.alignment.visits import (
    ExposureMixture,
    Visit,
    VisitConfig,
    reconstruct_visits,
)

__all__ = [
    "BuildConfig",
    "ExposureMixture",
    "RolloutConfig",
    "ShardSource",
    "Visit",
    "VisitConfig",
    "build_shards",
    "collect_rollouts",
    "reconstruct_visits",
]
