"""The decoder over rows whose keys and values lie in pages of one pool, or in strips.

A row's `table` says which page holds its positions `i * P` to `(i + 1) * P - 1`; rows that
begin alike share pages. Attention goes over a row's pages in blocks with a running softmax, up
to the furthest position that any row needs. A block beyond a row's own positions adds exactly 0
and rescales by exactly 1, so a row's bits do not depend on how far its neighbours read; no
context buckets are needed.

Decoding reads all of a row for every token. It may lay the pages of its rows end to end once
(`lay`), take some steps on these strips (`forward_strips`), and put what is new back into the
pages (`keep`).
Letters: B rows, T tokens, D hidden, N heads, K key heads, H head size, P positions of a page,
M pages of a row, C pages of the pool, S positions of a strip.
"""

from __future__ import annotations

from functools import partial
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


class Strips(NamedTuple):
    """The pages of some rows end to end: keys `[B, K, H, S]` and values `[B, K, S, H]` of each
    layer. A step's attention is then two plain products that copy nothing (64 rows of 300
    positions, 8 layers, f32, 2 cores: 16 ms a step against 42 ms through pages)."""

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


def init_strips(config: DecoderConfig, rows: int, length: int, dtype: jnp.dtype) -> Strips:
    """Strips of `length` positions for `rows` rows, all 0."""
    heads, size = config.num_kv_heads, config.head_dim

    def layers(*shape):
        zeros = jnp.zeros((rows, heads, *shape), dtype)
        return tuple(
            constrain(zeros + 0, None, "heads", None, None) for _ in range(config.num_layers)
        )

    return Strips(layers(size, length), layers(length, size))


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
    look = _in_pages(decoder, positions, table, cache, valid)
    _, x, kept = _layers(decoder, tokens, positions, adapter, look)
    return decoder.norm(x), Pages(*kept)


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
    look = _in_pages(decoder, positions, table, cache, valid)
    entering, _, kept = _layers(decoder, tokens, positions, adapter, look)
    return entering, Pages(*kept)


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


def lay(cache: Pages, table: jax.Array) -> Strips:
    """What the pages `table [B, M]` hold, in strips of S = M * P positions."""

    def end_to_end(pages, axis):
        rows = jnp.moveaxis(pages[table], 1, axis)  # [B, K, .., M, P, ..]
        shape = *rows.shape[:axis], -1, *rows.shape[axis + 2 :]
        return constrain(rows.reshape(shape), None, "heads", None, None)

    return Strips(
        tuple(end_to_end(k, 3) for k in cache.k), tuple(end_to_end(v, 2) for v in cache.v)
    )


def forward_strips(
    decoder: Decoder,
    tokens: jax.Array,
    positions: jax.Array,
    strips: Strips,
    valid: jax.Array,
    adapter: jax.Array,
) -> tuple[jax.Array, Strips]:
    """`forward` over strips."""
    windows, (_, heads, _, length) = decoder.config.windows(), strips.k[0].shape
    # Heads are numbered too: a scatter into one row alone would copy its strip (XLA, CPU).
    rows, heads = jnp.arange(tokens.shape[0])[:, None, None], jnp.arange(heads)
    at = jnp.where(valid, positions, length)[..., None]  # `length` is no position

    def look(layer, q, k, v):
        k = strips.k[layer].at[rows, heads, :, at].set(_cast(k, strips.k), mode="drop")
        v = strips.v[layer].at[rows, heads, at].set(_cast(v, strips.v), mode="drop")
        return attend_strips(q, k, v, positions, windows[layer]), (k, v)

    _, x, kept = _layers(decoder, tokens, positions, adapter, look)
    return decoder.norm(x), Strips(*kept)


def keep(
    cache: Pages, strips: Strips, table: jax.Array, positions: jax.Array, valid: jax.Array
) -> Pages:
    """The cache with what the strips hold at the valid `positions [B, T]`."""
    rows = jnp.arange(positions.shape[0])[:, None]
    page, place = _places(cache, table, positions, valid)

    def put(pages, strip, old, new):
        return pages.at[old].set(strip[new], mode="drop")

    every = slice(None)
    old_k, new_k = (page, every, every, place), (rows, every, every, positions)
    old_v, new_v = (page, every, place), (rows, every, positions)
    return Pages(
        tuple(put(a, b, old_k, new_k) for a, b in zip(cache.k, strips.k, strict=True)),
        tuple(put(a, b, old_v, new_v) for a, b in zip(cache.v, strips.v, strict=True)),
    )


