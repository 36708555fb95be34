"""Keep what fits into a row of the training, and count what was built, restarted and refused.

A conversation that is too long starts anew at a page boundary, by the rule of sessions
(`agents/conversation.py`), so it is told the row's length. What cannot start anew, such as one
question with a long reflection, is refused whole: no example is ever cut.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from alignuser_jax.language.counting import TokenCounter
from alignuser_jax.records import CountTokens, Example

LENGTH_STEP = 32
"""Manifests count examples by length, rounded up to a multiple of this."""

WINDOWED = ("visit", "rating")
"""Tasks whose examples are windows of a conversation; ids end with the window's number."""


class RowFit:
    """A filter of examples that counts, by task, for the manifest of the shards.

    Attributes:
        report: Row length, what counted, and by task: examples that were built (`built`), those
            of them that go on after a restart (`restarted`), those refused (`too_long`), the
            tokens of the longest, and how many have up to so many tokens (`lengths`).

    Args:
        row_tokens: Tokens of a row, `TrainConfig.seq_len`; `None` refuses nothing.
        count_tokens: The counter; only a `TokenCounter` can count whole examples.
    """

    def __init__(self, row_tokens: int | None, count_tokens: CountTokens | None):
        self._row = row_tokens
        self._count = count_tokens if isinstance(count_tokens, TokenCounter) else None
        self._tasks: dict[str, dict[str, Any]] = {}
        self.report: dict[str, Any] = {
            "row_tokens": row_tokens,
            "counted_by": self._count.tokenizer.fingerprint if self._count else None,
            "tasks": self._tasks,
        }

    def fitting(self, examples: Iterable[Example]) -> Iterator[Example]:
        """Yield the examples that fit, and count all."""
        for example in examples:
            counts = self._tasks.setdefault(
                example.task, {"built": 0, "restarted": 0, "too_long": 0}
            )
            tokens = self._count.trained(example.messages) if self._count else None
            if tokens is not None and self._row is not None and tokens > self._row:
                counts["too_long"] += 1
                continue
            counts["built"] += 1
            window = example.example_id.rpartition("/")[2]
            counts["restarted"] += example.task in WINDOWED and window != "0"
            if tokens is not None:
                lengths: Counter[str] = counts.setdefault("lengths", Counter())
                lengths[str(-(-tokens // LENGTH_STEP) * LENGTH_STEP)] += 1
                counts["longest"] = max(counts.get("longest", 0), tokens)
            yield example


def fit_lines(manifest: Mapping[str, Any], fingerprint: str, seq_len: int) -> list[str]:
    """Say how the examples of shards fit into rows of a training, and what to do.

    Args:
        manifest: Of the shards.
        fingerprint: Of the tokenizer that trains; "" if it is not known.
        seq_len: Tokens of the longest example that the training takes.
    """
    fit, lines = manifest.get("fit") or {}, []
    known = bool(fingerprint) and fit.get("counted_by") == fingerprint
    for task, entry in manifest["tasks"].items():
        counts = fit.get("tasks", {}).get(task, {})
        refused = counts.get("too_long", 0)
        line = (
            f"{task}: {entry['count']} examples, {counts.get('restarted', 0)} of them after a "
            f"restart, {refused} refused as too long when they were built"
        )
        if known:
            lengths = counts.get("lengths", {})
            late = sum(n for tokens, n in lengths.items() if int(tokens) > seq_len)
            if counts.get("longest", 0) <= seq_len:
                late = 0
            line += f", longest {counts.get('longest', 0)} of {seq_len} tokens"
            if late:
                line += f"; {late} more are too long now and are left out"
            refused += late
        if refused:
            line += ": raise train.seq_len, or lower session.context_tokens or history_items"
        lines.append(line)
    if not known:
        lines.append(
            "the lengths of these examples were not counted with this tokenizer: those of more "
            f"than {seq_len} tokens are left out, and counted at the end"
        )
    return lines
