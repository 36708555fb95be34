"""Hold what lies on the device, and run the compiled programs group by group.

On the device lie the weights, the pages of the KV cache, the newest hidden state of each slot,
and the automata.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from alignuser_jax.language.tokenizer import TextTokenizer
from alignuser_jax.model import Decoder
from alignuser_jax.sampling.config import EngineConfig
from alignuser_jax.sampling.engine.automaton import ClosedSet
from alignuser_jax.sampling.engine.automaton_cache import AutomatonCache, empty_tables
from alignuser_jax.sampling.engine.decode import AutomatonTables, Decoded, Vocabulary
from alignuser_jax.sampling.engine.forward import (
    Strips,
    cache_dtype,
    init_pages,
    init_strips,
    page_bytes,
)
from alignuser_jax.sampling.engine.kernels import Memory, Programs, SuffixChunks
from alignuser_jax.sampling.engine.pack import (
    DecodingRow,
    PageCopy,
    PromptPiece,
    SuffixPiece,
    cut_suffixes,
    pack_copies,
    pack_prompts,
    pack_rows,
    pack_suffixes,
    parts,
    sort_decoding,
)
from alignuser_jax.sampling.engine.prepare import Row


class Device:
    """The device's side of an engine.

    After an exception what the pages held is lost: call `clear` before going on.

    Args:
        decoder: The model.
        tokenizer: Its tokenizer.
        config: The engine's sizes.
        end_ids: Ids that end free text.
        mesh: The devices over whose axis "tensor" weights and cache are spread, if any.

    Attributes:
        block_table: int32 `[S, M]`, the pages of each slot; the engine writes it.
        automata: The automata that rows follow.
        programs: The compiled programs.
    """

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: TextTokenizer,
        config: EngineConfig,
        end_ids: Sequence[int],
        mesh: Mesh | None,
    ):
        self._config, self._mesh, self._tokenizer = config, mesh, tokenizer
        self._shape, self._dtype = decoder.config, decoder.dtype
        self.programs = Programs(decoder, end_ids=end_ids, steps=config.steps, mesh=mesh)
        (platform,) = {device.platform for device in self.programs.leaves[0].devices()}
        self._cache_dtype = cache_dtype(decoder.dtype, platform)
        tables: AutomatonTables[jax.Array] = self._put(empty_tables(config))
        self.automata = AutomatonCache(tables, self._install)
        self.block_table = np.zeros((config.slots, config.row_pages), np.int32)
        allowed = np.arange(decoder.config.vocab_size) < tokenizer.vocab_size
        allowed[list(tokenizer.special_ids)] = False
        self._vocabulary = Vocabulary(allowed, *2 * [np.zeros_like(allowed)])
        self._knows_line_ends = False
        self._memory: Memory | None = None
        # by their length in pages, with the rows that they hold
        self._strips: dict[int, tuple[list[tuple[int, Row]], Strips]] = {}

    @property
    def cache_bytes(self) -> int:
        """Bytes of keys and values, on all devices of the mesh together."""
        page = page_bytes(self._shape, self._config.chunk, self._cache_dtype)
        strips = sum(self._config.strip_pages) if self._config.strips else 0
        return (self._config.all_pages + 1 + self._config.group * strips) * page

    def clear(self) -> None:
        """Free the pages; new ones are allocated at the next use."""
        self._memory = None
        self._strips.clear()

    def read_prompts(self, pieces: Sequence[PromptPiece]) -> int:
        """Read pieces of prompts, as many as one call takes; return the number of groups."""
        config = self._config
        sizes = {"calls": config.calls, "group": config.chunk_group, "chunk": config.chunk}
        chunks, ends, groups = pack_prompts(pieces, **sizes)
        with self._on_mesh():
            self._memory = self.programs.prefill(
                self.programs.leaves,
                self._allocated(),
                self.block_table,
                chunks,
                ends,
                groups,
            )
        return int(groups[0])

    def copy(self, copies: Sequence[PageCopy]) -> None:
        """Give slots what other slots have read."""
        for part in parts(copies, self._config.group):
            self._copy(part)

    def _copy(self, part: Sequence[PageCopy]) -> None:
        with self._on_mesh():
            packed = pack_copies(part, group=self._config.group)
            self._memory = self.programs.copy(self._allocated(), packed)

    def score(self, rows: Mapping[int, tuple[Row, ClosedSet]]) -> dict[int, np.ndarray]:
        """Score the alternatives of rows whose prompts have been read.

        Args:
            rows: Rows and their alternatives, by slot.

        Returns:
            The log probability of each alternative, float64 `[alternatives]`, by slot.
        """
        totals: dict[int, np.ndarray] = {}
        for part in parts(list(rows.items()), self._config.group):
            firsts = [[suffix[0] for suffix in closed.suffixes] for _, (_, closed) in part]
            scores = self._next_tokens([slot for slot, _ in part], firsts)
            for (slot, _), ids, values in zip(part, firsts, scores, strict=False):
                totals[slot] = values[: len(ids)].copy()
        longer = {
            slot: (row, closed.suffixes)
            for slot, (row, closed) in rows.items()
            if not closed.single
        }
        most = max((len(suffixes) for _, suffixes in longer.values()), default=0)
        for number in range(most):
            for pieces in parts(cut_suffixes(longer, number), self._config.group):
                packed, scores = self._suffixes(pieces)
                for piece, length, values in zip(pieces, packed.length, scores, strict=False):
                    totals[piece.slot][number] += values[:length].sum()
        return totals

    def _next_tokens(self, slots: Sequence[int], ids: Sequence[Sequence[int]]) -> np.ndarray:
        """Return the log probability of each of `ids` as the slots' next token."""
        group, edges = self._config.group, self._config.edges
        packed_slots = np.zeros(group, np.int32)
        packed_ids = np.zeros((group, edges), np.int32)
        for i, (slot, tokens) in enumerate(zip(slots, ids, strict=True)):
            packed_slots[i], packed_ids[i, : len(tokens)] = slot, tokens
        with self._on_mesh():
            scores = self.programs.closed_set(
                self.programs.leaves, self._allocated().slot_state, packed_slots, packed_ids
            )
        return np.asarray(scores, np.float64)

    def _suffixes(
        self, pieces: Sequence[SuffixPiece]
    ) -> tuple[SuffixChunks[np.ndarray], np.ndarray]:
        """Read one group of pieces; return it, and the log probability of each target."""
        with self._on_mesh():
            memory = self._allocated()
            packed = pack_suffixes(pieces, group=self._config.group)
            pages, scores = self.programs.suffix(
                self.programs.leaves, memory.pages, self.block_table, packed
            )
            self._memory = memory._replace(pages=pages)
        return packed, np.asarray(scores, np.float64)

    def decode(self, rows: Sequence[DecodingRow]) -> tuple[dict[int, Decoded[np.ndarray]], int]:
        """Decode some steps of each row; return what was added, by slot, and the steps."""
        if any(decoding.row.needs_line_ends for decoding in rows):
            self._learn_line_ends()
        results, steps = {}, 0
        for pages, of_length in self._by_strip(rows).items():
            ordered = sort_decoding(of_length, self._config.steps)
            for part in parts(ordered, self._config.group):
                out, steps_taken = self._decode(part, pages)
                for i, decoding in enumerate(part):
                    results[decoding.slot] = Decoded(*(values[i] for values in out))
                steps += steps_taken
        return results, steps

    def _by_strip(self, rows: Sequence[DecodingRow]) -> dict[int, list[DecodingRow]]:
        """Return the rows by the length of their strip, in pages.

        The length depends on the request alone, since a row's bits may depend on it.
        """
        by_pages: dict[int, list[DecodingRow]] = {}
        for decoding in rows:
            needed = -(-decoding.row.most_positions // self._config.chunk)
            pages = next(n for n in self._config.strip_pages if n >= needed)
            by_pages.setdefault(pages, []).append(decoding)
        return by_pages

    def _decode(
        self, part: Sequence[DecodingRow], pages: int
    ) -> tuple[Decoded[np.ndarray], int]:
        packed = pack_rows(part, group=self._config.group)
        with self._on_mesh():
            memory = self._allocated()
            strips = None
            if self._config.strips:
                strips = self._strips_of(part, packed.slot, pages, memory)
            self._memory, strips, out, steps = self.programs.decode(
                self.programs.leaves,
                memory,
                strips,
                self.block_table[:, :pages],
                packed,
                self.automata.tables,
                self._vocabulary,
            )
            if strips is not None:
                self._strips[pages] = [(d.slot, d.row) for d in part], strips
            return Decoded(*map(np.asarray, jax.device_get(out))), int(steps)

    def _strips_of(
        self, part: Sequence[DecodingRow], slot: np.ndarray, pages: int, memory: Memory
    ) -> Strips:
        """Return the strips of the rows, copied from their pages if they hold other rows."""
        rows = [(decoding.slot, decoding.row) for decoding in part]
        if pages not in self._strips:
            size = len(slot), pages * self._config.chunk
            strips = init_strips(self._shape, *size, self._cache_dtype)
            self._strips[pages] = [], strips if self._mesh else self._put(strips)
        last_rows, strips = self._strips.pop(pages)
        if rows and len(last_rows) == len(rows):
            pairs = zip(last_rows, rows, strict=True)
            if all(slot == last and row is before for (last, before), (slot, row) in pairs):
                return strips
        table = self.block_table[:, :pages]
        return self.programs.fill_strips(strips, memory.pages, table, slot)

    def compile_all(self) -> None:
        """Run every program once, on nothing."""
        self.automata.warm_up()
        self.read_prompts([])
        self._copy([])
        self._next_tokens([], [])
        self._suffixes([])
        for pages in self._config.strip_pages:
            self._decode([], pages)

    def _install(
        self,
        tables: AutomatonTables[jax.Array],
        place: np.int32,
        new: AutomatonTables[np.ndarray],
    ) -> AutomatonTables[jax.Array]:
        with self._on_mesh():
            return self.programs.install(tables, place, new)

    def _put(self, tree: Any) -> Any:
        """Put arrays where the programs leave them, so that nothing is compiled twice.

        That is on every device of the mesh, or bound to the device of the weights.
        """
        if self._mesh is None:
            return jax.device_put(tree, *self.programs.leaves[0].devices())
        return jax.device_put(tree, NamedSharding(self._mesh, PartitionSpec()))

    def wait(self) -> None:
        """Wait until the device has done everything that was started."""
        jax.block_until_ready(self._memory)

    def _allocated(self) -> Memory:
        """Return the memory, allocated if there is none."""
        if self._memory is None:
            config = self._config
            pages = init_pages(self._shape, config.all_pages, config.chunk, self._cache_dtype)
            shape = config.slots, self._shape.hidden_size
            slot_state = self._put(jnp.zeros(shape, self._dtype))
            self._memory = Memory(pages if self._mesh else self._put(pages), slot_state)
        return self._memory

    def _on_mesh(self) -> AbstractContextManager:
        return nullcontext() if self._mesh is None else jax.set_mesh(self._mesh)

    def _learn_line_ends(self) -> None:
        """Find out which tokens end a line, or go on after it; few requests need it."""
        if self._knows_line_ends:
            return
        ends, spans = (np.zeros_like(self._vocabulary.ends_line) for _ in range(2))
        for token in range(self._tokenizer.vocab_size):
            text = self._tokenizer.decode([token])
            ends[token], spans[token] = text.endswith("\n"), "\n" in text.rstrip("\n")
        self._vocabulary = self._vocabulary._replace(ends_line=ends, spans_lines=spans)
        self._knows_line_ends = True
