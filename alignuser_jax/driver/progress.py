"""Show how far a run is: a bar on a terminal, a plain line every ten seconds in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

from tqdm import tqdm

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
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.total, self.done, self.failed, self.parts = total, 0, 0, 0
        self._unit, self._part = unit, part
        self._stream = stream or sys.stderr
        self._clock = clock
        self._start = self._last_line = clock()
        terminal = visible and self._stream.isatty()
        self._bar = tqdm(total=total, unit=unit, file=self._stream) if terminal else None
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
        return f"{count / seconds:.1f} {unit}s/s"

    def _print_sometimes(self) -> None:
        if self._lines and self._clock() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._print_line()

    def _print_line(self) -> None:
        self._last_line = self._clock()
        failed = f" ({self.failed} failed)" if self.failed else ""
        if self._part:
            rest = f"{self.parts} {self._part}s, {self._rate(self.parts, self._part)}"
        else:
            rest = self._rate(self.done, self._unit)
        line = f"{self.done}/{self.total} {self._unit}s{failed}, {rest}"
        print(line, file=self._stream, flush=True)
