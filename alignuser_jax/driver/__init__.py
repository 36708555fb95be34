"""The one loop for coroutines that ask: batching, journal, progress, failures and cost.

It knows nothing of what is asked; agents, persona matching and judges all run through it.
"""

from alignuser_jax.driver.backend import Backend
from alignuser_jax.driver.drive import (
    Answered,
    Answerer,
    Asking,
    FailurePolicy,
    Job,
    drive,
)
from alignuser_jax.driver.progress import Progress, waiting

__all__ = [
    "Answered",
    "Answerer",
    "Asking",
    "Backend",
    "FailurePolicy",
    "Job",
    "Progress",
    "drive",
    "waiting",
]
