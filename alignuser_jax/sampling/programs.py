"""The engine's compiled programs: prefill a chunk, decode to the end, read closed sets.

Every program works on all slots at once with the same shapes, so a row's kernels never depend
on its neighbours (ARCHITECTURE.md decision 7). Whatever a request may choose is traced.
Letters: S slots, C chunk, N reply tokens, D hidden size, V vocabulary, Q states, E edges, A
alternatives, M automata.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from alignuser_jax.model import Decoder, unstack
from alignuser_jax.sampling.automaton import ACCEPT, LINE, MID
from alignuser_jax.sampling.forward import forward
from alignuser_jax.sampling.sample import pick


class Rows(NamedTuple):
    """What a decode loop must know of each row, `[S]` unless stated."""

    start: jax.Array  # int32, position of the first new token (= prompt length)
    active: jax.Array  # bool
    table: jax.Array  # int32, which automaton
    state: jax.Array  # int32, its first state
    reasoning: jax.Array  # int32, tokens after which the answer is forced
    limit: jax.Array  # int32, tokens after which the row ends
    temperature: jax.Array  # float32
    top_p: jax.Array  # float32
    lora_scale: jax.Array  # float32, 1 = the adapted model, 0 = the base
    key: jax.Array  # uint32[S, 2]


class Tables(NamedTuple):
    token: jax.Array  # int32[M, Q, E]
    next: jax.Array  # int32[M, Q, E]
    free: jax.Array  # bool[M, Q]
    forced: jax.Array  # int32[M, Q]


class Vocabulary(NamedTuple):
    allowed: jax.Array  # bool[V], ids that free text may use
    ends_line: jax.Array  # bool[V], tokens whose text ends with a newline


class Decoded(NamedTuple):
    token: jax.Array  # int32[S, N]
    logprob: jax.Array  # float32[S, N]
    state: jax.Array  # int32[S, N], the state before the token
    edge: jax.Array  # int32[S, N], -1 = none
    edge_logprobs: jax.Array  # float32[S, N, E]
    count: jax.Array  # int32[S], tokens of the row
    final: jax.Array  # int32[S], the last state


class Programs:
    """Compiled functions over one decoder; `compilations` counts how often one was traced."""

    def __init__(self, decoder: Decoder, *, eot: int, reply: int):
        self._graphdef, state = nnx.split(unstack(decoder))
        self.leaves, self._treedef = jax.tree.flatten(state)
        self._eot, self._reply = eot, reply
        self.compilations = 0
        self.prefill = jax.jit(self._prefill, donate_argnums=(1, 2))
        self.decode = jax.jit(self._decode, donate_argnums=(1,))
        self.closed_set = jax.jit(self._closed_set)
        self.sequence = jax.jit(self._sequence)

    def _decoder(self, leaves):
        return nnx.merge(self._graphdef, jax.tree.unflatten(self._treedef, leaves))

    def _prefill(self, leaves, cache, last, tokens, start, valid, lora_scale):
        """One chunk of every row: `tokens[S, C]` at positions `start + 0..C-1` where `valid`.

        Gives the cache, the hidden states `[S, C, D]` and, per row, the hidden state of its
        last valid token (`last` as it was where a row has none).
        """
        self.compilations += 1
        positions = start[:, None] + jnp.arange(tokens.shape[1], dtype=jnp.int32)
        decoder = self._decoder(leaves)
        hidden, cache = forward(decoder, tokens, positions, cache, valid, lora_scale)
        count = valid.sum(axis=1)
        end = jnp.maximum(count - 1, 0)
        newest = jnp.take_along_axis(hidden, end[:, None, None], axis=1)[:, 0]
        return cache, hidden, jnp.where((count > 0)[:, None], newest, last)

    def _closed_set(self, leaves, last, ids):
        """Log-probabilities `[S, A]` of the next tokens `ids[S, A]` under the whole
        vocabulary."""
        self.compilations += 1
        logits = _logits(self._decoder(leaves), last)
        chosen = jnp.take_along_axis(logits, ids, axis=1)
        return chosen - jax.nn.logsumexp(logits, axis=-1, keepdims=True)

    def _sequence(self, leaves, hidden, targets, steps):
        """Log-probabilities `[S, C]` of `targets[S, C]`, each read from the hidden state in its
        place; only the first `steps` columns are computed."""
        self.compilations += 1
        decoder = self._decoder(leaves)

        def body(t, out):
            logits = _logits(decoder, lax.dynamic_index_in_dim(hidden, t, 1, keepdims=False))
            target = lax.dynamic_index_in_dim(targets, t, 1)
            value = jnp.take_along_axis(logits, target, axis=1)[:, 0]
            return out.at[:, t].set(value - jax.nn.logsumexp(logits, axis=-1))

        return lax.fori_loop(0, steps, body, jnp.zeros(targets.shape, jnp.float32))

    def _decode(self, leaves, cache, last, rows: Rows, tables: Tables, vocabulary: Vocabulary):
        """Decodes all active rows until each has reached ACCEPT or its limit."""
        self.compilations += 1
        decoder = self._decoder(leaves)
        slots, n, e = last.shape[0], self._reply, tables.token.shape[2]
        keys = jax.random.wrap_key_data(rows.key)

        def body(carry):
            step, cache, last, state, done, out = carry
            forced = tables.forced[rows.table, state]
            state = jnp.where(step >= rows.reasoning, forced, state)
            chosen = pick(
                _logits(decoder, last),
                tables.token[rows.table, state],
                tables.free[rows.table, state],
                vocabulary.allowed,
                self._eot,
                rows.temperature,
                rows.top_p,
                jax.vmap(jax.random.fold_in, (0, None))(keys, step),
            )
            onward = tables.next[rows.table, state, jnp.maximum(chosen.edge, 0)]
            fallback = jnp.where(vocabulary.ends_line[chosen.token], LINE, MID)
            following = jnp.where(chosen.edge >= 0, onward, fallback)
            out = Decoded(
                out.token.at[:, step].set(chosen.token),
                out.logprob.at[:, step].set(chosen.logprob),
                out.state.at[:, step].set(state),
                out.edge.at[:, step].set(chosen.edge),
                out.edge_logprobs.at[:, step].set(chosen.edge_logprobs),
                out.count + ~done,
                jnp.where(done, out.final, following),
            )
            done = done | (following == ACCEPT) | (step + 1 >= rows.limit)

            hidden, cache = forward(
                decoder,
                chosen.token[:, None],
                jnp.where(done, 0, rows.start + step)[:, None],
                cache,
                ~done[:, None],
                rows.lora_scale,
            )
            last = hidden[:, 0]
            return step + 1, cache, last, following, done, out

        out = Decoded(
            jnp.zeros((slots, n), jnp.int32),
            jnp.zeros((slots, n), jnp.float32),
            jnp.zeros((slots, n), jnp.int32),
            jnp.full((slots, n), -1, jnp.int32),
            jnp.zeros((slots, n, e), jnp.float32),
            jnp.zeros(slots, jnp.int32),
            rows.state,
        )
        carry = (jnp.int32(0), cache, last, rows.state, ~rows.active, out)
        carry = lax.while_loop(lambda c: ~c[4].all(), body, carry)
        return carry[1], carry[5]


def _logits(decoder: Decoder, hidden: jax.Array) -> jax.Array:
    """f32 `[S, V]` of `[S, D]`: always this one shape, whoever asks."""
    return decoder.logits(hidden[:, None])[:, 0]
