"""Collect what is wrong with an input: a count and the first line numbers of every problem."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

SHOWN_LINES = 20
"""How many line numbers of a problem are kept; the others are only counted."""
SHOWN_CHARACTERS = 40
"""How much of a bad value an error message quotes."""


class DirtyInput(ValueError):
    """A strict import met rows that it would have to drop; the message is the report."""


@dataclass
class Report:
    """What an import found wrong, dropped and repaired.

    Attributes:
        strict: Whether `check` raises `DirtyInput` when anything would be dropped.
        read: Rows read.
        counts: Problem -> rows dropped for it.
        lines: Problem -> its first `SHOWN_LINES` places, as "file:line".
        repaired: Kind of repair -> texts that were kept, but changed.
        examples: Problem -> its first bad value and what was expected, as part of a sentence;
            printed, but not saved in a manifest.

    Example:
        >>> report = Report()
        >>> report.add("bad rating", "log.csv", [4, 9])
        >>> report.counts, report.lines
        ({'bad rating': 2}, {'bad rating': ['log.csv:4', 'log.csv:9']})
    """

    strict: bool = False
    read: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    lines: dict[str, list[str]] = field(default_factory=dict)
    repaired: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, problem: str, file: str, lines: Iterable[int] | np.ndarray) -> None:
        """Count rows that are dropped for `problem`, and note the first of their lines."""
        lines = np.asarray(list(lines) if not isinstance(lines, np.ndarray) else lines)
        if not lines.size:
            return
        self.counts[problem] = self.counts.get(problem, 0) + int(lines.size)
        noted = self.lines.setdefault(problem, [])
        room = SHOWN_LINES - len(noted)
        noted += [f"{file}:{int(line)}" for line in np.sort(lines)[: max(room, 0)]]

    def example(self, problem: str, value: object, expected: str) -> None:
        """Note a value that has this problem; only the first of a problem is kept."""
        quoted = ascii(str(value)[:SHOWN_CHARACTERS])
        self.examples.setdefault(problem, f", such as {quoted}: expected {expected}")

    def repair(self, kind: str, count: int) -> None:
        """Count texts that were kept, but changed."""
        if count:
            self.repaired[kind] = self.repaired.get(kind, 0) + count

    def check(self) -> None:
        """Raise `DirtyInput` if the import is strict and anything would be dropped."""
        if self.strict and self.counts:
            raise DirtyInput(
                f"{self}\nrepair these lines, or import without --strict to drop them"
            )

    def describe(self) -> dict[str, Any]:
        """Return the report as a manifest holds it."""
        described = {
            "rows_read": self.read,
            "dropped": dict(self.counts),
            "lines": dict(self.lines),
        }
        return described | ({"repaired": dict(self.repaired)} if self.repaired else {})

    @classmethod
    def of(cls, described: Mapping[str, Any]) -> Report:
        """Return the report that a manifest holds, the inverse of `describe`."""
        return cls(
            read=described["rows_read"],
            counts=described["dropped"],
            lines=described["lines"],
            repaired=described.get("repaired", {}),
        )

    def __str__(self) -> str:
        repaired = [f"  {kind}: {count}" for kind, count in self.repaired.items()]
        if repaired:
            repaired = [f"{sum(self.repaired.values())} texts repaired:", *repaired]
        if not self.counts:
            return "\n".join([f"{self.read} rows read, nothing dropped", *repaired])
        rows = [
            f"  {problem}: {count} ({', '.join(self.lines[problem][:5])}"
            f"{', …' if count > 5 else ''}){self.examples.get(problem, '')}"
            for problem, count in self.counts.items()
        ]
        total = sum(self.counts.values())
        return "\n".join([f"{self.read} rows read, {total} dropped:", *rows, *repaired])
