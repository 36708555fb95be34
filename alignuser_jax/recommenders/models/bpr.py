"""Bayesian personalized ranking (Rendle et al., 2009): how MF and LightGCN are trained.

It trains any vectors of users and items, with or without a propagation between the initial and
the final ones. Imports jax: only `fit` methods import this module.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from alignuser_jax.randomness import named_generator
from alignuser_jax.recommenders.models.fitting import (
    FitResult,
    TrainState,
    Validate,
    Validation,
    fit_epochs,
)
from alignuser_jax.recommenders.models.settings import LightGCNSettings, MFSettings
from alignuser_jax.recommenders.models.trained import FitPlan, TrainingData

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

Vectors = dict[str, jax.Array]
"""`users` float32[n_users, d] and `items` float32[n_items, d]."""
Propagate = Callable[[Vectors], Vectors]
"""From the initial vectors to the final ones."""
Batch = Mapping[str, jax.Array | np.ndarray]
"""`user`, `positive`, `negative` int32[b] codes, `weight` float32[b]."""


def draw_negatives(
    positives: csr_matrix, users: np.ndarray, draw: np.random.Generator
) -> np.ndarray:
    """Draw, for each user code, an item that the user's row lacks, uniformly: int32[n].

    A user who has every item gets any item.

    Args:
        positives: float32[n_users, n_items] with sorted indices.
        users: int32[n], the codes to draw for.
        draw: the generator to draw from.
    """
    n_items = positives.shape[1]
    counts = np.diff(positives.indptr)
    keys = np.repeat(np.arange(len(counts)), counts) * n_items + positives.indices
    items = draw.integers(n_items, size=len(users))
    again = np.flatnonzero(counts[users] < n_items)
    while len(again):
        drawn = users[again].astype(np.int64) * n_items + items[again]
        place = np.minimum(np.searchsorted(keys, drawn), len(keys) - 1)
        again = again[keys[place] == drawn]
        items[again] = draw.integers(n_items, size=len(again))
    return items.astype(np.int32)


def epoch_batches(
    positives: csr_matrix, batch_size: int, seed: int, epoch: int
) -> dict[str, np.ndarray]:
    """Return one epoch's batches: every positive once, in a random order, with a negative.

    Returns:
        `user`, `positive`, `negative` int32[steps, batch_size], and `weight`
        float32[steps, batch_size], 0 where the last batch is filled up.
    """
    draw = named_generator("bpr", seed, epoch)
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


def bpr_loss(initial: Vectors, final: Vectors, batch: Batch, l2: float) -> jax.Array:
    """Return the mean loss of one batch, a scalar.

    A triple of user u, positive p and negative n has the loss -log σ(x_u·(y_p - y_n)) with the
    final vectors, plus l2 / 2 times the squared norms of its three initial vectors.

    Args:
        initial: the vectors that are trained, which the penalty is for.
        final: the vectors that rank.
        batch: the triples and their weights.
        l2: weight of the penalty.
    """
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
    """Draw normal vectors with standard deviation 0.1 (DEFAULT, as in LightGCN's own code)."""
    sizes = (("users", n_users), ("items", n_items))
    return {
        name: jnp.asarray(
            0.1
            * named_generator("initial", name, seed).standard_normal(
                (size, factors), np.float32
            )
        )
        for name, size in sizes
    }


class Embedding(nnx.Module):
    """A vector of every user and item; a call returns the final ones.

    Args:
        first: the initial vectors.
        propagate: makes the final vectors of the initial ones; without it they are the same.
    """

    def __init__(self, first: Vectors, propagate: Propagate | None = None):
        self.users, self.items = nnx.Param(first["users"]), nnx.Param(first["items"])
        self.propagate = propagate

    def first(self) -> Vectors:
        """Return the vectors that are trained."""
        return {"users": self.users[...], "items": self.items[...]}

    def __call__(self) -> Vectors:
        """Return the vectors that rank."""
        return self.propagate(self.first()) if self.propagate else self.first()


def train_embedding(
    settings: MFSettings | LightGCNSettings,
    data: TrainingData,
    plan: FitPlan,
    propagate: Propagate | None = None,
) -> FitResult:
    """Minimize `bpr_loss` of an `Embedding` with Adam.

    The result has the same bits for the same settings and data on a CPU; a GPU adds gradients
    up in any order.

    Returns:
        The fit, whose `params` are the initial vectors as trained: `users` and `items`.
    """
    optimizer = optax.adam(settings.learning_rate)
    n_users, n_items = data.positives.shape
    first = initial_vectors(n_users, n_items, settings.factors, settings.seed)
    structure, params = nnx.split(Embedding(first, propagate))

    def loss_of(params: nnx.State, batch: Batch) -> jax.Array:
        model = nnx.merge(structure, params)
        return bpr_loss(model.first(), model(), batch, settings.l2)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, jax.Array]:
        params, moments = state
        loss, gradient = jax.value_and_grad(loss_of)(params, batch)
        updates, moments = optimizer.update(gradient, moments)
        return TrainState(optax.apply_updates(params, updates), moments), loss

    steps = jax.jit(lambda state, batches: jax.lax.scan(step, state, batches), donate_argnums=0)

    def run_epoch(state: TrainState, epoch: int) -> tuple[TrainState, float]:
        batches = epoch_batches(data.positives, settings.batch_size, settings.seed, epoch)
        state, losses = steps(state, batches)
        return state, float(losses.mean())

    state = TrainState(params, optimizer.init(params))
    validate = _validation(structure, data, settings.seed)
    result = fit_epochs(plan, state, run_epoch, validate)
    return replace(result, params=nnx.to_pure_dict(result.params))


def _validation(structure: nnx.GraphDef, data: TrainingData, seed: int) -> Validate | None:
    if data.validation is None:
        return None
    ranked = Validation.of(data.positives, data.validation, seed)
    final = jax.jit(lambda params: nnx.merge(structure, params)())

    def validate(params: nnx.State) -> tuple[float, float]:
        vectors = jax.tree.map(np.asarray, final(params))
        return ranked(lambda users: vectors["users"][users] @ vectors["items"].T)

    return validate