def _layers(decoder, tokens, positions, adapter, look):
    """The states that enter the last layer, those that leave it, and what `look(layer, q, k,
    v)` keeps of each layer besides what it saw: keys and values."""
    x = constrain(decoder.embedding[...][tokens].astype(decoder.dtype), "batch", None, None)
    rotation, its_adapter = decoder.rotation(positions), decoder.adapter(adapter)
    kept, entering = [], x
    for layer, block in enumerate(decoder.blocks()):
        entering = x
        x, pair = block(x, rotation, its_adapter, partial(look, layer))
        kept.append(pair)
    return entering, x, tuple(zip(*kept, strict=True))


def _in_pages(decoder, positions, table, cache, valid):
    """A layer's look at its pages, after the valid tokens were written there."""
    windows = decoder.config.windows()
    end = jnp.max(jnp.where(valid, positions + 1, 0))
    page, place = _places(cache, table, positions, valid)

    def look(layer, q, k, v):
        k = cache.k[layer].at[page, :, :, place].set(_cast(k, cache.k), mode="drop")
        v = cache.v[layer].at[page, :, place].set(_cast(v, cache.v), mode="drop")
        return attend_pages(q, k, v, table, positions, end, windows[layer]), (k, v)

    return look


def _places(cache, table, positions, valid):
    """In which page, and where there, each position lies: in none where it is not valid."""
    count, *_, size = cache.k[0].shape
    pages = jnp.take_along_axis(table, positions // size, axis=1)
    return jnp.where(valid, pages, count), positions % size


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
    batch, page, many = len(q), k.shape[3], table.shape[1]
    together = max(BLOCK // page, 1)
    table = jnp.pad(table, ((0, 0), (0, -many % together)), constant_values=UNUSED)
    width = together * page
    flat, reach = _by_key_head(q, positions, k.shape[1])

    def body(i, carry):
        highest, total, result = carry
        pages = lax.dynamic_slice(table, (0, i * together), (batch, together))
        keys, values = (
            jnp.concatenate([a[pages[:, n]] for n in range(together)], axis).astype(q.dtype)
            for a, axis in ((k, 3), (v, 2))
        )
        scores = contract("bkqh,bkhs->bkqs", flat, keys, jnp.float32)
        at = i * width + jnp.arange(width)
        scores = _seen(scores, at, reach, window)
        new = jnp.maximum(highest, scores.max(axis=-1, keepdims=True))
        weights, fade = jnp.exp(scores - new), jnp.exp(highest - new)
        total = total * fade + weights.sum(axis=-1, keepdims=True)
        added = contract("bkqs,bksh->bkqh", weights.astype(q.dtype), values, jnp.float32)
        return new, total, result * fade + added

    lowest = jnp.full((*flat.shape[:3], 1), jnp.finfo(jnp.float32).min, jnp.float32)
    carry = lowest, jnp.zeros_like(lowest), jnp.zeros(flat.shape, jnp.float32)
    _, total, result = lax.fori_loop(0, -(-end // width), body, carry)
    return _by_query(result / jnp.maximum(total, jnp.finfo(jnp.float32).tiny), q)


def attend_strips(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    positions: jax.Array,
    window: int | None = None,
) -> jax.Array:
    """`attend_pages` over strips `k [B, K, H, S]` and `v [B, K, S, H]`."""
    flat, reach = _by_key_head(q, positions, k.shape[1])
    scores = contract("bkqh,bkhs->bkqs", flat, k.astype(q.dtype), jnp.float32)
    scores = _seen(scores, jnp.arange(k.shape[3]), reach, window)
    weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    total = weights.sum(axis=-1, keepdims=True)
    values = v.astype(q.dtype)
    result = contract("bkqs,bksh->bkqh", weights.astype(q.dtype), values, jnp.float32)
    return _by_query(result / total, q)


def _by_key_head(q, positions, groups):
    """Scaled queries `[B, K, T * N / K, H]`, and how far each may look, `[B, 1, ., 1]`."""
    batch, queries, heads, size = q.shape
    shape = (batch, queries, groups, heads // groups, size)
    flat = (q * size**-0.5).reshape(shape).swapaxes(1, 2).reshape(batch, groups, -1, size)
    return flat, jnp.repeat(positions, heads // groups, axis=1)[:, None, :, None]


def _seen(scores, at, reach, window):
    """The scores of the keys at positions `at` that a query may look at."""
    seen = at <= reach if window is None else (at <= reach) & (at > reach - window)
    return jnp.where(seen, scores, jnp.finfo(jnp.float32).min)


def _by_query(y, q):
    """`[B, K, T * N / K, H]` as q lies, in its type."""
    batch, queries, heads, size = q.shape
    y = y.astype(q.dtype).reshape(batch, y.shape[1], queries, -1, size).swapaxes(1, 2)
    return y.reshape(batch, queries, heads, size)
