"""The one loop for coroutines that ask: batching, journal, progress, failures and cost.

It knows nothing of what is asked; agents, persona matching and judges all run through it.
"""

from alignuser_jax.driver.backend import Backend

__all__ = ["Backend"]
