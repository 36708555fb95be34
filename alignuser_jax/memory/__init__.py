"""What a user remembers, as immutable values; no jax."""

from alignuser_jax.memory.episodic import EpisodicMemory

__all__ = ["EpisodicMemory"]
