"""Count what XLA compiles: engines compile ahead, and what is compiled later is a mistake.

JAX counts every program of the process, the small ones of single operations too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import jax


@dataclass
class Compiled:
    """What was compiled so far.

    Attributes:
        programs: Programs that were made ready.
        cached: How many of them came from the persistent compilation cache.
    """

    programs: int = 0
    cached: int = 0


@contextmanager
def counted() -> Iterator[Compiled]:
    """Count what is compiled in this process until the block ends.

    Example:
        >>> with counted() as compiled:
        ...     engine.warm_up()
        >>> compiled.programs
    """
    compiled = Compiled()

    def duration(event: str, duration_secs: float, **metadata: str | int) -> None:
        compiled.programs += event == "/jax/core/compile/backend_compile_duration"

    def hit(event: str, **metadata: str | int) -> None:
        compiled.cached += event == "/jax/compilation_cache/cache_hits"

    jax.monitoring.register_event_duration_secs_listener(duration)
    jax.monitoring.register_event_listener(hit)
    try:
        yield compiled
    finally:
        jax.monitoring.unregister_event_duration_listener(duration)
        jax.monitoring.unregister_event_listener(hit)
