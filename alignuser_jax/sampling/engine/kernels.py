"""The engine's compiled programs: read prompts, decode some steps, score closed sets.

Every program works on groups of G rows with the same shapes, whichever rows are in them and
however many, so a row's kernels never depend on its neighbours (docs/architecture.md decision
7). Whatever a request may choose is traced.

Letters in shapes: S slots, M pages of a row, G rows of a group, W groups of a call, C tokens of
a chunk, J tokens of a jump, N tokens that one decode call may add, D hidden size, V vocabulary,
Q states, E edges, A automata.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.sharding import Mesh

from alignuser_jax.model import Decoder, unstack
from alignuser_jax.parallel import constrain, place
from alignuser_jax.sampling.engine.automaton import ACCEPT, LINE, MID
from alignuser_jax.sampling.engine.forward import (
    Pages,
    Strips,
    TokenBlock,
    finish_last_layer,
    forward,
    forward_prompt,
    forward_strips,
    pages_to_strips,
    strips_to_pages,
)
from alignuser_jax.sampling.engine.sample import (
    ArrayT,
    NextToken,
    SamplingParams,
    draw_next_token,
)

JUMP = 4
"""Tokens of one step inside an answer: one that is drawn, and those that follow from it."""


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


class DecodeRows(NamedTuple, Generic[ArrayT]):
    """What a decode call must know of each row.

    Attributes:
        slot: int32 `[G]`.
        start: int32 `[G]`, the position of the reply's first token, which is the length of the
            prompt.
        active: bool `[G]`, false for padding.
        automaton: int32 `[G]`, the place of the automaton that the row follows.
        state: int32 `[G]`, the automaton's state.
        length: int32 `[G]`, tokens that earlier calls decoded.
        reasoning: int32 `[G]`, tokens after which the answer is forced.
        limit: int32 `[G]`, tokens after which the row ends.
        adapter: int32 `[G]`, the number of the row's adapter, from 1; 0 for the base model.
        params: How the row draws.
        key: uint32 `[G, 2]`, the words of the row's jax key.
    """

    slot: ArrayT
    start: ArrayT
    active: ArrayT
    automaton: ArrayT
    state: ArrayT
    length: ArrayT
    reasoning: ArrayT
    limit: ArrayT
    adapter: ArrayT
    params: SamplingParams[ArrayT]
    key: ArrayT


class AutomatonTables(NamedTuple, Generic[ArrayT]):
    """The tables of `Automaton` that decoding needs, for each place; or those of one automaton.

    Attributes:
        token: int32 `[A, Q, E]`.
        next: int32 `[A, Q, E]`.
        free: bool `[A, Q]`.
        forced: int32 `[A, Q]`.
    """

    token: ArrayT
    next: ArrayT
    free: ArrayT
    forced: ArrayT


class Vocabulary(NamedTuple, Generic[ArrayT]):
    """What decoding must know of the tokens.

    Attributes:
        allowed: bool `[V]`, ids that free text may use.
        ends_line: bool `[V]`, tokens whose text ends with a newline.
    """

    allowed: ArrayT
    ends_line: ArrayT


class Decoded(NamedTuple, Generic[ArrayT]):
    """What one decode call adds to each row of a group; without G, to one row.

    Attributes:
        token: int32 `[G, N]`.
        logprob: float32 `[G, N]`.
        state: int32 `[G, N]`, the automaton's state before the token.
        edge: int32 `[G, N]`, the edge that the token followed; -1 for none.
        edge_logprobs: float32 `[G, N, E]`, the distribution over the state's edges; it means
            nothing where the state has one edge.
        length: int32 `[G]`, the number of tokens added.
        final: int32 `[G]`, the automaton's state after them.
    """

    token: ArrayT
    logprob: ArrayT
    state: ArrayT
    edge: ArrayT
    edge_logprobs: ArrayT
    length: ArrayT
    final: ArrayT


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
        logits = _logits(self._decoder(leaves), slot_state[slot])
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
        return pages, _logprobs(decoder.logits(hidden), group.targets)

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

        A row ends at ACCEPT or at its limit. First comes free text, one token a step, while any
        row has some left. Then come answers, where a step takes one drawn token and up to J - 1
        that are forced after it. Which loop a row is in depends on its own state only.

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
        decoding = _Decoding(
            self._decoder(leaves),
            self._end_ids,
            rows,
            jax.random.wrap_key_data(rows.key),
            block_table[rows.slot],
            automata,
            vocabulary,
        )
        n = self._steps * (1 + JUMP)
        out = _no_tokens(rows, n, automata.token.shape[2])

        def in_text(loop):
            return ~loop.done & automata.free[rows.automaton, decoding.current_state(loop)]

        def in_answer(loop):
            return ~loop.done & ~in_text(loop)

        def text_step(loop):
            return decoding.step(loop, decoding.current_state(loop), in_text(loop), 1)

        def answer_step(loop):
            return decoding.step(loop, decoding.current_state(loop), in_answer(loop), JUMP)

        loop = _Loop(
            jnp.int32(0),
            memory.pages if strips is None else strips,
            memory.slot_state[rows.slot],
            rows.state,
            ~rows.active,
            out,
        )
        loop = _repeat(loop, self._steps, in_text, text_step)
        loop = _repeat(loop, self._steps, in_answer, answer_step)
        slots = memory.slot_state.shape[0]
        at = jnp.where(rows.active, rows.slot, slots)
        slot_state = memory.slot_state.at[at].set(loop.hidden, mode="drop")
        if isinstance(loop.cache, Pages):
            return _constrained(loop.cache, slot_state), None, loop.out, loop.steps
        order = jnp.arange(n)
        positions = (rows.start + rows.length)[:, None] + order
        new = order < loop.out.length[:, None]
        pages = strips_to_pages(
            memory.pages,
            loop.cache,
            decoding.block_table,
            jnp.where(new, positions, 0),
            new,
        )
        strips = jax.tree.map(lambda a: constrain(a, None, "heads", None, None), loop.cache)
        return _constrained(pages, slot_state), strips, loop.out, loop.steps


# --- decoding: what one step does --------------------------------------------------------


class _Loop(NamedTuple):
    """What a decode loop carries from step to step.

    Attributes:
        steps: int32, steps so far.
        cache: Pages or strips.
        hidden: `[G, D]`, the state of each row's last token.
        state: int32 `[G]`, the automaton's state.
        done: bool `[G]`, whether the row has ended.
        out: What was decoded so far.
    """

    steps: jax.Array
    cache: Pages | Strips
    hidden: jax.Array
    state: jax.Array
    done: jax.Array
    out: Decoded[jax.Array]


class _Jump(NamedTuple):
    """The tokens of one step of each row, the first drawn and the others forced.

    Attributes:
        tokens: int32 `[G, J]`.
        states: int32 `[G, J]`, the automaton's state before each token.
        valid: bool `[G, J]`.
        state: int32 `[G]`, the state after them.
    """

    tokens: jax.Array
    states: jax.Array
    valid: jax.Array
    state: jax.Array


@dataclass(frozen=True)
class _Decoding:
    """What stays the same during one decode call.

    Attributes:
        decoder: The model.
        end_ids: Ids that end free text.
        rows: The rows.
        keys: One jax key per row.
        block_table: int32 `[G, M]`, the pages of the rows.
        automata: The automata that the rows follow.
        vocabulary: What free text may use.
    """

    decoder: Decoder
    end_ids: tuple[int, ...]
    rows: DecodeRows[jax.Array]
    keys: jax.Array
    block_table: jax.Array
    automata: AutomatonTables[jax.Array]
    vocabulary: Vocabulary[jax.Array]

    def current_state(self, loop: _Loop) -> jax.Array:
        """Return each row's state: the forced one once its reasoning is over."""
        forced = self.automata.forced[self.rows.automaton, loop.state]
        over = self.rows.length + loop.out.length >= self.rows.reasoning
        return jnp.where(over, forced, loop.state)

    def step(self, loop: _Loop, at: jax.Array, active: jax.Array, width: int) -> _Loop:
        """Add one token to every active row; with a `width` above 1 also the forced ones."""
        rows = self.rows
        length = rows.length + loop.out.length
        drawn = self._draw(loop, at, active, length)
        jump = self._follow(drawn, at, active, width)
        added = jump.valid.sum(axis=1)
        positions = (rows.start + length)[:, None] + jnp.arange(width)
        positions = jnp.where(jump.valid, positions, 0)
        block = TokenBlock(jump.tokens, positions, jump.valid, rows.adapter)
        hidden, cache = self._forward(block, loop.cache)
        following = jnp.zeros((rows.slot.shape[0], 0), jnp.float32)
        if width > 1:
            logits = self.decoder.logits(hidden[:, :-1])
            following = _logprobs(logits, jump.tokens[:, 1:])
        newest = jnp.take_along_axis(hidden, jnp.maximum(added - 1, 0)[:, None, None], axis=1)
        out = _append(loop.out, drawn, jump, following)
        out = out._replace(
            length=loop.out.length + added,
            final=jnp.where(active, jump.state, loop.out.final),
        )
        return _Loop(
            loop.steps + 1,
            cache,
            jnp.where(active[:, None], newest[:, 0], loop.hidden),
            jnp.where(active, jump.state, loop.state),
            loop.done | active & ((jump.state == ACCEPT) | (length + added >= rows.limit)),
            out,
        )

    def _draw(
        self, loop: _Loop, at: jax.Array, active: jax.Array, length: jax.Array
    ) -> NextToken:
        return draw_next_token(
            _logits(self.decoder, loop.hidden),
            self.automata.token[self.rows.automaton, at],
            self.automata.free[self.rows.automaton, at] & active,
            self.vocabulary.allowed,
            self.end_ids,
            self.rows.params,
            jax.vmap(jax.random.fold_in)(self.keys, length),
        )

    def _follow(self, drawn: NextToken, at: jax.Array, active: jax.Array, width: int) -> _Jump:
        """Return the drawn token and up to `width - 1` tokens of states with a single edge."""
        automata, which = self.automata, self.rows.automaton
        onward = automata.next[which, at, jnp.maximum(drawn.edge, 0)]
        fallback = jnp.where(self.vocabulary.ends_line[drawn.token], LINE, MID)
        state = jnp.where(drawn.edge >= 0, onward, fallback)
        tokens, states, valid = [drawn.token], [at], [active]
        for _ in range(width - 1):
            edges = automata.token[which, state]
            valid.append(valid[-1] & ((edges >= 0).sum(axis=1) == 1))
            tokens.append(jnp.where(valid[-1], edges[:, 0], 0))
            states.append(state)
            onward = automata.next[which, state, 0]
            state = jnp.where(valid[-1], onward, state)
        return _Jump(
            jnp.stack(tokens, axis=1),
            jnp.stack(states, axis=1),
            jnp.stack(valid, axis=1),
            state,
        )

    def _forward(
        self, block: TokenBlock, cache: Pages | Strips
    ) -> tuple[jax.Array, Pages | Strips]:
        if isinstance(cache, Strips):
            return forward_strips(self.decoder, block, cache)
        return forward(self.decoder, block, self.block_table, cache)


