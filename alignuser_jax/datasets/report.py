"""What was wrong with the input: counts and the first line numbers of every problem."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

SHOWN_LINES = 20
SHOWN_CHARACTERS = 40


class DirtyInput(ValueError):
    """Raised by a strict import; the message is the report."""


@dataclass
class Report:
    """Collects problems. `strict` raises `DirtyInput` in `check`, otherwise lines are dropped
    and counted. `repaired` counts texts that were kept, but not as they stood, `found` has the
    first value of a problem and what was expected."""

    strict: bool = False
    read: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    lines: dict[str, list[str]] = field(default_factory=dict)
    repaired: dict[str, int] = field(default_factory=dict)
    found: dict[str, str] = field(default_factory=dict)

    def add(self, problem: str, file: str, lines: Iterable[int] | np.ndarray) -> None:
        lines = np.asarray(list(lines) if not isinstance(lines, np.ndarray) else lines)
        if not lines.size:
            return
        self.counts[problem] = self.counts.get(problem, 0) + int(lines.size)
        shown = self.lines.setdefault(problem, [])
        room = SHOWN_LINES - len(shown)
        shown += [f"{file}:{int(line)}" for line in np.sort(lines)[: max(room, 0)]]

    def example(self, problem: str, value: object, expected: str) -> None:
        """What a value with this problem looks like; the first one is kept."""
        shown = str(value)[:SHOWN_CHARACTERS]
        self.found.setdefault(problem, f", such as {ascii(shown)}: expected {expected}")

    def repair(self, what: str, count: int) -> None:
        if count:
            self.repaired[what] = self.repaired.get(what, 0) + count

    def check(self) -> None:
        if self.strict and self.counts:
            raise DirtyInput(
                f"{self}\nrepair these lines, or import without --strict to drop them"
            )

    def describe(self) -> dict[str, Any]:
        described = {
            "rows_read": self.read,
            "dropped": dict(self.counts),
            "lines": dict(self.lines),
        }
        return described | ({"repaired": dict(self.repaired)} if self.repaired else {})

    @classmethod
    def of(cls, described: Mapping[str, Any]) -> Report:
        """The report that a manifest holds."""
        return cls(
            False,
            described["rows_read"],
            described["dropped"],
            described["lines"],
            described.get("repaired", {}),
        )

    def __str__(self) -> str:
        repaired = [f"  {what}: {count}" for what, count in self.repaired.items()]
        if repaired:
            repaired = [f"{sum(self.repaired.values())} texts repaired:", *repaired]
        if not self.counts:
            return "\n".join([f"{self.read} rows read, nothing dropped", *repaired])
        rows = [
            f"  {problem}: {count} ({', '.join(self.lines[problem][:5])}"
            f"{', …' if count > 5 else ''}){self.found.get(problem, '')}"
            for problem, count in self.counts.items()
        ]
        total = sum(self.counts.values())
        return "\n".join([f"{self.read} rows read, {total} dropped:", *rows, *repaired])
