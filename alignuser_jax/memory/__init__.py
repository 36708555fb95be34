"""What a user remembers, as immutable values that need no jax."""

from alignuser_jax.memory.episodic import EpisodicMemory
from alignuser_jax.memory.recall import Recall, RecallIndex, Recollection, mean_level

__all__ = ["EpisodicMemory", "Recall", "RecallIndex", "Recollection", "mean_level"]
