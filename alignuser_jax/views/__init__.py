"""The no-leak rule: what may be known of a user at training and at test."""

from alignuser_jax.views.split import held_out_users, policy_and_agent_users
from alignuser_jax.views.view import View, simulation_view, test_view, training_view

__all__ = [
    "View",
    "held_out_users",
    "policy_and_agent_users",
    "simulation_view",
    "test_view",
    "training_view",
]
