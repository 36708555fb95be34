"""What lies on the device (weights, pages, the newest hidden state of each slot, automata) and
what is done there, group by group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from alignuser_jax.model import Decoder
from alignuser_jax.sampling.config import EngineConfig
from alignuser_jax.sampling.engine.bank import Bank, no_automata
from alignuser_jax.sampling.engine.forward import (
    Pages,
    Strips,
    init_pages,
    init_strips,
    page_bytes,
)
from alignuser_jax.sampling.engine.kernels import Decoded, Programs, Tables, Vocabulary
from alignuser_jax.sampling.engine.pack import (
    Reply,
    cut_suffixes,
    pack_copies,
    pack_prompts,
    pack_replies,
    pack_suffixes,
    parts,
    sort_replies,
)
from alignuser_jax.sampling.engine.prepare import Row


class Device:
    """`tables[S, M]` says which pages each slot uses; the engine writes it. After an exception
    what the pages held is lost: `clear` before going on."""

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: Any,
        config: EngineConfig,
        ends: Sequence[int],
        mesh: Mesh | None,
    ):
        self._config, self._mesh, self._tokenizer = config, mesh, tokenizer
        self._shape, self._dtype = decoder.config, decoder.dtype
        self.programs = Programs(decoder, ends=ends, steps=config.steps, mesh=mesh)
        self.bank = Bank(self._put(no_automata(config)), self._install)
        self.tables = np.zeros((config.slots, config.row_pages), np.int32)
        allowed = np.arange(decoder.config.vocab_size) < tokenizer.vocab_size
        allowed[list(tokenizer.special_ids)] = False
        self._vocabulary = Vocabulary(allowed, np.zeros_like(allowed))
        self._lines_known = False
        self._cache: Pages | None = None
        self._strips: dict[int, tuple[list[tuple[int, Row]], Strips]] = {}  # by their pages
        self._last: jax.Array | None = None

    @property
    def cache_bytes(self) -> int:
        page = page_bytes(self._shape, self._config.chunk, self._dtype)
        strips = sum(self._config.strip_pages) if self._config.strips else 0
        return (self._config.all_pages + 1 + self._config.group * strips) * page

    def clear(self) -> None:
        """Frees the pages; new ones are made at the next use."""
        self._cache = self._last = None
        self._strips.clear()

    def read_prompts(self, pieces: Sequence[tuple[int, Row, int]]) -> int:
        """Reads these pieces of prompts, as many as one call takes, and gives the groups."""
        config = self._config
        sizes = {"calls": config.calls, "group": config.group, "chunk": config.chunk}
        chunks, ends, groups = pack_prompts(pieces, **sizes)
        with self._here():
            cache, last = self._memory()
            self._cache, self._last = self.programs.prefill(
                self.programs.leaves, cache, last, self.tables, chunks, ends, groups
            )
        return int(groups[0])

    def copy(self, copies: Sequence[tuple[int, int, int, int]]) -> None:
        """Gives slots what other slots have read: (from slot, to slot, from page, to page)."""
        for part in parts(copies, self._config.group):
            self._copy(part)

    def _copy(self, part) -> None:
        with self._here():
            packed = pack_copies(part, group=self._config.group)
            self._cache, self._last = self.programs.copy(*self._memory(), packed)

    def score(self, rows: Mapping[int, Row]) -> dict[int, np.ndarray]:
        """The log-probability of each alternative of the closed sets of rows that have been
        read: float64 `[alternatives]` by slot."""
        totals: dict[int, np.ndarray] = {}
        for part in parts(list(rows.items()), self._config.group):
            firsts = [[suffix[0] for suffix in row.closed.suffixes] for _, row in part]
            found = self._next_tokens([slot for slot, _ in part], firsts)
            for (slot, _), ids, values in zip(part, firsts, found, strict=False):
                totals[slot] = values[: len(ids)].copy()
        longer = {slot: row for slot, row in rows.items() if not row.closed.single}
        for number in range(max((len(r.closed.suffixes) for r in longer.values()), default=0)):
            for part in parts(cut_suffixes(longer, number), self._config.group):
                packed, found = self._suffixes(part)
                for (slot, *_), count, values in zip(part, packed.count, found, strict=False):
                    totals[slot][number] += values[:count].sum()
        return totals

    def _next_tokens(self, slots: Sequence[int], ids: Sequence[Sequence[int]]) -> np.ndarray:
        group = self._config.group
        slot, wanted = (
            np.zeros(group, np.int32),
            np.zeros((group, self._config.edges), np.int32),
        )
        for i, (of, row) in enumerate(zip(slots, ids, strict=True)):
            slot[i], wanted[i, : len(row)] = of, row
        with self._here():
            _, last = self._memory()
            found = self.programs.closed_set(self.programs.leaves, last, slot, wanted)
        return np.asarray(found, np.float64)

    def _suffixes(self, part):
        with self._here():
            cache, _ = self._memory()
            packed = pack_suffixes(part, group=self._config.group)
            self._cache, found = self.programs.suffix(
                self.programs.leaves, cache, self.tables, packed
            )
        return packed, np.asarray(found, np.float64)

    def decode(self, replies: Sequence[Reply]) -> tuple[dict[int, Decoded], int]:
        """Some steps of each reply: what was decoded by slot, and the steps taken."""
        if any(row.reasoning for _, row, *_ in replies):
            self._learn_lines()
        results, steps = {}, 0
        for pages, of_length in self._by_strip(replies).items():
            for part in parts(sort_replies(of_length, self._config.steps), self._config.group):
                out, taken = self._decode(part, pages)
                for i, (slot, *_) in enumerate(part):
                    results[slot] = Decoded(*(values[i] for values in out))
                steps += taken
        return results, steps

    def _by_strip(self, replies: Sequence[Reply]) -> dict[int, list[Reply]]:
        """The replies by the pages of the strip that they take: which depends on the request
        alone, as a row's bits may."""
        chosen: dict[int, list[Reply]] = {}
        for reply in replies:
            needs = -(-reply[1].needs // self._config.chunk)
            pages = next(n for n in self._config.strip_pages if n >= needs)
            chosen.setdefault(pages, []).append(reply)
        return chosen

    def _decode(self, part: Sequence[Reply], pages: int) -> tuple[Decoded, int]:
        rows = pack_replies(part, group=self._config.group)
        programs = self.programs
        with self._here():
            args = self.tables[:, :pages], rows, self.bank.tables, self._vocabulary
            cache, last = self._memory()
            strips = self._laid(part, rows.slot, pages) if self._config.strips else None
            self._cache, self._last, strips, out, steps = programs.decode(
                programs.leaves, cache, last, strips, *args
            )
            if strips is not None:
                self._strips[pages] = [(slot, row) for slot, row, *_ in part], strips
            return Decoded(*map(np.asarray, jax.device_get(out))), int(steps)

    def _laid(self, part: Sequence[Reply], slot: np.ndarray, pages: int) -> Strips:
        """The rows' strips. Those of the last rows of this length are still there: laid out
        anew where these are others."""
        rows = [(slot, row) for slot, row, *_ in part]
        if pages not in self._strips:
            size = len(slot), pages * self._config.chunk
            strips = init_strips(self._shape, *size, self._dtype)
            self._strips[pages] = [], strips if self._mesh else self._put(strips)
        held, strips = self._strips.pop(pages)
        if rows and len(held) == len(rows):
            pairs = zip(held, rows, strict=True)
            if all(slot == before and row is then for (before, then), (slot, row) in pairs):
                return strips
        return self.programs.lay(strips, self._cache, self.tables[:, :pages], slot)

    def compile_all(self) -> None:
        """Runs every program once, on nothing."""
        self.bank.warm_up()
        self.read_prompts([])
        self._copy([])
        self._next_tokens([], [])
        self._suffixes([])
        for pages in self._config.strip_pages:
            self._decode([], pages)

    def _install(self, *arguments) -> Tables:
        with self._here():
            return self.programs.install(*arguments)

    def _put(self, tree):
        """On every device of the mesh, or bound to that of the weights, as the programs leave
        it: nothing is compiled twice."""
        if self._mesh is None:
            return jax.device_put(tree, *self.programs.leaves[0].devices())
        return jax.device_put(tree, NamedSharding(self._mesh, PartitionSpec()))

    def wait(self) -> None:
        """Until all that was begun is done."""
        jax.block_until_ready((self._cache, self._last))

    def _memory(self) -> tuple[Pages, jax.Array]:
        if self._cache is None:
            config = self._config
            cache = init_pages(self._shape, config.all_pages, config.chunk, self._dtype)
            self._cache = cache if self._mesh else self._put(cache)
            shape = config.slots, self._shape.hidden_size
            self._last = self._put(jnp.zeros(shape, self._dtype))
        return self._cache, self._last

    def _here(self):
        return nullcontext() if self._mesh is None else jax.set_mesh(self._mesh)

    def _learn_lines(self) -> None:
        """Which tokens end a line; needed once, and only by free reasoning before an answer."""
        if self._lines_known:
            return
        ends = np.zeros_like(self._vocabulary.ends_line)
        for token in range(self._tokenizer.vocab_size):
            ends[token] = self._tokenizer.decode([token]).endswith("\n")
        self._vocabulary = self._vocabulary._replace(ends_line=ends)
        self._lines_known = True
