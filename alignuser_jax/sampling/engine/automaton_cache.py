"""Keep the automata that rows follow on the device, in as many places as there are slots."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import jax
import numpy as np

from alignuser_jax.sampling.config import EngineConfig
from alignuser_jax.sampling.engine.automaton import Automaton
from alignuser_jax.sampling.engine.decode import AutomatonTables


def empty_tables(config: EngineConfig) -> AutomatonTables[np.ndarray]:
    """Return tables with a place for each slot, none of them in use."""
    size, states, edges = config.slots, config.states, config.edges
    return AutomatonTables(
        token=np.full((size, states, edges), -1, np.int32),
        next=np.zeros((size, states, edges), np.int32),
        free=np.zeros((size, states), bool),
        forced=np.zeros((size, states), np.int32),
        onward=np.zeros((size, states, 2), np.int32),
        within=np.zeros((size, states), np.int8),
    )


class AutomatonCache:
    """The automata on the device. One that no row follows stays until its place is needed.

    The least recently used automaton is replaced first.

    Args:
        tables: The places, on the device.
        install: `install(tables, place, automaton)` returns the tables with the automaton in
            that place.

    Attributes:
        tables: The tables that hold the automata now.
    """

    def __init__(
        self,
        tables: AutomatonTables[jax.Array],
        install: Callable[..., AutomatonTables[jax.Array]],
    ):
        self._install, self.tables = install, tables
        self._users: OrderedDict[int, int] = OrderedDict()
        self._places: dict[int, tuple[int, Automaton]] = {}
        self._free = list(range(len(tables.token)))

    def acquire(self, automaton: Automaton) -> int:
        """Return the automaton's place for one more row, installing it if necessary."""
        key = id(automaton)
        if key not in self._places:
            place = self._free.pop() if self._free else self._evict()
            new = AutomatonTables(
                *(getattr(automaton, name) for name in AutomatonTables._fields)
            )
            self.tables = self._install(self.tables, np.int32(place), new)
            self._places[key], self._users[key] = (place, automaton), 0
        self._users[key] += 1
        self._users.move_to_end(key)
        return self._places[key][0]

    def warm_up(self) -> None:
        """Compile `install`, by installing the content of the first place there again."""
        first = AutomatonTables(*(np.asarray(table[0]) for table in self.tables))
        self.tables = self._install(self.tables, np.int32(0), first)

    def release(self, automaton: Automaton) -> None:
        """Note that one row follows the automaton no more."""
        self._users[id(automaton)] -= 1

    def clear(self) -> None:
        """Note that no row follows any automaton."""
        self._users = OrderedDict.fromkeys(self._users, 0)

    def _evict(self) -> int:
        """Return the place of the least recently used automaton that no row follows."""
        key = next(key for key, users in self._users.items() if not users)
        del self._users[key]
        return self._places.pop(key)[0]
