"""The engine's compiled programs: read prompts, decode some steps, score closed sets.

Every program works on groups of G rows with the same shapes, whichever rows are in them and
however many, so a row's kernels never depend on its neighbours (docs/architecture.md decision
7). Whatever a request may choose is traced.

Letters in shapes: S slots, M pages of a row, G rows of a group, W groups of a call, C tokens of
a chunk, J tokens of a jump, D hidden size, E edges of an automaton's state.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.sharding import Mesh

from alignuser_jax.model import Decoder, unstack
from alignuser_jax.parallel import constrain, place
from alignuser_jax.sampling.engine.decode import (
    AutomatonTables,
    Decoded,
    DecodeRows,
    Decoding,
    Vocabulary,
    logits_of,
    logprobs_of,
)
from alignuser_jax.sampling.engine.forward import (
    Pages,
    Strips,
    TokenBlock,
    finish_last_layer,
    forward,
    forward_prompt,
    pages_to_strips,
)
from alignuser_jax.sampling.engine.sample import ArrayT


class Memory(NamedTuple):
    """What the device remembers of the rows from one program to the next.

    Attributes:
        pages: The KV cache.
        slot_state: `[S, D]`, the hidden state of the last token of each slot's row.
    """

    pages: Pages
    slot_state: jax.Array


class PromptChunks(NamedTuple, Generic[ArrayT]):
    """Chunks of prompts, in groups; a row's earlier chunks are in the same or earlier groups.

    Attributes:
        tokens: int32 `[W, G, C]`.
        slot: int32 `[W, G]`, the row's slot.
        start: int32 `[W, G]`, the position of the first token.
        length: int32 `[W, G]`, tokens of the chunk; 0 for padding.
        final: bool `[W, G]`, whether the row's prompt ends here.
        adapter: int32 `[W, G]`, the number of the row's adapter, from 1; 0 for the base model.
    """

    tokens: ArrayT
    slot: ArrayT
    start: ArrayT
    length: ArrayT
    final: ArrayT
    adapter: ArrayT


class PromptEnds(NamedTuple, Generic[ArrayT]):
    """The last token of each final chunk of the same call, in groups.

    Attributes:
        slot: int32 `[W, G]`.
        position: int32 `[W, G]`.
        active: bool `[W, G]`, false for padding.
        adapter: int32 `[W, G]`.
    """

    slot: ArrayT
    position: ArrayT
    active: ArrayT
    adapter: ArrayT


class PageCopies(NamedTuple, Generic[ArrayT]):
    """Rows that get what another row of the same prompt has read.

    They get its last page and its hidden state; earlier pages are shared.

    Attributes:
        slot: int32 `[G]`, the slot to copy from.
        to_slot: int32 `[G]`, the slot to copy to.
        page: int32 `[G]`, the page to copy from.
        to_page: int32 `[G]`, the page to copy to.
        active: bool `[G]`, false for padding.
    """

    slot: ArrayT
    to_slot: ArrayT
    page: ArrayT
    to_page: ArrayT
    active: ArrayT


class SuffixChunks(NamedTuple, Generic[ArrayT]):
    """Up to J tokens of an alternative after a prompt, each with the token that should follow.

    Attributes:
        tokens: int32 `[G, J]`.
        targets: int32 `[G, J]`, the tokens that should follow.
        slot: int32 `[G]`.
        start: int32 `[G]`, the position of the first token.
        length: int32 `[G]`, tokens of the chunk; 0 for padding.
        adapter: int32 `[G]`.
    """

    tokens: ArrayT
    targets: ArrayT
    slot: ArrayT
    start: ArrayT
    length: ArrayT
    adapter: ArrayT


Leaves = list[jax.Array]
"""The decoder's weights, in the order of its tree."""


