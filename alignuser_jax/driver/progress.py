"""Show how far a run is: a bar on a terminal, a plain line every ten seconds in a log."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Counts the sessions that are done and the pages that were shown.

    Attributes:
        sessions: How many sessions there are.
        done: How many have ended, failed ones included.
        failed: How many have failed.
        pages: How many pages were shown to agents.

    Args:
        sessions: How many sessions there are.
        shown: Whether to print anything.
        stream: Where to print; standard error by default.
        clock: Returns seconds; tests pass their own.
    """

    def __init__(self, sessions: int, shown: bool, stream=None, clock=time.monotonic):
        self.sessions, self.done, self.failed, self.pages = sessions, 0, 0, 0
        self._stream = stream or sys.stderr
        self._clock = clock
        self._start = self._last_line = clock()
        terminal = shown and self._stream.isatty()
        self._bar = None
        if terminal:
            self._bar = tqdm(total=sessions, unit="session", file=self._stream)
        self._lines = shown and not terminal

    def session_done(self, failed: bool = False) -> None:
        """Count a session that ended."""
        self.done += 1
        self.failed += failed
        if self._bar is not None:
            self._bar.update(1)
        self._print_sometimes()

    def pages_shown(self, count: int) -> None:
        """Count pages that agents were shown."""
        self.pages += count
        if self._bar is not None:
            self._bar.set_postfix_str(f"{self.pages_per_second:.1f} pages/s", refresh=False)
        self._print_sometimes()

    @property
    def pages_per_second(self) -> float:
        """The mean rate since the start."""
        return self.pages / max(self._clock() - self._start, 1e-9)

    def close(self) -> None:
        """Print the last line and end the bar."""
        if self._bar is not None:
            self._bar.close()
        if self._lines:
            self._print_line()

    def _print_sometimes(self) -> None:
        if self._lines and self._clock() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._print_line()

    def _print_line(self) -> None:
        self._last_line = self._clock()
        failed = f" ({self.failed} failed)" if self.failed else ""
        print(
            f"{self.done}/{self.sessions} sessions{failed}, {self.pages} pages, "
            f"{self.pages_per_second:.1f} pages/s",
            file=self._stream,
            flush=True,
        )
