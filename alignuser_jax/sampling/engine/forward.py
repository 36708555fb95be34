"""The decoder's forward pass over rows whose KV cache lies in pages of one pool, or in strips.

A row's `block_table` says which page holds its positions `i * P` to `(i + 1) * P - 1`; rows
with the same beginning share pages. Attention goes over a row's pages in blocks with a running
softmax, up to the furthest position that any row needs. A block beyond a row's own positions
adds exactly 0 and rescales by exactly 1, so a row's bits do not depend on how far its
neighbours read, and no context buckets are needed.

Decoding reads all of a row for every token. It can therefore copy the pages of its rows into
strips once (`pages_to_strips`), take some steps on these (`forward_strips`), and copy the new
positions back (`strips_to_pages`).

Letters in shapes: B rows, T tokens, D hidden size, N heads, K key heads, H head size,
P positions of a page, M pages of a row, C pages of the pool, S positions of a strip.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike

from alignuser_jax.model import Decoder, DecoderConfig
from alignuser_jax.model.contract import contract
from alignuser_jax.parallel import constrain

BLOCK = 64
"""Positions that attention reads at a time.

Few enough for their scores to stay in a CPU's cache, enough for its matrix products.
"""

UNUSED_PAGE = 0
"""A page that nobody writes; unused entries of a block table point to it."""

Array = jax.Array | np.ndarray
"""An input of a forward pass: traced, or on the host."""


class Pages(NamedTuple):
    """The KV cache of one layer after the other, as a pool of pages.

    In the keys the positions come last. A decode step multiplies them with one row or two, and
    a CPU reads a matrix for so few rows twice as fast this way round (64 rows of 300 positions,
    8 layers, f32, 2 cores: 40 ms against 86 ms a step).

    Attributes:
        k: `[C, K, H, P]` for each layer.
        v: `[C, K, P, H]` for each layer.
    """

    k: tuple[jax.Array, ...]
    v: tuple[jax.Array, ...]


class Strips(NamedTuple):
    """The KV cache of some rows, each row's pages copied end to end.

    The attention of a step is then two plain products that copy nothing (64 rows of 300
    positions, 8 layers, f32, 2 cores: 16 ms a step against 42 ms through pages).

    Attributes:
        k: `[B, K, H, S]` for each layer.
        v: `[B, K, S, H]` for each layer.
    """

    k: tuple[jax.Array, ...]
    v: tuple[jax.Array, ...]


class TokenBlock(NamedTuple):
    """The tokens that a forward pass computes.

    Attributes:
        tokens: int32 `[B, T]`.
        positions: int32 `[B, T]`.
        valid: bool `[B, T]`; the results of other tokens mean nothing and are not stored.
        adapter: int32 `[B]`, the number of each row's adapter, from 1; 0 for the base model.
    """

    tokens: Array
    positions: Array
    valid: Array
    adapter: Array


AttendLayer = Callable[
    [int, jax.Array, jax.Array, jax.Array], tuple[jax.Array, tuple[jax.Array, jax.Array]]
]
"""`(layer, q, k, v)` to the attention's output and the layer's new cache (keys and values)."""


def cache_dtype(dtype: DTypeLike, platform: str) -> jnp.dtype:
    """Return the type of keys and values in the cache of a decoder of `dtype`.

    It is the decoder's own but on a CPU, where it is f32. XLA's CPU back end writes into no
    bf16 array: it converts all of it to f32 and back, so that one token's keys would cost a
    pass over every page there is (1,537 pages of 64 positions, 3 heads of 64: 87 ms a write
    against 0.04 ms). Widening changes no number, and f32 products of so few rows are faster.

    Args:
        dtype: The type of the decoder's activations.
        platform: The platform of its devices, "cpu" or another.
    """
    return jnp.dtype(jnp.float32 if platform == "cpu" else dtype)


def init_pages(config: DecoderConfig, count: int, page: int, dtype: jnp.dtype) -> Pages:
    """Return a pool of zeros: `count` pages of `page` positions, besides `UNUSED_PAGE`."""
    heads, size = config.num_kv_heads, config.head_dim

    def layers(*shape):
        return tuple(
            constrain(jnp.zeros((count + 1, heads, *shape), dtype), None, "heads", None, None)
            for _ in range(config.num_layers)
        )

    return Pages(layers(size, page), layers(page, size))


def init_strips(config: DecoderConfig, rows: int, length: int, dtype: jnp.dtype) -> Strips:
    """Return strips of zeros: `length` positions for each of `rows` rows."""
    heads, size = config.num_kv_heads, config.head_dim

    def layers(*shape):
        zeros = jnp.zeros((rows, heads, *shape), dtype)
        return tuple(
            constrain(zeros + 0, None, "heads", None, None) for _ in range(config.num_layers)
        )

    return Strips(layers(size, length), layers(length, size))


def page_bytes(config: DecoderConfig, page: int, dtype: jnp.dtype) -> int:
    """Return the bytes that a page of `page` positions takes in all layers."""
    numbers = 2 * config.num_layers * config.num_kv_heads * config.head_dim * page
    return numbers * jnp.dtype(dtype).itemsize


def forward(
    decoder: Decoder, block: TokenBlock, block_table: Array, pages: Pages
) -> tuple[jax.Array, Pages]:
    """Return the hidden states of the tokens, and the pages with their keys and values.

    Two rows may share pages (two chunks of one prompt): in each layer all keys are written
    before any are read.

    Args:
        decoder: The model.
        block: The tokens.
        block_table: int32 `[B, M]`, the pages of each row.
        pages: The cache of all earlier tokens of the rows.

    Returns:
        Hidden states `[B, T, D]`, and the pages.
    """
    attend = _attend_in_pages(decoder, block, block_table, pages)
    _, x, new = _run_layers(decoder, block, attend)
    return decoder.norm(x), Pages(*new)


def forward_prompt(
    decoder: Decoder, block: TokenBlock, block_table: Array, pages: Pages
) -> tuple[jax.Array, Pages]:
    """Do what `forward` does for tokens of which few are continued.

    Of the last layer only keys and values are computed, since the compiler drops what nobody
    uses; of two layers that saves almost half. `finish_last_layer` computes the rest for the
    tokens that need it.

    Returns:
        The states `[B, T, D]` that enter the last layer, and the pages.
    """
    attend = _attend_in_pages(decoder, block, block_table, pages)
    entering, _, new = _run_layers(decoder, block, attend)
    return entering, Pages(*new)


def finish_last_layer(
    decoder: Decoder,
    entering: jax.Array,
    positions: Array,
    adapter: Array,
    block_table: Array,
    pages: Pages,
) -> jax.Array:
    """Return the hidden states of tokens that `forward_prompt` has put into the pages.

    Args:
        decoder: The model.
        entering: The states `[B, T, D]` of the tokens that enter the last layer.
        positions: int32 `[B, T]`.
        adapter: int32 `[B]`, as in `TokenBlock`.
        block_table: int32 `[B, M]`, the pages of each row.
        pages: The cache.

    Returns:
        Hidden states `[B, T, D]`.
    """
    layer = decoder.config.num_layers - 1
    *_, block = decoder.blocks()
    window = decoder.config.windows()[layer]

    def attend(q, k, v):
        cached = pages.k[layer], pages.v[layer]
        end = jnp.max(positions) + 1
        return attend_pages(q, *cached, block_table, positions, end, window), None

    x, _ = block(entering, decoder.rotation(positions), decoder.adapter(adapter), attend)
    return decoder.norm(x)


def pages_to_strips(pages: Pages, block_table: Array) -> Strips:
    """Copy the pages of the rows in `block_table [B, M]` into strips of M * P positions."""

    def end_to_end(pool, axis):
        rows = jnp.moveaxis(pool[block_table], 1, axis)  # [B, K, .., M, P, ..]
        shape = *rows.shape[:axis], -1, *rows.shape[axis + 2 :]
        return constrain(rows.reshape(shape), None, "heads", None, None)

    return Strips(
        tuple(end_to_end(k, 3) for k in pages.k), tuple(end_to_end(v, 2) for v in pages.v)
    )


def forward_strips(
    decoder: Decoder, block: TokenBlock, strips: Strips
) -> tuple[jax.Array, Strips]:
    """Do what `forward` does on strips: return hidden states `[B, T, D]` and the strips."""
    windows, (_, count, _, length) = decoder.config.windows(), strips.k[0].shape
    # Heads are numbered too: a scatter into one row alone would copy its strip (XLA, CPU).
    rows, heads = jnp.arange(block.tokens.shape[0])[:, None, None], jnp.arange(count)
    # `length` is no position of the strip, so tokens that are not valid are dropped
    at = jnp.where(block.valid, block.positions, length)[..., None]

    def attend(layer, q, k, v):
        k = strips.k[layer].at[rows, heads, :, at].set(_cast(k, strips.k), mode="drop")
        v = strips.v[layer].at[rows, heads, at].set(_cast(v, strips.v), mode="drop")
        return attend_strips(q, k, v, block.positions, windows[layer]), (k, v)

    _, x, new = _run_layers(decoder, block, attend)
    return decoder.norm(x), Strips(*new)


def strips_to_pages(
    pages: Pages, strips: Strips, block_table: Array, positions: Array, valid: Array
) -> Pages:
    """Copy the valid `positions [B, T]` of the strips back into the rows' pages."""
    rows = jnp.arange(positions.shape[0])[:, None]
    page, offset = _page_and_offset(pages, block_table, positions, valid)

    def put(pool, strip, to, source):
        return pool.at[to].set(strip[source], mode="drop")

    every = slice(None)
    to_k, from_k = (page, every, every, offset), (rows, every, every, positions)
    to_v, from_v = (page, every, offset), (rows, every, positions)
    return Pages(
        tuple(put(a, b, to_k, from_k) for a, b in zip(pages.k, strips.k, strict=True)),
        tuple(put(a, b, to_v, from_v) for a, b in zip(pages.v, strips.v, strict=True)),
    )


