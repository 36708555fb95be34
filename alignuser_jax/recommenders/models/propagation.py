"""LightGCN's propagation as gathers and adds.

A step is a product with a sparse matrix of ones between two scalings by 1/√degree. Every row's
neighbours are cut into runs of `RUN`, padded with a row of zeros, so that a run's sum is one
fused loop and few sums are left to scatter. For a made-up matrix of 6,040 x 3,706 with 716,000
ones and 64 factors, on a quiet CPU of two cores: XLA's sorted `segment_sum` 88 ms, a dense
product 14 ms, `scipy.sparse` 8 ms, `jax.experimental.sparse.BCSR` 5 ms, this 4 ms. BCSR is as
fast within the noise (`tests/benchmarks/propagation.py`), but experimental.

Imports jax: only `LightGCN.fit` imports this module.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from alignuser_jax.recommenders.models.bpr import Propagate, Vectors

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

RUN = 16
"""Neighbours in one run."""


def runs(rows: csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    """Cut each row's columns into runs.

    Args:
        rows: a matrix of ones, [n_rows, n_columns].

    Returns:
        The columns of each run, int32[m, RUN], filled up with `n_columns`, and the row of each
        run, int32[m], ascending.
    """
    counts = np.diff(rows.indptr)
    many = -(-counts // RUN)
    row = np.repeat(np.arange(len(counts), dtype=np.int32), many)
    columns = np.full((len(row), RUN), rows.shape[1], np.int32)
    first = np.cumsum(many) - many
    place = np.arange(len(rows.indices)) - np.repeat(rows.indptr[:-1], counts)
    start = np.repeat(first * RUN, counts)
    columns.reshape(-1)[start + place] = rows.indices
    return columns, row


def product(rows: csr_matrix) -> Callable[[jax.Array], jax.Array]:
    """Return the function `x -> rows @ x` for a matrix of ones; x is float32[n_columns, d]."""
    columns, row = runs(rows)
    n_rows = rows.shape[0]

    def apply(x: jax.Array) -> jax.Array:
        padded = jnp.concatenate([x, jnp.zeros((1, x.shape[1]), x.dtype)])
        total = padded[columns[:, 0]]
        for n in range(1, RUN):  # unrolled: XLA fuses the gathers into one loop
            total = total + padded[columns[:, n]]
        return jax.ops.segment_sum(total, row, n_rows, indices_are_sorted=True)

    return apply


def propagation(positives: csr_matrix, layers: int) -> Propagate:
    """Return LightGCN's map of initial vectors to final ones.

    It is the mean of 0 to `layers` steps X ← D^(-1/2) A D^(-1/2) X over users and items
    together, where A is the bipartite graph of `positives`. The map is symmetric, hence its own
    transpose: the backward pass is the same map of the gradient.
    """
    to_users, to_items = product(positives), product(positives.T.tocsr())
    degrees = np.diff(positives.indptr), np.asarray(positives.sum(0)).ravel()
    users_scale, items_scale = (
        (np.maximum(d, 1) ** -0.5).astype(np.float32)[:, None] for d in degrees
    )

    @jax.custom_vjp
    def propagate(vectors: Vectors) -> Vectors:
        users, items = vectors["users"], vectors["items"]
        all_users, all_items = users, items
        for _ in range(layers):
            users, items = (
                users_scale * to_users(items_scale * items),
                items_scale * to_items(users_scale * users),
            )
            all_users, all_items = all_users + users, all_items + items
        share = 1 / (layers + 1)
        return {"users": share * all_users, "items": share * all_items}

    propagate.defvjp(
        lambda vectors: (propagate(vectors), None), lambda _, gradient: (propagate(gradient),)
    )
    return propagate
