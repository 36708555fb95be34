"""The decoder over some rows of the engine's cache, reading only as much as is filled.

Attention goes over the cache in blocks with a running softmax, up to the furthest position that
any row needs. A block beyond a row's own positions adds exactly 0 and rescales by exactly 1, so
a row's bits do not depend on how far its neighbours read; no context buckets are needed.
The cache holds more rows than a call works on: `slot` says which, written and read in place.
Letters: B rows, T tokens, D hidden, N heads, K key heads, S positions, H head size, C cache
rows.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from alignuser_jax.model import Decoder, KVCache
from alignuser_jax.model.contract import contract
from alignuser_jax.parallel import constrain

BLOCK = 64
"""Positions per block: small enough for a block's scores to stay in a CPU's cache."""


def forward(
    decoder: Decoder,
    tokens: jax.Array,
    positions: jax.Array,
    slot: jax.Array,
    cache: KVCache,
    valid: jax.Array,
    adapter: jax.Array,
) -> tuple[jax.Array, KVCache]:
    """`decoder(tokens, positions, cache=cache, valid=valid, adapter=adapter)`, faster.

    `tokens`, `positions`, `valid` are `[B, T]`; row b lives in row `slot[b]` of the cache and
    uses adapter number `adapter[b]`. Gives hidden states `[B, T, D]` (meaningless where not
    valid) and the cache with the valid tokens written. Two rows may share a slot (two chunks
    of one prompt): keys are written before any is read.
    """
    _, x, cache = _layers(decoder, tokens, positions, slot, cache, valid, adapter)
    return decoder.norm(x), cache


def read(
    decoder: Decoder,
    tokens: jax.Array,
    positions: jax.Array,
    slot: jax.Array,
    cache: KVCache,
    valid: jax.Array,
    adapter: jax.Array,
) -> tuple[jax.Array, KVCache]:
    """`forward` for tokens of which few are continued: the states `[B, T, D]` that enter the
    last layer, for `finish`, and the same cache. Of the last layer only keys and values are
    computed (the compiler drops what nobody uses): of two layers that saves almost half."""
    entering, _, cache = _layers(decoder, tokens, positions, slot, cache, valid, adapter)
    return entering, cache


def finish(
    decoder: Decoder,
    entering: jax.Array,
    positions: jax.Array,
    slot: jax.Array,
    cache: KVCache,
    adapter: jax.Array,
) -> jax.Array:
    """Hidden states `[B, T, D]` of tokens that `read` has put into the cache, from the states
    that enter the last layer."""
    layer = decoder.config.num_layers - 1
    *_, block = decoder.blocks()
    window = decoder.config.windows()[layer]

    def look(q, k, v):
        past = cache.k[layer], cache.v[layer]
        end = jnp.max(positions) + 1
        return attend_blocks(q, *past, slot, positions, end, window), None

    x, _ = block(entering, decoder.rotation(positions), decoder.adapter(adapter), look)
    return decoder.norm(x)


def _layers(decoder, tokens, positions, slot, cache, valid, adapter):
    """The states that enter the last layer, those that leave it, and the cache."""
    x = constrain(decoder.embedding[...][tokens].astype(decoder.dtype), "batch", None, None)
    rotation, its_adapter = decoder.rotation(positions), decoder.adapter(adapter)
    windows = decoder.config.windows()
    end = jnp.max(jnp.where(valid, positions + 1, 0))
    keys, values, entering = [], [], x
    for layer, block in enumerate(decoder.blocks()):

        def look(q, k, v, layer=layer):
            k = write(cache.k[layer], k, slot, positions, valid)
            v = write(cache.v[layer], v, slot, positions, valid)
            y = attend_blocks(q, k, v, slot, positions, end, windows[layer])
            return y, (k, v)

        entering = x
        x, (k, v) = block(x, rotation, its_adapter, look)
        keys.append(k)
        values.append(v)
    return entering, x, KVCache(tuple(keys), tuple(values))


def write(
    cache: jax.Array, new: jax.Array, slot: jax.Array, positions: jax.Array, valid: jax.Array
) -> jax.Array:
    """One layer's `cache [C, K, S, H]` with the valid of `new [B, T, K, H]` at `slot [B]` and
    `positions [B, T]`."""
    at = jnp.where(valid, positions, cache.shape[2])
    return cache.at[slot[:, None], :, at].set(new.astype(cache.dtype), mode="drop")


def attend_blocks(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    slot: jax.Array,
    positions: jax.Array,
    end: jax.Array,
    window: int | None = None,
) -> jax.Array:
    """Attention of `q [B, T, N, H]` at `positions [B, T]` over the rows `slot [B]` of `k, v
    [C, K, S, H]` up to the traced `end`, f32 softmax; `[B, T, N, H]` in q's type. A query sees
    itself and what is before it, or the last `window` of that."""
    batch, queries, heads, size = q.shape
    groups, slots = k.shape[1:3]
    width = BLOCK if slots % BLOCK == 0 else slots
    shape = (batch, queries, groups, heads // groups, size)
    flat = (q * size**-0.5).reshape(shape).swapaxes(1, 2).reshape(batch, groups, -1, size)
    reach = jnp.repeat(positions, heads // groups, axis=1)[:, None, :, None]

    def block_of(a, i):
        extent = (1, groups, width, size)
        rows = jax.vmap(lambda row: lax.dynamic_slice(a, (row, 0, i * width, 0), extent)[0])
        return rows(slot).astype(q.dtype)

    def body(i, carry):
        highest, total, result = carry
        keys, values = block_of(k, i), block_of(v, i)
        scores = contract("bkqh,bksh->bkqs", flat, keys, jnp.float32)
        at = i * width + jnp.arange(width)
        seen = at <= reach if window is None else (at <= reach) & (at > reach - window)
        scores = jnp.where(seen, scores, jnp.finfo(jnp.float32).min)
        new = jnp.maximum(highest, scores.max(axis=-1, keepdims=True))
        weights, fade = jnp.exp(scores - new), jnp.exp(highest - new)
        total = total * fade + weights.sum(axis=-1, keepdims=True)
        added = contract("bkqs,bksh->bkqh", weights.astype(q.dtype), values, jnp.float32)
        return new, total, result * fade + added

    lowest = jnp.full((*flat.shape[:3], 1), jnp.finfo(jnp.float32).min, jnp.float32)
    carry = lowest, jnp.zeros_like(lowest), jnp.zeros(flat.shape, jnp.float32)
    _, total, result = lax.fori_loop(0, -(-end // width), body, carry)
    y = (result / jnp.maximum(total, jnp.finfo(jnp.float32).tiny)).astype(q.dtype)
    y = y.reshape(batch, groups, queries, -1, size).swapaxes(1, 2)
    return y.reshape(batch, queries, heads, size)