def _run_layers(
    decoder: Decoder, block: TokenBlock, attend: AttendLayer
) -> tuple[jax.Array, jax.Array, tuple[tuple[jax.Array, ...], ...]]:
    """Return the states that enter the last layer, those that leave it, and all new caches."""
    x = decoder.embedding[...][block.tokens].astype(decoder.dtype)
    x = constrain(x, "batch", None, None)
    rotation, adapter = decoder.rotation(block.positions), decoder.adapter(block.adapter)
    caches, entering = [], x
    for layer, decoder_block in enumerate(decoder.blocks()):
        entering = x
        x, cache = decoder_block(x, rotation, adapter, partial(attend, layer))
        caches.append(cache)
    return entering, x, tuple(zip(*caches, strict=True))


def _attend_in_pages(
    decoder: Decoder, block: TokenBlock, block_table: Array, pages: Pages
) -> AttendLayer:
    """Return the attention that writes the valid tokens into the pages and then reads them."""
    windows = decoder.config.windows()
    end = jnp.max(jnp.where(block.valid, block.positions + 1, 0))
    page, offset = _page_and_offset(pages, block_table, block.positions, block.valid)

    def attend(layer, q, k, v):
        k = pages.k[layer].at[page, :, :, offset].set(_cast(k, pages.k), mode="drop")
        v = pages.v[layer].at[page, :, offset].set(_cast(v, pages.v), mode="drop")
        window = windows[layer]
        return attend_pages(q, k, v, block_table, block.positions, end, window), (k, v)

    return attend


