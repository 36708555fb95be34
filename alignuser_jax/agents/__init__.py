"""Simulated users: one session as a coroutine, and many sessions run at once."""

from alignuser_jax.agents.conversation import AgentUser, SessionConfig
from alignuser_jax.agents.events import read_events, write_events
from alignuser_jax.agents.population import SessionSpec, run_population
from alignuser_jax.agents.rating import rate_item, rate_items
from alignuser_jax.agents.session import (
    RecommendationFailed,
    expected_value,
    probabilities,
    session,
)
from alignuser_jax.agents.shop_session import shop_session
from alignuser_jax.agents.slates import RecommenderError

__all__ = [
    "AgentUser",
    "RecommendationFailed",
    "RecommenderError",
    "SessionConfig",
    "SessionSpec",
    "expected_value",
    "probabilities",
    "rate_item",
    "rate_items",
    "read_events",
    "run_population",
    "session",
    "shop_session",
    "write_events",
]
