"""Which prefix each slot of the cache still holds, and which slot a new row should take."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class Residents:
    """Per slot the names of the whole chunks whose keys and values it holds (0 = none).

    A chunk's name covers everything before it, so the number of equal names is the length of
    the common prefix in chunks. Only prefilled chunks count, never decoded tokens: what is
    reused was computed by the same program as what it replaces, so reuse changes no bit of a
    result.
    """

    def __init__(self, slots: int, chunks: int):
        self._names = np.zeros((slots, chunks), np.uint64)
        self._used = np.zeros(slots, np.int64)
        self._clock = 0

    def common(self, prefixes: Sequence[np.ndarray]) -> np.ndarray:
        """Common chunks of every row with every slot: `int64[rows, slots]`."""
        wanted = np.zeros((len(prefixes), self._names.shape[1]), np.uint64)
        for row, names in enumerate(prefixes):
            wanted[row, : len(names)] = names
        equal = (wanted[:, None] == self._names[None]) & (wanted != 0)[:, None]
        return equal.sum(axis=2)

    def choose(self, prefixes: Sequence[np.ndarray]) -> tuple[list[int], list[int], list[int]]:
        """The rows to run now, their slots and the chunks each finds there.

        Rows that find most go first (sessions under way before new ones), ties in the given
        order; a tie between slots goes to the least recently used. Which rows run together
        changes no result, only how much is computed.
        """
        common = self.common(prefixes)
        count = min(len(prefixes), len(self._used))
        first = np.argsort(-common.max(axis=1, initial=0), kind="stable")[:count]
        order = np.argsort(self._used, kind="stable")  # least recently used first
        score = common[np.sort(first)][:, order]
        rows = np.sort(first).tolist()
        slots, found = [0] * count, [0] * count
        for _ in range(count):
            row, column = np.unravel_index(score.argmax(), score.shape)
            slots[row], found[row] = int(order[column]), int(score[row, column])
            score[row], score[:, column] = -1, -1
        return rows, slots, found

    def hold(self, slot: int, names: np.ndarray) -> None:
        """The slot now holds exactly these chunks."""
        self._clock += 1
        self._names[slot] = 0
        self._names[slot, : len(names)] = names
        self._used[slot] = self._clock

    def clear(self) -> None:
        self._names[:] = 0
