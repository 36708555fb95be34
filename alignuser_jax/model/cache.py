"""Keys and values of what was read before: a slot is its absolute position, from 0.

Rows of different lengths live side by side; a row's content depends on its own tokens only.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from alignuser_jax.model.config import DecoderConfig


class KVCache(NamedTuple):
    """`k`, `v`: `[layers, B, slots, kv_heads, head_dim]`; unwritten slots are 0."""

    k: jax.Array
    v: jax.Array


def init_cache(
    config: DecoderConfig, batch: int, length: int, dtype: jnp.dtype = jnp.float32
) -> KVCache:
    """An empty cache of `length` slots for `batch` rows."""
    shape = (config.num_layers, batch, length, config.num_kv_heads, config.head_dim)
    return KVCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))


def write(
    cache: KVCache,
    layer: int | jax.Array,
    positions: jax.Array,
    valid: jax.Array | None,
    k: jax.Array,
    v: jax.Array,
) -> KVCache:
    """Writes `k, v [B, T, K, H]` into `layer` at `positions [B, T]`.

    Tokens that are not `valid [B, T]`, and positions beyond the last slot, are not written.
    """
    slots = positions if valid is None else jnp.where(valid, positions, cache.k.shape[2])
    rows = jnp.arange(positions.shape[0])[:, None]
    k, v = (
        whole.at[layer, rows, slots].set(
            new.astype(whole.dtype), mode="drop", unique_indices=True
        )
        for whole, new in zip(cache, (k, v), strict=True)
    )
    return KVCache(k, v)
