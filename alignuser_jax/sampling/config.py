"""The engine's geometry."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EngineConfig:
    """Results are bitwise the same only under the same geometry (it belongs into a run's
    manifest); `pages` and `reuse` change no result.

    Attributes:
      slots: rows that are at work at a time.
      context: positions that a row may fill, prompt and reply.
      chunk: tokens of a prompt that are read at a time, and positions of a page of the cache;
        a beginning that lies ready is reused by whole pages.
      group: rows that are computed at a time: more for a device that is not full with `group`
        chunks of prefill, fewer waste less where few rows have work.
      states, edges: bound an answer's automaton.
      prefill: tokens of prompts that are read between two calls of the decode program: what a
        long prompt may cost those who wait for their next token.
      steps: decode steps of a call; after each call rows join and leave.
      tensor: devices over which one engine's weights and cache are spread.
      strips: lengths of the strips in which rows that decode have their pages end to end, the
        longest being `context`; 0: decode through pages. On a CPU strips are faster where one
        group goes on with long replies, and slower where groups or rows change often; `group`
        rows of each length take their room twice.
      pages: pages of the cache; 0 for as many as `slots` rows of `context` positions fill.
      reuse: whether beginnings that lie ready are used.
    """

    slots: int = 64
    context: int = 1024
    chunk: int = 32
    group: int = 8
    states: int = 256
    edges: int = 32
    prefill: int = 2048
    steps: int = 8
    tensor: int = 1
    strips: int = 0
    pages: int = 0
    reuse: bool = True

    def __post_init__(self):
        sizes = {name: size for name, size in vars(self).items() if name != "reuse"}
        if min(size + (name in ("pages", "strips")) for name, size in sizes.items()) < 1:
            raise ValueError(f"every size of the engine must be positive, got {self}")
        if self.context % self.chunk:
            raise ValueError(f"context={self.context} must be a multiple of chunk={self.chunk}")

    @property
    def row_pages(self) -> int:
        return self.context // self.chunk

    @property
    def strip_pages(self) -> tuple[int, ...]:
        """Pages of a strip: a row takes the shortest that holds all it may fill."""
        lengths = min(self.strips, self.row_pages) or 1
        return tuple(-(-self.row_pages * (n + 1) // lengths) for n in range(lengths))

    @property
    def all_pages(self) -> int:
        return self.pages or self.slots * self.row_pages

    @property
    def calls(self) -> int:
        """Groups of one call of the prefill program."""
        return max(self.prefill // (self.group * self.chunk), 1)
