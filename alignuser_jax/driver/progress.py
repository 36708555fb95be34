"""Show how far a run is: a bar on a terminal, a plain line every ten seconds in a log.

Nothing that takes long is silent: what can be counted has a `Progress`, and what cannot
(loading, compiling) runs in `waiting`.
"""

from __future__ import annotations

import datetime
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from tqdm import tqdm

from alignuser_jax.text import Say

SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Counts the coroutines that are done and, where they have parts, the parts.

    Attributes:
        total: How many coroutines there are.
        done: How many have ended, failed ones included.
        failed: How many have failed.
        parts: How many parts (pages of sessions, say) are done.

    Args:
        total: How many coroutines there are.
        visible: Whether to print anything.
        unit: What one coroutine is, in the singular.
        part: What one part is, in the singular; "" where there are no parts.
        label: What the whole is, before each line; "" for nothing.
        stream: Where to print; standard error by default.
        clock: Returns seconds; tests pass their own.

    Example:
        >>> progress = Progress(2, visible=False, unit="session", part="page")
        >>> progress.add_parts(5)
        >>> progress.finished()
        >>> progress.done, progress.parts
        (1, 5)
    """

    def __init__(
        self,
        total: int,
        visible: bool,
        unit: str = "session",
        part: str = "",
        label: str = "",
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.total, self.done, self.failed, self.parts = total, 0, 0, 0
        self._unit, self._part, self._label = unit, part, label
        self._stream = stream or sys.stderr
        self._clock = clock
        self._start = self._last_line = clock()
        terminal = visible and self._stream.isatty()
        self._bar = (
            tqdm(total=total, unit=unit, desc=label or None, file=self._stream)
            if terminal
            else None
        )
        self._lines = visible and not terminal

    def finished(self, failed: bool = False) -> None:
        """Count a coroutine that ended."""
        self.done += 1
        self.failed += failed
        if self._bar is not None:
            self._bar.set_postfix_str(self._postfix(), refresh=False)
            self._bar.update(1)
        self._print_sometimes()

    def add_parts(self, count: int) -> None:
        """Count parts that are done."""
        self.parts += count
        if self._bar is not None:
            self._bar.set_postfix_str(self._postfix(), refresh=False)
        self._print_sometimes()

    def close(self) -> None:
        """Print the last line and end the bar."""
        if self._bar is not None:
            self._bar.close()
        if self._lines:
            self._print_line()

    def _postfix(self) -> str:
        failed = f"{self.failed} failed" if self.failed else ""
        rate = self._rate(self.parts, self._part) if self._part else ""
        return ", ".join(filter(None, (failed, rate)))

    def _rate(self, count: int, unit: str) -> str:
        seconds = max(self._clock() - self._start, 1e-9)
        return f"{count / seconds:.1f} {_plural(unit)}/s"

    def _print_sometimes(self) -> None:
        if self._lines and self._clock() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._print_line()

    def _print_line(self) -> None:
        self._last_line = self._clock()
        failed = f" ({self.failed} failed)" if self.failed else ""
        if self._part:
            rest = f"{self.parts} {_plural(self._part)}, {self._rate(self.parts, self._part)}"
        else:
            rest = self._rate(self.done, self._unit)
        line = f"{self.done}/{self.total} {_plural(self._unit)}{failed}, {rest}{self._left()}"
        label = f"{self._label}: " if self._label else ""
        print(label + line, file=self._stream, flush=True)

    def _left(self) -> str:
        """The time that the rest takes at the rate so far, "" where that says nothing."""
        if not 0 < self.done < self.total:
            return ""
        seconds = (self._clock() - self._start) / self.done * (self.total - self.done)
        return f", {datetime.timedelta(seconds=round(seconds))} left"


@contextmanager
def waiting(
    what: str, say: Say | None, seconds: float = SECONDS_BETWEEN_LINES
) -> Iterator[None]:
    """Say now and then that something goes on that cannot be counted.

    Args:
        what: What goes on.
        say: Is told, from a thread of its own; `None` says nothing.
        seconds: Between two lines; what is done before the first of them is not mentioned.

    Example:
        >>> with waiting("loading the model", print):
        ...     pass
    """
    if say is None:
        yield
        return
    over, begun = threading.Event(), time.monotonic()

    def tell() -> None:
        while not over.wait(seconds):
            say(f"{what}: {time.monotonic() - begun:.0f} s so far")

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _plural(unit: str) -> str:
    return f"{unit[:-1]}ies" if unit.endswith("y") else f"{unit}s"
