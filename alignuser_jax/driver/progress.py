"""How far a run is: a bar on a terminal, a plain line now and then in a log."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Counts sessions done and pages shown; silent unless `shown`."""

    def __init__(self, sessions: int, shown: bool, stream=None, clock=time.monotonic):
        self.sessions, self.done, self.failed, self.pages = sessions, 0, 0, 0
        self._stream = stream or sys.stderr
        self._clock = clock
        self._start = self._said = clock()
        terminal = shown and self._stream.isatty()
        self._bar = None
        if terminal:
            self._bar = tqdm(total=sessions, unit="session", file=self._stream)
        self._lines = shown and not terminal

    def session_done(self, failed: bool = False) -> None:
        self.done += 1
        self.failed += failed
        if self._bar is not None:
            self._bar.update(1)
        self._say_now_and_then()

    def pages_shown(self, count: int) -> None:
        self.pages += count
        if self._bar is not None:
            self._bar.set_postfix_str(f"{self.pages_per_second:.1f} pages/s", refresh=False)
        self._say_now_and_then()

    @property
    def pages_per_second(self) -> float:
        return self.pages / max(self._clock() - self._start, 1e-9)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        if self._lines:
            self._line()

    def _say_now_and_then(self) -> None:
        if self._lines and self._clock() - self._said >= SECONDS_BETWEEN_LINES:
            self._line()

    def _line(self) -> None:
        self._said = self._clock()
        failed = f" ({self.failed} failed)" if self.failed else ""
        print(
            f"{self.done}/{self.sessions} sessions{failed}, {self.pages} pages, "
            f"{self.pages_per_second:.1f} pages/s",
            file=self._stream,
            flush=True,
        )
