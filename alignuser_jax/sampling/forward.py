"""The decoder over rows whose keys and values lie in pages of one pool.

A row's `table` says which page holds its positions `i * P` to `(i + 1) * P - 1`; rows that
begin alike share pages. Attention goes over a row's pages in blocks with a running softmax, up
to the furthest position that any row needs. A block beyond a row's own positions adds exactly 0
and rescales by exactly 1, so a row's bits do not depend on how far its neighbours read; no
context buckets are needed.
Letters: B rows, T tokens, D hidden, N heads, K key heads, H head size, P positions of a page,
M pages of a row, C pages of the pool.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from alignuser_jax.model import Decoder, DecoderConfig
from alignuser_jax.model.contract import contract
from alignuser_jax.parallel import constrain

BLOCK = 64
"""Positions that attention reads at a time: small enough for their scores to stay in a CPU's
cache, large enough for its matrix products."""

UNUSED = 0
"""A page that nobody writes: what the rest of a table points to."""


class Pages(NamedTuple):
    """Keys `[C, K, H, P]` and values `[C, K, P, H]` of each layer. Keys lie with their
    positions last: what a decode step multiplies them with has one row or two, and a CPU reads
    a matrix for so few rows twice as fast this way round (64 rows of 300 positions, 8 layers,
    f32, 2 cores: 40 ms against 86 ms a step)."""

    k: tuple[jax.Array, ...]
    v: tuple[jax.Array, ...]


def init_pages(config: DecoderConfig, count: int, page: int, dtype: jnp.dtype) -> Pages:
    """A pool of `count` pages of `page` positions, besides the unused one, all 0."""
    heads, size = config.num_kv_heads, config.head_dim

    def layers(*shape):
        return tuple(
            constrain(jnp.zeros((count + 1, heads, *shape), dtype), None, "heads", None, None)
            for _ in range(config.num_layers)
        )

    return Pages(layers(size, page), layers(page, size))


def page_bytes(config: DecoderConfig, page: int, dtype: jnp.dtype) -> int:
    """Bytes that a page takes in all layers."""
    numbers = 2 * config.num_layers * config.num_kv_heads * config.head_dim * page
    return numbers * jnp.dtype(dtype).itemsize


def forward(
    decoder: Decoder,
    tokens: jax.Array,
    positions: jax.Array,
    table: jax.Array,
    cache: Pages,
    valid: jax.Array,
    adapter: jax.Array,
) -> tuple[jax.Array, Pages]:
    """`decoder(tokens, positions, cache=cache, valid=valid, adapter=adapter)` over pages.

    `tokens`, `positions`, `valid` are `[B, T]`, `table` is `[B, M]`; row b uses adapter number
    `adapter[b]`. Gives hidden states `[B, T, D]` (meaningless where not valid) and the cache
    with the valid tokens written. Two rows may share pages (two chunks of one prompt): keys
    are written before any is read.
    """
    _, x, cache = _layers(decoder, tokens, positions, table, cache, valid, adapter)
    return decoder.norm(x), cache


def read(
    decoder: Decoder,
    tokens: jax.Array,
    positions: jax.Array,
    table: jax.Array,
    cache: Pages,
    valid: jax.Array,
    adapter: jax.Array,
) -> tuple[jax.Array, Pages]:
    """`forward` for tokens of which few are continued: the states `[B, T, D]` that enter the
    last layer, for `finish`, and the same cache. Of the last layer only keys and values are
    computed (the compiler drops what nobody uses): of two layers that saves almost half."""
    entering, _, cache = _layers(decoder, tokens, positions, table, cache, valid, adapter)
    return entering, cache


def finish(
    decoder: Decoder,
    entering: jax.Array,
    positions: jax.Array,
    table: jax.Array,
    cache: Pages,
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
        return attend_pages(q, *past, table, positions, end, window), None

    x, _ = block(entering, decoder.rotation(positions), decoder.adapter(adapter), look)
    return decoder.norm(x)


def _layers(decoder, tokens, positions, table, cache, valid, adapter):
    """The states that enter the last layer, those that leave it, and the cache."""
    x = constrain(decoder.embedding[...][tokens].astype(decoder.dtype), "batch", None, None)
    rotation, its_adapter = decoder.rotation(positions), decoder.adapter(adapter)
    windows = decoder.config.windows()
    count, *_, page = cache.k[0].shape
    end = jnp.max(jnp.where(valid, positions + 1, 0))
    pages = jnp.take_along_axis(table, positions // page, axis=1)
    at = jnp.where(valid, pages, count), positions % page  # page `count` does not exist
    keys, values, entering = [], [], x
    for layer, block in enumerate(decoder.blocks()):

        def look(q, k, v, layer=layer):
            k = cache.k[layer].at[at[0], :, :, at[1]].set(_cast(k, cache.k), mode="drop")
            v = cache.v[layer].at[at[0], :, at[1]].set(_cast(v, cache.v), mode="drop")
            y = attend_pages(q, k, v, table, positions, end, windows[layer])
            return y, (k, v)

        entering = x
        x, (k, v) = block(x, rotation, its_adapter, look)
        keys.append(k)
        values.append(v)
    return entering, x, Pages(tuple(keys), tuple(values))


def _cast(new, held):
    return new.astype(held[0].dtype)


def attend_pages(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    table: jax.Array,
    positions: jax.Array,
    end: jax.Array,
    window: int | None = None,
) -> jax.Array:
    """Attention of `q [B, T, N, H]` at `positions [B, T]` over the pages `table [B, M]` of
    `k [C, K, H, P]` and `v [C, K, P, H]` up to the traced `end`, f32 softmax; `[B, T, N, H]` in
    q's type. A query sees itself and what is before it, or the last `window` of that."""
    batch, queries, heads, size = q.shape
    groups, page, many = k.shape[1], k.shape[3], table.shape[1]
    together = max(BLOCK // page, 1)
    table = jnp.pad(table, ((0, 0), (0, -many % together)), constant_values=UNUSED)
    width = together * page
    shape = (batch, queries, groups, heads // groups, size)
    flat = (q * size**-0.5).reshape(shape).swapaxes(1, 2).reshape(batch, groups, -1, size)
    reach = jnp.repeat(positions, heads // groups, axis=1)[:, None, :, None]

    def body(i, carry):
        highest, total, result = carry
        pages = lax.dynamic_slice(table, (0, i * together), (batch, together))
        keys, values = (
            jnp.concatenate([a[pages[:, n]] for n in range(together)], axis).astype(q.dtype)
            for a, axis in ((k, 3), (v, 2))
        )
        scores = contract("bkqh,bkhs->bkqs", flat, keys, jnp.float32)
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
