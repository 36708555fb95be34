"""The method: human logs and a world in, training examples out."""

from alignuser_jax.alignment.build import build_shards
from alignuser_jax.alignment.config import BuildConfig
from alignuser_jax.alignment.rollouts import RolloutConfig, collect_rollouts
from alignuser_jax.alignment.split import policy_and_agent_users
from alignuser_jax.alignment.views import View, simulation_view, test_view, training_view
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
    "View",
    "Visit",
    "VisitConfig",
    "build_shards",
    "collect_rollouts",
    "policy_and_agent_users",
    "reconstruct_visits",
    "simulation_view",
    "test_view",
    "training_view",
]
