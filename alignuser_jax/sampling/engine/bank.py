"""The automata that lie on the device: one place for each that some row at work follows."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import numpy as np

from alignuser_jax.sampling.config import EngineConfig
from alignuser_jax.sampling.engine.automaton import Automaton
from alignuser_jax.sampling.engine.kernels import Tables


def no_automata(config: EngineConfig) -> Tables:
    """Tables with a place for each slot, in which nothing lies."""
    size, states, edges = config.slots, config.states, config.edges
    return Tables(
        np.full((size, states, edges), -1, np.int32),
        np.zeros((size, states, edges), np.int32),
        np.zeros((size, states), bool),
        np.zeros((size, states), np.int32),
    )


class Bank:
    """As many places as `tables` has; an automaton that nobody follows stays until its place is
    needed, the least recently used first. `install(tables, place, new)` puts one there."""

    def __init__(self, tables: Tables, install: Callable[..., Tables]):
        self._install, self.tables = install, tables
        self._users: OrderedDict[int, int] = OrderedDict()
        self._held: dict[int, tuple[int, Automaton]] = {}
        self._free = list(range(len(tables.token)))

    def acquire(self, automaton: Automaton) -> int:
        """The automaton's place, for one more row."""
        key = id(automaton)
        if key not in self._held:
            place = self._free.pop() if self._free else self._oldest()
            new = Tables(*(getattr(automaton, name) for name in Tables._fields))
            self.tables = self._install(self.tables, np.int32(place), new)
            self._held[key], self._users[key] = (place, automaton), 0
        self._users[key] += 1
        self._users.move_to_end(key)
        return self._held[key][0]

    def warm_up(self) -> None:
        """Compiles `install`, by putting what lies in the first place there again."""
        self.tables = self._install(
            self.tables, np.int32(0), Tables(*(np.asarray(a[0]) for a in self.tables))
        )

    def release(self, automaton: Automaton) -> None:
        """One row less."""
        self._users[id(automaton)] -= 1

    def clear(self) -> None:
        """Nobody follows any automaton any more."""
        self._users = OrderedDict.fromkeys(self._users, 0)

    def _oldest(self) -> int:
        key = next(key for key, users in self._users.items() if not users)
        del self._users[key]
        return self._held.pop(key)[0]
