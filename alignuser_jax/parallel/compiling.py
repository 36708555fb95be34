"""How much XLA compiles: engines compile ahead, and what is compiled later is a mistake.

What jax counts is all programs of the process, the small ones of single operations too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import jax


@dataclass
class Compiled:
    """`programs` were made ready, `cached` of them from the persistent compilation cache."""

    programs: int = 0
    cached: int = 0


@contextmanager
def counted() -> Iterator[Compiled]:
    """Counts what is compiled in this process until the block ends."""
    found = Compiled()

    def duration(event: str, seconds: float, **_) -> None:
        found.programs += event == "/jax/core/compile/backend_compile_duration"

    def hit(event: str, **_) -> None:
        found.cached += event == "/jax/compilation_cache/cache_hits"

    jax.monitoring.register_event_duration_secs_listener(duration)
    jax.monitoring.register_event_listener(hit)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(duration)
        jax.monitoring.unregister_event_listener(hit)
