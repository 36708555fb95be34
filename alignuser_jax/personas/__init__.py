"""Who users are: traits and persona records computed from the log (METHOD.md section 4)."""

from alignuser_jax.personas.traits import (
    Traits,
    compute_personas,
    compute_traits,
    trait_levels,
)

__all__ = ["Traits", "compute_personas", "compute_traits", "trait_levels"]
