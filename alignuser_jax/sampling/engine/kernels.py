"""The engine's compiled programs: prefill chunks, decode some steps, read closed sets.

Every program works on groups of G rows with the same shapes, whoever is in them and however
many are, so a row's kernels never depend on its neighbours (ARCHITECTURE.md decision 7).
Whatever a request may choose is traced.
Letters: S slots, M pages of a row, G rows of a group, W groups of a call, C chunk, J tokens of
a jump, N tokens that one decode call may give, D hidden size, V vocabulary, Q states, E edges,
A automata.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

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
    finish,
    forward,
    forward_strips,
    keep,
    lay,
    read,
)
from alignuser_jax.sampling.engine.sample import How, pick

JUMP = 4
"""Tokens of one step inside an answer: one that is drawn and those that follow from it."""


class Chunks(NamedTuple):
    """Pieces of prompts, in groups. An earlier piece of a row is in an earlier group or in the
    same one."""

    tokens: jax.Array  # int32[W, G, C]
    slot: jax.Array  # int32[W, G]
    start: jax.Array  # int32[W, G], position of the first token
    count: jax.Array  # int32[W, G], tokens of the piece, 0 = nothing to do
    final: jax.Array  # bool[W, G], whether the row's prompt ends here
    adapter: jax.Array  # int32[W, G], which adapter, counted from 1; 0 = the base


class Ends(NamedTuple):
    """The last token of each final piece of the same call, in groups."""

    slot: jax.Array  # int32[W, G]
    position: jax.Array  # int32[W, G]
    active: jax.Array  # bool[W, G]
    adapter: jax.Array  # int32[W, G]


class Copies(NamedTuple):
    """What one row has read, given to another: its last page and its hidden state, `[G]`."""

    slot: jax.Array  # int32
    to_slot: jax.Array  # int32
    page: jax.Array  # int32
    to_page: jax.Array  # int32
    active: jax.Array  # bool


class Suffixes(NamedTuple):
    """Up to J tokens after a prompt, each with the one that should follow."""

    tokens: jax.Array  # int32[G, J]
    targets: jax.Array  # int32[G, J]
    slot: jax.Array  # int32[G]
    start: jax.Array  # int32[G]
    count: jax.Array  # int32[G]
    adapter: jax.Array  # int32[G]


class Rows(NamedTuple):
    """What a decode call must know of each row, `[G]` unless stated."""

    slot: jax.Array  # int32
    start: jax.Array  # int32, position of the reply's first token (= prompt length)
    active: jax.Array  # bool
    table: jax.Array  # int32, which automaton
    state: jax.Array  # int32, the state it is in
    count: jax.Array  # int32, tokens decoded in earlier calls
    reasoning: jax.Array  # int32, tokens after which the answer is forced
    limit: jax.Array  # int32, tokens after which the row ends
    adapter: jax.Array  # int32, which adapter, 0 = the base
    how: How
    key: jax.Array  # uint32[G, 2]


class Tables(NamedTuple):
    token: jax.Array  # int32[A, Q, E]
    next: jax.Array  # int32[A, Q, E]
    free: jax.Array  # bool[A, Q]
    forced: jax.Array  # int32[A, Q]


class Vocabulary(NamedTuple):
    allowed: jax.Array  # bool[V], ids that free text may use
    ends_line: jax.Array  # bool[V], tokens whose text ends with a newline


class Decoded(NamedTuple):
    """What one call adds to each row."""

    token: jax.Array  # int32[G, N]
    logprob: jax.Array  # float32[G, N]
    state: jax.Array  # int32[G, N], the state before the token
    edge: jax.Array  # int32[G, N], -1 = none
    edge_logprobs: jax.Array  # float32[G, N, E], meaningless where the state has one edge
    count: jax.Array  # int32[G], tokens of the row
    final: jax.Array  # int32[G], the last state


class _Loop(NamedTuple):
    """What a decode loop carries: `hidden` is the state of the last token."""

    steps: jax.Array  # int32
    past: Pages | Strips
    hidden: jax.Array  # [G, D]
    state: jax.Array  # int32[G]
    done: jax.Array  # bool[G]
    out: Decoded


class Programs:
    """Compiled functions over one decoder; `compilations` counts how often one was traced.

    `steps`: decode steps of a call, of free text and of answers each. `leaves` are the weights,
    laid over `mesh` where there is one."""

    def __init__(
        self, decoder: Decoder, *, ends: Sequence[int], steps: int, mesh: Mesh | None = None
    ):
        if mesh is not None:  # spread before unstacking, whose copies then are spread too
            graphdef, state = nnx.split(decoder)
            decoder = nnx.merge(graphdef, place(state, mesh))
        self._graphdef, state = nnx.split(unstack(decoder))
        if mesh is not None:
            state = place(state, mesh)
        self.leaves, self._treedef = jax.tree.flatten(state)
        self._ends, self._steps = tuple(ends), steps
        self.compilations = 0
        self.prefill = jax.jit(self._prefill, donate_argnums=(1, 2))
        self.copy = jax.jit(self._copy, donate_argnums=(0, 1))
        self.lay = jax.jit(self._lay, donate_argnums=(0,))
        self.decode = jax.jit(self._decode, donate_argnums=(1, 2, 3))
        self.closed_set = jax.jit(self._closed_set)
        self.suffix = jax.jit(self._suffix, donate_argnums=(1,))
        self.install = jax.jit(self._install, donate_argnums=(0,))

    def _decoder(self, leaves):
        return nnx.merge(self._graphdef, jax.tree.unflatten(self._treedef, leaves))

    def _prefill(self, leaves, cache, last, tables, chunks: Chunks, ends: Ends, groups):
        """Reads the first `groups[0]` groups of `chunks`, then finishes the first `groups[1]`
        of `ends`: the cache, and `last[S, D]` with the hidden states of these tokens.
        `tables[S, M]` are the slots' pages."""
        self.compilations += 1
        decoder = self._decoder(leaves)
        nowhere = last.shape[0]

        def read_group(carry):
            i, cache, entering = carry
            group = Chunks(*(a[i] for a in chunks))
            x, cache = read(decoder, *_inputs(group, tables, cache))
            end = jnp.maximum(group.count - 1, 0)[:, None, None]
            at = jnp.where(group.final, group.slot, nowhere)
            newest = jnp.take_along_axis(x, end, axis=1)[:, 0]
            return i + 1, cache, entering.at[at].set(newest, mode="drop")

        carry = (jnp.int32(0), cache, jnp.zeros_like(last))
        carry = lax.while_loop(lambda c: c[0] < groups[0], read_group, carry)
        _, cache, entering = carry

        def finish_group(carry):
            i, last = carry
            group = Ends(*(a[i] for a in ends))
            x, positions = entering[group.slot][:, None], group.position[:, None]
            table = tables[group.slot]
            hidden = finish(decoder, x, positions, table, cache, group.adapter)
            at = jnp.where(group.active, group.slot, nowhere)
            return i + 1, last.at[at].set(hidden[:, 0], mode="drop")

        carry = (jnp.int32(0), last)
        _, last = lax.while_loop(lambda c: c[0] < groups[1], finish_group, carry)
        return _laid(cache, last)

    def _copy(self, cache: Pages, last, copies: Copies):
        self.compilations += 1
        page = jnp.where(copies.active, copies.to_page, cache.k[0].shape[0])
        slot = jnp.where(copies.active, copies.to_slot, last.shape[0])
        cache = jax.tree.map(lambda a: a.at[page].set(a[copies.page], mode="drop"), cache)
        return _laid(cache, last.at[slot].set(last[copies.slot], mode="drop"))

    def _closed_set(self, leaves, last, slot, ids):
        """Log-probabilities `[G, E]` of the tokens `ids[G, E]` after the rows in `slot[G]`,
        under the whole vocabulary."""
        self.compilations += 1
        logits = _logits(self._decoder(leaves), last[slot])
        chosen = jnp.take_along_axis(logits, ids, axis=1)
        return chosen - jax.nn.logsumexp(logits, axis=-1, keepdims=True)

    def _suffix(self, leaves, cache, tables, group: Suffixes):
        """The cache with one group's tokens, and the log-probabilities `[G, J]` of their
        targets."""
        self.compilations += 1
        decoder = self._decoder(leaves)
        hidden, cache = forward(decoder, *_inputs(group, tables, cache))
        cache, _ = _laid(cache, hidden)
        return cache, _logprobs(decoder.logits(hidden), group.targets)

    def _install(self, tables: Tables, at, new: Tables) -> Tables:
        """`tables` with automaton number `at` replaced."""
        self.compilations += 1
        return jax.tree.map(
            lambda held, one: constrain(held.at[at].set(one), *(None,) * held.ndim), tables, new
        )

    def _lay(self, strips: Strips, cache: Pages, tables, slot):
        """The strips of the rows in `slot[G]`, in the memory of `strips`."""
        self.compilations += 1
        return lay(cache, tables[slot])

    def _decode(
        self,
        leaves,
        cache: Pages,
        last,
        strips: Strips | None,
        tables,
        rows: Rows,
        automata: Tables,
        vocabulary: Vocabulary,
    ):
        """Goes on with all active rows until each has reached ACCEPT or its limit, or the steps
        are used up: the cache, `last` with their newest states, the rows' strips, what was
        decoded, and the steps taken. `strips` hold what the pages do (None: they are not used);
        `tables[S, M]` must have room for all that these rows may fill. With another M it is
        another program.

        First free text, one token a step, while any row has some left; then answers, where a
        step takes one drawn token and up to J - 1 that are forced after it. Which loop a row is
        in depends on its own state only.
        """
        self.compilations += 1
        decoder = self._decoder(leaves)
        group, e = rows.slot.shape[0], automata.token.shape[2]
        n = self._steps * (1 + JUMP)
        keys, table = jax.random.wrap_key_data(rows.key), tables[rows.slot]

        def look_back(tokens, positions, past, valid):
            if strips is not None:
                return forward_strips(decoder, tokens, positions, past, valid, rows.adapter)
            return forward(decoder, tokens, positions, table, past, valid, rows.adapter)

        def current(loop):
            """The state each row goes on from: the forced one once its reasoning is over."""
            forced = automata.forced[rows.table, loop.state]
            over = rows.count + loop.out.count >= rows.reasoning
            return jnp.where(over, forced, loop.state)

        def step(loop: _Loop, at, active, width: int) -> _Loop:
            """One token of every active row, with a `width` above 1 the forced ones too."""
            count = rows.count + loop.out.count
            chosen = pick(
                _logits(decoder, loop.hidden),
                automata.token[rows.table, at],
                automata.free[rows.table, at] & active,
                vocabulary.allowed,
                self._ends,
                rows.how,
                jax.vmap(jax.random.fold_in)(keys, count),
            )
            onward = automata.next[rows.table, at, jnp.maximum(chosen.edge, 0)]
            fallback = jnp.where(vocabulary.ends_line[chosen.token], LINE, MID)
            state = jnp.where(chosen.edge >= 0, onward, fallback)
            tokens, states, valid = [chosen.token], [at], [active]
            for _ in range(width - 1):
                edges = automata.token[rows.table, state]
                valid.append(valid[-1] & ((edges >= 0).sum(axis=1) == 1))
                tokens.append(jnp.where(valid[-1], edges[:, 0], 0))
                states.append(state)
                onward = automata.next[rows.table, state, 0]
                state = jnp.where(valid[-1], onward, state)
            tokens, states, valid = (jnp.stack(a, axis=1) for a in (tokens, states, valid))
            added = valid.sum(axis=1)
            positions = (rows.start + count)[:, None] + jnp.arange(width)
            positions = jnp.where(valid, positions, 0)
            hidden, past = look_back(tokens, positions, loop.past, valid)
            following = jnp.zeros((group, 0), jnp.float32)
            if width > 1:
                following = _logprobs(decoder.logits(hidden[:, :-1]), tokens[:, 1:])
            newest = jnp.take_along_axis(
                hidden, jnp.maximum(added - 1, 0)[:, None, None], axis=1
            )
            edges = jnp.concatenate(
                [chosen.edge[:, None], jnp.zeros((group, width - 1), jnp.int32)], axis=1
            )
            place = jnp.where(valid, loop.out.count[:, None] + jnp.arange(width), n)
            index = jnp.arange(group)[:, None], place

            def put(old, new):
                return old.at[index].set(new, mode="drop")

            out = Decoded(
                put(loop.out.token, tokens),
                put(loop.out.logprob, jnp.c_[chosen.logprob, following]),
                put(loop.out.state, states),
                put(loop.out.edge, edges),
                loop.out.edge_logprobs.at[index[0][:, 0], place[:, 0]].set(
                    chosen.edge_logprobs, mode="drop"
                ),
                loop.out.count + added,
                jnp.where(active, state, loop.out.final),
            )
            return _Loop(
                loop.steps + 1,
                past,
                jnp.where(active[:, None], newest[:, 0], loop.hidden),
                jnp.where(active, state, loop.state),
                loop.done | active & ((state == ACCEPT) | (count + added >= rows.limit)),
                out,
            )

        def in_text(loop):
            return ~loop.done & automata.free[rows.table, current(loop)]

        def text_step(loop):
            return step(loop, current(loop), in_text(loop), 1)

        def answer_step(loop):
            return step(loop, current(loop), ~loop.done & ~in_text(loop), JUMP)

        def looped(loop, going, body):
            start = loop.steps
            return lax.while_loop(
                lambda loop: (loop.steps - start < self._steps) & going(loop).any(), body, loop
            )

        out = Decoded(
            jnp.zeros((group, n), jnp.int32),
            jnp.zeros((group, n), jnp.float32),
            jnp.zeros((group, n), jnp.int32),
            jnp.full((group, n), -1, jnp.int32),
            jnp.zeros((group, n, e), jnp.float32),
            jnp.zeros(group, jnp.int32),
            rows.state,
        )
        past = cache if strips is None else strips
        loop = _Loop(jnp.int32(0), past, last[rows.slot], rows.state, ~rows.active, out)
        loop = looped(loop, in_text, text_step)
        loop = looped(loop, lambda loop: ~loop.done & ~in_text(loop), answer_step)
        at = jnp.where(rows.active, rows.slot, last.shape[0])
        last = last.at[at].set(loop.hidden, mode="drop")
        if strips is None:
            return *_laid(loop.past, last), None, loop.out, loop.steps
        order = jnp.arange(n)
        positions = (rows.start + rows.count)[:, None] + order
        new = order < loop.out.count[:, None]
        cache = keep(cache, loop.past, table, jnp.where(new, positions, 0), new)
        strips = jax.tree.map(lambda a: constrain(a, None, "heads", None, None), loop.past)
        return *_laid(cache, last), strips, loop.out, loop.steps


def _laid(cache: Pages, last: jax.Array) -> tuple[Pages, jax.Array]:
    """What one program leaves to the next, laid out as all leave it."""
    cache = jax.tree.map(lambda a: constrain(a, None, "heads", None, None), cache)
    return cache, constrain(last, *(None,) * last.ndim)


def _inputs(group: Chunks | Suffixes, tables, cache) -> tuple:
    """What `read` and `forward` take besides the decoder."""
    order = jnp.arange(group.tokens.shape[1], dtype=jnp.int32)
    positions, valid = group.start[:, None] + order, order < group.count[:, None]
    positions = jnp.where(valid, positions, 0)
    return group.tokens, positions, tables[group.slot], cache, valid, group.adapter


def _logits(decoder: Decoder, hidden: jax.Array) -> jax.Array:
    """f32 `[B, V]` of `[B, D]`."""
    return decoder.logits(hidden[:, None])[:, 0]


def _logprobs(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    """Of `tokens [B, T]` under `logits [B, T, V]`."""
    chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)
