"""Agents at work: one session as a coroutine, many of them at once, and a log that survives."""

from alignuser_jax.agents.conversation import AgentUser, SessionConfig
from alignuser_jax.agents.events import read_events, write_events
from alignuser_jax.agents.population import RecommenderError, SessionSpec, run_population
from alignuser_jax.agents.rating import rate_item
from alignuser_jax.agents.session import (
    RecommendationFailed,
    expected_value,
    probabilities,
    session,
)
from alignuser_jax.agents.shop_session import shop_session

__all__ = [
    "AgentUser",
    "RecommendationFailed",
    "RecommenderError",
    "SessionConfig",
    "SessionSpec",
    "expected_value",
    "probabilities",
    "rate_item",
    "read_events",
    "run_population",
    "session",
    "shop_session",
    "write_events",
]
