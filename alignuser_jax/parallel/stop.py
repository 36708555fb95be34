"""Stop on a signal: any process that gets one lets all of them save and leave together."""

from __future__ import annotations

import signal
import threading
from types import TracebackType
from typing import Any

import jax

from alignuser_jax.parallel import Hosts

EXIT_CODES = {signal.SIGTERM: 85, signal.SIGINT: 130}
"""Exit code by signal. 85 says "stopped and saved": launchers start the same command again."""


class Stop:
    """Listen for SIGTERM and SIGINT while entered.

    A second signal acts at once, as it would without this class.

    Example:
        >>> with Stop(hosts) as stop:
        ...     while not stop.received():
        ...         step()
    """

    def __init__(self, hosts: Hosts):
        self._hosts = hosts
        self._received = 0
        self._earlier: dict[int, Any] = {}
        self._answers: list[jax.Array] = []

    def __enter__(self) -> Stop:
        """Begin to listen, in the main thread."""
        if threading.current_thread() is threading.main_thread():
            for number in EXIT_CODES:
                self._earlier[number] = signal.getsignal(number) or signal.SIG_DFL
                signal.signal(number, self._note)
        return self

    def _note(self, number: int, _: Any) -> None:
        self._received = number
        signal.signal(number, self._earlier[number])

    def received(self) -> int:
        """Return the signal to leave on, or 0. Every process must call it once a step.

        All processes get the same number. Among several it is that of the step before: the
        devices work it out behind a step, where waiting for it costs nothing.
        """
        if not self._hosts.several:
            return self._received
        self._answers.append(self._hosts.largest(self._received))
        return int(self._answers.pop(0)) if len(self._answers) > 1 else 0

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give the signals back to whoever handled them."""
        for number, handler in self._earlier.items():
            signal.signal(number, handler)
