"""The sizes of the engine, which are part of what decides its results."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class EngineConfig:
    """The geometry of an `Engine`.

    Results are bitwise the same only under the same geometry, so it belongs into a run's
    manifest. `pages`, `reuse` and `cpu_engines` are the exceptions: they change no result.

    Attributes:
        slots: Rows (samples of requests) that are in work at the same time.
        context: Positions that a row may fill with its prompt and reply; a multiple of `chunk`.
        chunk: Tokens of a prompt in one prefill step, and positions of one page of the KV
            cache. A cached prefix is reused in whole pages.
        group: Rows that are decoded or scored together. With more, each step reads the weights
            for more rows; with fewer, less is wasted when few rows have work.
        chunks: Chunks of prompts that are read together; 0 for `group`. A prompt fills many
            chunks, so a CPU that decodes 32 rows at a time may be full with 8 chunks.
        states: The most states of an answer's automaton.
        edges: The most edges of a state, and so the most alternatives of a scored answer.
        prefill: Prompt tokens that are read between two calls of the decode program: what a
            long prompt may cost the rows that wait for their next token.
        steps: Decode steps of one call; rows join and leave between calls.
        cpu_engines: Engines side by side on a CPU, each of this geometry and with a copy of the
            weights; elsewhere there is one for every `tensor` devices. XLA computes the batched
            products of attention on one core, so two cores are fuller with two engines.
        tensor: Devices over which the weights and the cache of one engine are spread.
        strips: How many lengths of strips there are, the longest being `context`; 0 decodes
            through pages. A strip holds a decoding row's pages end to end. On a CPU strips are
            faster when one group goes on with long replies, and slower when groups or rows
            change often. The strips of `group` rows of each length take memory besides the
            pages.
        pages: Pages of the KV cache; 0 for as many as `slots` rows of `context` positions fill.
        reuse: Whether prefixes that the cache holds are reused.

    Example:
        >>> config = EngineConfig(slots=32, context=2048, chunk=64)
        >>> config.row_pages
        32

    Raises:
        ValueError: A size is no whole number or too small, or `context` is no multiple of
            `chunk`.
    """

    slots: int = 64
    context: int = 1024
    chunk: int = 32
    group: int = 8
    chunks: int = 0
    states: int = 256
    edges: int = 32
    prefill: int = 2048
    steps: int = 8
    cpu_engines: int = 1
    tensor: int = 1
    strips: int = 0
    pages: int = 0
    reuse: bool = True

    def __post_init__(self) -> None:
        for name, size in asdict(self).items():
            if name == "reuse":
                continue
            least = 0 if name in ("chunks", "pages", "strips") else 1
            if not isinstance(size, int) or isinstance(size, bool) or size < least:
                raise ValueError(
                    f"EngineConfig.{name}={size!r}: expected a whole number of at least {least}"
                )
        if not isinstance(self.reuse, bool):
            raise ValueError(f"EngineConfig.reuse={self.reuse!r}: expected True or False")
        if self.context % self.chunk:
            raise ValueError(
                f"EngineConfig.context={self.context}: expected a multiple of "
                f"chunk={self.chunk}"
            )

    @property
    def row_pages(self) -> int:
        """Pages that a row of `context` positions fills."""
        return self.context // self.chunk

    @property
    def strip_pages(self) -> tuple[int, ...]:
        """The lengths of strips, in pages; a row takes the shortest that holds all it may fill.

        Without strips it is the one length of a whole row.
        """
        lengths = min(self.strips, self.row_pages) or 1
        return tuple(-(-self.row_pages * (n + 1) // lengths) for n in range(lengths))

    @property
    def all_pages(self) -> int:
        """Pages of the KV cache."""
        return self.pages or self.slots * self.row_pages

    @property
    def chunk_group(self) -> int:
        """Chunks of prompts that are read together."""
        return self.chunks or self.group

    @property
    def calls(self) -> int:
        """Groups of chunks that one call of the prefill program reads."""
        return max(self.prefill // (self.chunk_group * self.chunk), 1)
