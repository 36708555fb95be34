"""Personas of users: computed from the log, matched to it by a model, or read from a file.

The formulas and the matching are those of docs/method.md section 4.
"""

from alignuser_jax.personas.cost import Cost, estimate
from alignuser_jax.personas.given import GivenPersonas, read_personas, save_matches
from alignuser_jax.personas.match_users import match_users
from alignuser_jax.personas.matching import Candidate, Match, MatchConfig, match
from alignuser_jax.personas.traits import (
    Traits,
    compute_personas,
    compute_traits,
    trait_levels,
)
from alignuser_jax.personas.user_ratings import UserRatings

__all__ = [
    "Candidate",
    "Cost",
    "UserRatings",
    "GivenPersonas",
    "Match",
    "MatchConfig",
    "Traits",
    "compute_personas",
    "compute_traits",
    "estimate",
    "match",
    "match_users",
    "read_personas",
    "save_matches",
    "trait_levels",
]