def _page_and_offset(
    pages: Pages, block_table: Array, positions: Array, valid: Array
) -> tuple[jax.Array, Array]:
    """Return each position's page and its place there; no page exists for one not valid."""
    count, *_, size = pages.k[0].shape
    page = jnp.take_along_axis(block_table, positions // size, axis=1)
    return jnp.where(valid, page, count), positions % size


def _cast(new: jax.Array, cached: tuple[jax.Array, ...]) -> jax.Array:
    return new.astype(cached[0].dtype)


def attend_pages(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    block_table: Array,
    positions: Array,
    end: jax.Array,
    window: int | None = None,
) -> jax.Array:
    """Return the attention of queries over the pages of their rows; softmax in f32.

    Args:
        q: `[B, T, N, H]`.
        k: `[C, K, H, P]`.
        v: `[C, K, P, H]`.
        block_table: int32 `[B, M]`, the pages of each row.
        positions: int32 `[B, T]`, the queries' positions.
        end: int32 scalar, traced; no position from here on is read.
        window: A query sees itself and what is before it; with a window of w only the last w of
            these.

    Returns:
        `[B, T, N, H]` in the type of `q`.
    """
    batch, page, many = len(q), k.shape[3], block_table.shape[1]
    together = max(BLOCK // page, 1)
    table = jnp.pad(block_table, ((0, 0), (0, -many % together)), constant_values=UNUSED_PAGE)
    width = together * page
    flat, reach = _by_key_head(q, positions, k)

    def body(i, carry):
        highest, total, result = carry
        pages = lax.dynamic_slice(table, (0, i * together), (batch, together))
        keys, values = (
            jnp.concatenate([a[pages[:, n]] for n in range(together)], axis)
            for a, axis in ((k, 3), (v, 2))
        )
        scores = contract("bkqh,bkhs->bkqs", flat, keys, jnp.float32)
        at = i * width + jnp.arange(width)
        scores = _mask(scores, at, reach, window)
        new = jnp.maximum(highest, scores.max(axis=-1, keepdims=True))
        weights, fade = jnp.exp(scores - new), jnp.exp(highest - new)
        total = total * fade + weights.sum(axis=-1, keepdims=True)
        added = contract("bkqs,bksh->bkqh", weights.astype(v.dtype), values, jnp.float32)
        return new, total, result * fade + added

    lowest = jnp.full((*flat.shape[:3], 1), jnp.finfo(jnp.float32).min, jnp.float32)
    carry = lowest, jnp.zeros_like(lowest), jnp.zeros(flat.shape, jnp.float32)
    _, total, result = lax.fori_loop(0, -(-end // width), body, carry)
    return _by_query(result / jnp.maximum(total, jnp.finfo(jnp.float32).tiny), q)


def attend_strips(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    positions: Array,
    window: int | None = None,
) -> jax.Array:
    """Do what `attend_pages` does over strips `k [B, K, H, S]` and `v [B, K, S, H]`."""
    flat, reach = _by_key_head(q, positions, k)
    scores = contract("bkqh,bkhs->bkqs", flat, k, jnp.float32)
    scores = _mask(scores, jnp.arange(k.shape[3]), reach, window)
    weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    total = weights.sum(axis=-1, keepdims=True)
    result = contract("bkqs,bksh->bkqh", weights.astype(v.dtype), v, jnp.float32)
    return _by_query(result / total, q)


def _by_key_head(
    q: jax.Array, positions: Array, keys: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return scaled queries `[B, K, T * N / K, H]` and how far each may look `[B, 1, ., 1]`.

    The queries have the type of the keys, which hold K heads in their second axis.
    """
    batch, queries, heads, size = q.shape
    groups, q = keys.shape[1], q.astype(keys.dtype)
    shape = (batch, queries, groups, heads // groups, size)
    flat = (q * size**-0.5).reshape(shape).swapaxes(1, 2).reshape(batch, groups, -1, size)
    return flat, jnp.repeat(positions, heads // groups, axis=1)[:, None, :, None]


def _mask(scores: jax.Array, at: jax.Array, reach: jax.Array, window: int | None) -> jax.Array:
    """Return the scores of keys at positions `at`; the lowest number where no query looks."""
    visible = at <= reach if window is None else (at <= reach) & (at > reach - window)
    return jnp.where(visible, scores, jnp.finfo(jnp.float32).min)


def _by_query(y: jax.Array, q: jax.Array) -> jax.Array:
    """Return `y [B, K, T * N / K, H]` in the shape and type of `q [B, T, N, H]`."""
    batch, queries, heads, size = q.shape
    y = y.astype(q.dtype).reshape(batch, y.shape[1], queries, -1, size).swapaxes(1, 2)
    return y.reshape(batch, queries, heads, size)
