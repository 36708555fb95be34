"""Bayesian personalized ranking (Rendle et al., 2009) over any embedding of users and items:
what MF and LightGCN are trained with. Imports jax: only `fit` methods import this module."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from alignuser_jax.recommenders.base import generator
from alignuser_jax.recommenders.models.fitting import Fitted, Validation, fit_epochs

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

Vectors = dict[str, jax.Array]
"""`users` float32[n_users, d] and `items` float32[n_items, d]."""


def draw_negatives(positives: csr_matrix, users: np.ndarray, draw: np.random.Generator):
    """int32[n]: for each of `users` an item that is not in its row, uniformly; for a user who
    has every item, any."""
    n_items = positives.shape[1]
    counts = np.diff(positives.indptr)
    keys = np.repeat(np.arange(len(counts)), counts) * n_items + positives.indices
    found = draw.integers(n_items, size=len(users))
    again = np.flatnonzero(counts[users] < n_items)
    while len(again):
        asked = users[again].astype(np.int64) * n_items + found[again]
        place = np.minimum(np.searchsorted(keys, asked), len(keys) - 1)
        again = again[keys[place] == asked]
        found[again] = draw.integers(n_items, size=len(again))
    return found.astype(np.int32)


def epoch_batches(
    positives: csr_matrix, batch_size: int, seed: int, epoch: int
) -> dict[str, np.ndarray]:
    """Every positive once in a random order, each with its negative: `user`, `positive`,
    `negative` int32[steps, batch], `weight` float32, 0 where the last batch is filled up."""
    draw = generator("bpr", seed, epoch)
    rows = np.repeat(np.arange(positives.shape[0]), np.diff(positives.indptr))
    order = draw.permutation(len(rows))
    users = rows[order].astype(np.int32)
    steps = -(-len(rows) // batch_size)
    columns = {
        "user": users,
        "positive": positives.indices[order].astype(np.int32),
        "negative": draw_negatives(positives, users, draw),
        "weight": np.ones(len(rows), np.float32),
    }
    missing = steps * batch_size - len(rows)
    return {
        name: np.pad(column, (0, missing)).reshape(steps, batch_size)
        for name, column in columns.items()
    }


def bpr_loss(initial: Vectors, final: Vectors, batch: dict[str, jax.Array], l2: float):
    """-log σ(x_u·(y_p - y_n)) with the final vectors, plus l2 / 2 times the squared norms of
    the triple's initial vectors; the mean over the weighted triples of one batch."""
    weight = batch["weight"]

    def triple(vectors: Vectors) -> tuple[jax.Array, jax.Array, jax.Array]:
        items = vectors["items"]
        return (
            vectors["users"][batch["user"]],
            items[batch["positive"]],
            items[batch["negative"]],
        )

    user, positive, negative = triple(final)
    margin = jnp.einsum("bd,bd->b", user, positive - negative)
    norms = sum(jnp.square(part).sum(-1) for part in triple(initial))
    return jnp.sum(weight * (jax.nn.softplus(-margin) + 0.5 * l2 * norms)) / weight.sum()


def initial_vectors(n_users: int, n_items: int, factors: int, seed: int) -> Vectors:
    """Normal with standard deviation 0.1 (DEFAULT, as in LightGCN's own code)."""
    return {
        name: jnp.asarray(
            0.1 * generator("initial", name, seed).standard_normal((size, factors), np.float32)
        )
        for name, size in (("users", n_users), ("items", n_items))
    }


class Embedding(nnx.Module):
    """A vector of every user and item; called, it gives the final ones: `propagate` of them."""

    def __init__(self, first: Vectors, propagate: Callable[[Vectors], Vectors] | None = None):
        self.users, self.items = nnx.Param(first["users"]), nnx.Param(first["items"])
        self.propagate = propagate

    def first(self) -> Vectors:
        return {"users": self.users[...], "items": self.items[...]}

    def __call__(self) -> Vectors:
        return self.propagate(self.first()) if self.propagate else self.first()


def train(
    name: str,
    positives: csr_matrix,
    validation: csr_matrix | None,
    propagate: Callable[[Vectors], Vectors] | None,
    settings: dict,
    checkpoint: str | Path | None = None,
    fingerprint: str = "",
    progress: bool = True,
) -> Fitted:
    """Adam on `bpr_loss` of an `Embedding`; `params` of the result are its first vectors.
    The same bits for the same settings and data on a CPU; a GPU adds gradients up in any order.

    `settings`: factors, batch_size, learning_rate, l2, epochs, patience, seed.
    """
    optimizer = optax.adam(settings["learning_rate"])
    first = initial_vectors(*positives.shape, settings["factors"], settings["seed"])
    structure, params = nnx.split(Embedding(first, propagate))

    def loss_of(params, batch):
        model = nnx.merge(structure, params)
        return bpr_loss(model.first(), model(), batch, settings["l2"])

    def step(state, batch):
        params, moments = state
        loss, gradient = jax.value_and_grad(loss_of)(params, batch)
        updates, moments = optimizer.update(gradient, moments)
        return (optax.apply_updates(params, updates), moments), loss

    steps = jax.jit(lambda state, batches: jax.lax.scan(step, state, batches), donate_argnums=0)
    final = jax.jit(lambda params: nnx.merge(structure, params)())

    def run_epoch(state, epoch):
        batches = epoch_batches(positives, settings["batch_size"], settings["seed"], epoch)
        state, losses = steps(state, batches)
        return state, float(losses.mean())

    validate = None
    if validation is not None:
        ranked = Validation.of(positives, validation, settings["seed"])

        def validate(params):
            made = jax.tree.map(np.asarray, final(params))
            return ranked(lambda users: made["users"][users] @ made["items"].T)

    found = fit_epochs(
        name,
        (params, optimizer.init(params)),
        run_epoch,
        lambda state: state[0],
        validate,
        epochs=settings["epochs"],
        patience=settings["patience"],
        checkpoint=checkpoint,
        fingerprint=fingerprint,
        progress=progress,
    )
    return replace(found, params=nnx.to_pure_dict(found.params))
