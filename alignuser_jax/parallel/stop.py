"""Leaving when asked to: a signal to any process lets all of them save and leave together."""

from __future__ import annotations

import signal
import threading
from types import TracebackType
from typing import Any

import jax

from alignuser_jax.parallel import Hosts

EXIT_CODES = {signal.SIGTERM: 85, signal.SIGINT: 130}
"""85: stopped from outside and saved; launchers start the same command again."""


class Stop:
    """Listens for SIGTERM and SIGINT while entered; a second one acts at once, as if nobody
    listened."""

    def __init__(self, hosts: Hosts):
        self._hosts = hosts
        self._received = 0
        self._earlier: dict[int, Any] = {}
        self._answers: list[jax.Array] = []

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            for number in EXIT_CODES:
                self._earlier[number] = signal.getsignal(number) or signal.SIG_DFL
                signal.signal(number, self._note)
        return self

    def _note(self, number: int, _: Any) -> None:
        self._received = number
        signal.signal(number, self._earlier[number])

    def asked(self) -> int:
        """The signal to leave on, or 0. Every process asks once a step and hears the same.

        Among several processes the answer is that of the step before: it is worked out on the
        devices behind a step, where waiting for it costs nothing.
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
        for number, handler in self._earlier.items():
            signal.signal(number, handler)