class Programs:
    """The compiled functions over one decoder.

    Args:
        decoder: The model. Its weights are copied, spread over `mesh` if there is one.
        end_ids: Ids that end free text.
        steps: Decode steps of a call, of free text and of answers each.
        mesh: The devices over whose axis "tensor" the weights are spread.

    Attributes:
        leaves: The weights; the first argument of the programs that need them.
        compilations: How many programs were traced.
    """

    def __init__(
        self, decoder: Decoder, *, end_ids: Sequence[int], steps: int, mesh: Mesh | None = None
    ):
        if mesh is not None:  # spread before unstacking, so that its copies are spread too
            graphdef, state = nnx.split(decoder)
            decoder = nnx.merge(graphdef, place(state, mesh))
        self._graphdef, state = nnx.split(unstack(decoder))
        if mesh is not None:
            state = place(state, mesh)
        self.leaves, self._treedef = jax.tree.flatten(state)
        self._end_ids, self._steps = tuple(end_ids), steps
        self.compilations = 0
        self.prefill = jax.jit(self._prefill, donate_argnums=(1,))
        self.copy = jax.jit(self._copy, donate_argnums=(0,))
        self.fill_strips = jax.jit(self._fill_strips, donate_argnums=(0,))
        self.decode = jax.jit(self._decode, donate_argnums=(1, 2))
        self.closed_set = jax.jit(self._closed_set)
        self.suffix = jax.jit(self._suffix, donate_argnums=(1,))
        self.install = jax.jit(self._install, donate_argnums=(0,))

    def _decoder(self, leaves: Leaves) -> Decoder:
        return nnx.merge(self._graphdef, jax.tree.unflatten(self._treedef, leaves))

    def _prefill(
        self,
        leaves: Leaves,
        memory: Memory,
        block_table: jax.Array,
        chunks: PromptChunks[jax.Array],
        ends: PromptEnds[jax.Array],
        groups: jax.Array,
    ) -> Memory:
        """Read the first `groups[0]` groups of chunks, then finish `groups[1]` groups of ends.

        `block_table [S, M]` holds the pages of each slot.
        """
        self.compilations += 1
        decoder = self._decoder(leaves)
        slots = memory.slot_state.shape[0]  # also the slot of nobody

        def read_group(carry):
            i, pages, entering = carry
            group = PromptChunks(*(a[i] for a in chunks))
            x, pages = forward_prompt(decoder, *_inputs(group, block_table), pages)
            end = jnp.maximum(group.length - 1, 0)[:, None, None]
            at = jnp.where(group.final, group.slot, slots)
            newest = jnp.take_along_axis(x, end, axis=1)[:, 0]
            return i + 1, pages, entering.at[at].set(newest, mode="drop")

        start = (jnp.int32(0), memory.pages, jnp.zeros_like(memory.slot_state))
        _, pages, entering = lax.while_loop(lambda c: c[0] < groups[0], read_group, start)

        def finish_group(carry):
            i, slot_state = carry
            group = PromptEnds(*(a[i] for a in ends))
            x, positions = entering[group.slot][:, None], group.position[:, None]
            table = block_table[group.slot]
            hidden = finish_last_layer(decoder, x, positions, group.adapter, table, pages)
            at = jnp.where(group.active, group.slot, slots)
            return i + 1, slot_state.at[at].set(hidden[:, 0], mode="drop")

        ends_start = (jnp.int32(0), memory.slot_state)
        _, slot_state = lax.while_loop(lambda c: c[0] < groups[1], finish_group, ends_start)
        return _constrained(pages, slot_state)

    def _copy(self, memory: Memory, copies: PageCopies[jax.Array]) -> Memory:
        self.compilations += 1
        pages, slot_state = memory
        page = jnp.where(copies.active, copies.to_page, pages.k[0].shape[0])
        slot = jnp.where(copies.active, copies.to_slot, slot_state.shape[0])
        pages = jax.tree.map(lambda a: a.at[page].set(a[copies.page], mode="drop"), pages)
        return _constrained(
            pages, slot_state.at[slot].set(slot_state[copies.slot], mode="drop")
        )

    def _closed_set(
        self, leaves: Leaves, slot_state: jax.Array, slot: jax.Array, ids: jax.Array
    ) -> jax.Array:
        """Return log probabilities `[G, E]` of the tokens `ids[G, E]` after rows `slot[G]`.

        They are those under the whole vocabulary.
        """
        self.compilations += 1
        logits = logits_of(self._decoder(leaves), slot_state[slot])
        chosen = jnp.take_along_axis(logits, ids, axis=1)
        return chosen - jax.nn.logsumexp(logits, axis=-1, keepdims=True)

    def _suffix(
        self,
        leaves: Leaves,
        pages: Pages,
        block_table: jax.Array,
        group: SuffixChunks[jax.Array],
    ) -> tuple[Pages, jax.Array]:
        """Read one group; also return the log probabilities `[G, J]` of the targets."""
        self.compilations += 1
        decoder = self._decoder(leaves)
        hidden, pages = forward(decoder, *_inputs(group, block_table), pages)
        pages, _ = _constrained(pages, hidden)
        return pages, logprobs_of(decoder.logits(hidden), group.targets)

    def _install(
        self,
        tables: AutomatonTables[jax.Array],
        at: jax.Array,
        new: AutomatonTables[jax.Array],
    ) -> AutomatonTables[jax.Array]:
        """Return the tables with the automaton `new` in place `at`."""
        self.compilations += 1
        return jax.tree.map(
            lambda table, one: constrain(table.at[at].set(one), *(None,) * table.ndim),
            tables,
            new,
        )

    def _fill_strips(
        self, strips: Strips, pages: Pages, block_table: jax.Array, slot: jax.Array
    ) -> Strips:
        """Return the strips of the rows `slot[G]`, in the memory of `strips`."""
        self.compilations += 1
        return pages_to_strips(pages, block_table[slot])

    def _decode(
        self,
        leaves: Leaves,
        memory: Memory,
        strips: Strips | None,
        block_table: jax.Array,
        rows: DecodeRows[jax.Array],
        automata: AutomatonTables[jax.Array],
        vocabulary: Vocabulary[jax.Array],
    ) -> tuple[Memory, Strips | None, Decoded[jax.Array], jax.Array]:
        """Continue all active rows until each has ended, or the steps are used up.

        A row ends at ACCEPT or at its limit.

        Args:
            leaves: The weights.
            memory: The rows' memory.
            strips: What the rows' pages hold; `None` to work through the pages.
            block_table: `[S, M]`, with room for all that these rows may fill. Another M makes
                another program.
            rows: The rows.
            automata: The automata that they follow.
            vocabulary: What free text may use.

        Returns:
            The memory, the strips, what was decoded, and the number of steps.
        """
        self.compilations += 1
        decoding = Decoding(
            self._decoder(leaves),
            self._end_ids,
            rows,
            jax.random.wrap_key_data(rows.key),
            block_table[rows.slot],
            automata,
            vocabulary,
        )
        cache = memory.pages if strips is None else strips
        loop = decoding.start(cache, memory.slot_state, self._steps)
        loop = decoding.run(loop, self._steps)
        slots = memory.slot_state.shape[0]
        at = jnp.where(rows.active, rows.slot, slots)
        slot_state = memory.slot_state.at[at].set(loop.hidden, mode="drop")
        if isinstance(loop.cache, Pages):
            return _constrained(loop.cache, slot_state), None, loop.out, loop.steps
        pages = decoding.copy_to_pages(loop, loop.cache, memory.pages)
        strips = jax.tree.map(lambda a: constrain(a, None, "heads", None, None), loop.cache)
        return _constrained(pages, slot_state), strips, loop.out, loop.steps


# --- shared by the programs --------------------------------------------------------------


def _constrained(pages: Pages, slot_state: jax.Array) -> Memory:
    """Return the memory with the sharding in which every program leaves it."""
    pages = jax.tree.map(lambda a: constrain(a, None, "heads", None, None), pages)
    return Memory(pages, constrain(slot_state, *(None,) * slot_state.ndim))


def _inputs(
    group: PromptChunks[jax.Array] | SuffixChunks[jax.Array], block_table: jax.Array
) -> tuple[TokenBlock, jax.Array]:
    """Return a group's tokens and the pages of its rows."""
    order = jnp.arange(group.tokens.shape[1], dtype=jnp.int32)
    positions, valid = group.start[:, None] + order, order < group.length[:, None]
    positions = jnp.where(valid, positions, 0)
    return TokenBlock(group.tokens, positions, valid, group.adapter), block_table[group.slot]
