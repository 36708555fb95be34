"""Attention by the book: the reference that any faster kernel has to equal.

Letters: B rows, T queries, S keys, K key heads, G queries per key head, H head size.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from alignuser_jax.model.contract import contract


def rotary_angles(positions: jax.Array, head_dim: int, theta: float) -> jax.Array:
    """f32 angles `[B, T, 1, H/2]` of positions `[B, T]` (Su et al. 2021)."""
    frequencies = theta ** -(jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    return positions.astype(jnp.float32)[..., None, None] * frequencies


def rotate(x: jax.Array, angles: jax.Array) -> jax.Array:
    """Rotates `x [B, T, heads, H]` by `angles`, first half of H against second half."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    rotated = (first * cos - second * sin, second * cos + first * sin)
    return jnp.concatenate(rotated, axis=-1).astype(x.dtype)


def causal_mask(segment_ids: jax.Array | None, length: int) -> jax.Array:
    """bool `[1 or B, T, T]`: earlier or same place, and the same segment of `[B, T]`."""
    mask = jnp.tril(jnp.ones((1, length, length), bool))
    if segment_ids is not None:
        mask &= segment_ids[:, :, None] == segment_ids[:, None, :]
    return mask


def cache_mask(positions: jax.Array, slots: int) -> jax.Array:
    """bool `[B, T, S]`: slot at or before the query's position (a slot is a position)."""
    return jnp.arange(slots) <= positions[:, :, None]


def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """Grouped-query attention with an f32 softmax; key heads are never repeated in memory.

    Args:
      q: `[B, T, N, H]` with N = K * G; query heads of one key head are neighbours.
      k, v: `[B, S, K, H]`.
      mask: bool `[1 or B, T, S]`, True where a query may look. A query that may look nowhere
        gets a finite meaningless result.

    Returns `[B, T, N, H]` in q's type.
    """
    batch, queries, heads, size = q.shape
    q = (q * size**-0.5).reshape(batch, queries, k.shape[2], -1, size)
    scores = contract("btkgh,bskh->bkgts", q, k, jnp.float32)
    scores = jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return contract("bkgts,bskh->btkgh", weights, v).reshape(batch, queries, heads, size)