def _no_tokens(rows: DecodeRows[jax.Array], n: int, edges: int) -> Decoded[jax.Array]:
    """Return room for n tokens of each row."""
    group = rows.slot.shape[0]
    return Decoded(
        jnp.zeros((group, n), jnp.int32),
        jnp.zeros((group, n), jnp.float32),
        jnp.zeros((group, n), jnp.int32),
        jnp.full((group, n), -1, jnp.int32),
        jnp.zeros((group, n, edges), jnp.float32),
        jnp.zeros(group, jnp.int32),
        rows.state,
    )


def _append(
    out: Decoded[jax.Array], drawn: NextToken, jump: _Jump, following: jax.Array
) -> Decoded[jax.Array]:
    """Write the valid tokens of a jump behind those of `out`; its `length` stays as it is.

    `following [G, J - 1]` are the log probabilities of the forced tokens.
    """
    group, width = jump.tokens.shape
    edges = jnp.concatenate(
        [drawn.edge[:, None], jnp.zeros((group, width - 1), jnp.int32)], axis=1
    )
    n = out.token.shape[1]  # also the index of no token
    at = jnp.where(jump.valid, out.length[:, None] + jnp.arange(width), n)
    index = jnp.arange(group)[:, None], at

    def put(old, new):
        return old.at[index].set(new, mode="drop")

    return out._replace(
        token=put(out.token, jump.tokens),
        logprob=put(out.logprob, jnp.c_[drawn.logprob, following]),
        state=put(out.state, jump.states),
        edge=put(out.edge, edges),
        edge_logprobs=out.edge_logprobs.at[index[0][:, 0], at[:, 0]].set(
            drawn.edge_logprobs, mode="drop"
        ),
    )


def _repeat(
    loop: _Loop,
    steps: int,
    active: Callable[[_Loop], jax.Array],
    step: Callable[[_Loop], _Loop],
) -> _Loop:
    """Take up to `steps` steps while any row is active."""
    start = loop.steps
    return lax.while_loop(
        lambda loop: (loop.steps - start < steps) & active(loop).any(), step, loop
    )


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


def _logits(decoder: Decoder, hidden: jax.Array) -> jax.Array:
    """Return f32 logits `[B, V]` of hidden states `[B, D]`."""
    return decoder.logits(hidden[:, None])[:, 0]


def _logprobs(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    """Return the log probabilities of `tokens [B, T]` under `logits [B, T, V]`."""
    chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)
