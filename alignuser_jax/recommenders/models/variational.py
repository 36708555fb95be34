"""The network and loss of MultVAE (Liang et al., 2018) and its epochs. Imports jax: only `fit`
imports this module."""

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
from jax.nn.initializers import glorot_uniform

from alignuser_jax.recommenders.base import generator
from alignuser_jax.recommenders.models.fitting import Fitted, Validation, fit_epochs

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

LAYERS = ("encode_hidden", "encode_code", "decode_hidden", "decode_items")


class VAE(nnx.Module):
    """n_items - hidden - 2·latent (mean, then log variance), latent - hidden - n_items, tanh
    between; weights Glorot-uniform, biases zero."""

    def __init__(self, n_items: int, hidden: int, latent: int, *, rngs: nnx.Rngs):
        def linear(size: int, out: int) -> nnx.Linear:
            return nnx.Linear(size, out, kernel_init=glorot_uniform(), rngs=rngs)

        self.encode_hidden = linear(n_items, hidden)
        self.encode_code = linear(hidden, 2 * latent)
        self.decode_hidden = linear(latent, hidden)
        self.decode_items = linear(hidden, n_items)

    def encode(self, rows: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Mean and log variance, [b, latent] each, of rows [b, n_items] of unit length."""
        made = self.encode_code(jnp.tanh(self.encode_hidden(rows)))
        return tuple(jnp.split(made, 2, axis=-1))

    def decode(self, code: jax.Array) -> jax.Array:
        """Logits [b, n_items]."""
        return self.decode_items(jnp.tanh(self.decode_hidden(code)))

    def arrays(self) -> dict[str, np.ndarray]:
        """What asking needs: `w1` to `w4` and `b1` to `b4`, by layer."""
        layers = [getattr(self, name) for name in LAYERS]
        weights = {f"w{n}": layer.kernel[...] for n, layer in enumerate(layers, 1)}
        biases = {f"b{n}": layer.bias[...] for n, layer in enumerate(layers, 1)}
        return {name: np.asarray(array) for name, array in (weights | biases).items()}


def unit_length(rows: jax.Array) -> jax.Array:
    return rows * jax.lax.rsqrt(jnp.maximum(jnp.square(rows).sum(-1, keepdims=True), 1e-12))


def vae_loss(
    model: VAE,
    rows: jax.Array,
    weight: jax.Array,
    kept: jax.Array,
    noise: jax.Array,
    kl_weight: float,
    l2: float,
) -> jax.Array:
    """-Σ_i x_i log softmax_i(decode(z)) + kl_weight · KL(q(z|x) ‖ N(0, 1)), the mean over the
    weighted rows, plus l2 / 2 times the squared weights.

    rows 0/1 [b, n_items]; `kept` [b, n_items], the dropout's factor on the unit-length input;
    noise normal [b, latent]; weight [b], 0 for a row that only fills up the batch.
    """
    mean, log_variance = model.encode(unit_length(rows) * kept)
    logits = model.decode(mean + jnp.exp(0.5 * log_variance) * noise)
    likelihood = jnp.sum(rows * jax.nn.log_softmax(logits), -1)
    kl = 0.5 * jnp.sum(jnp.exp(log_variance) + jnp.square(mean) - 1 - log_variance, -1)
    norms = sum(jnp.square(getattr(model, name).kernel[...]).sum() for name in LAYERS)
    return jnp.sum(weight * (kl_weight * kl - likelihood)) / weight.sum() + 0.5 * l2 * norms


def train(
    name: str,
    positives: csr_matrix,
    validation: csr_matrix | None,
    settings: dict,
    checkpoint: str | Path | None = None,
    fingerprint: str = "",
    progress: bool = True,
) -> Fitted:
    """Adam on `vae_loss` over the users with a history, in a new random order every epoch.

    `settings`: those of `MultVAE`. The KL weight rises linearly over `kl_epochs` to `kl_cap`.
    """
    seed, batch_size, dropout = (settings[n] for n in ("seed", "batch_size", "dropout"))
    optimizer = optax.adam(settings["learning_rate"])
    n_items = positives.shape[1]
    model = VAE(n_items, settings["hidden"], settings["latent"], rngs=nnx.Rngs(seed))
    structure, params = nnx.split(model)
    users = np.flatnonzero(np.diff(positives.indptr))

    def step(state, rows, weight, key, kl_weight):
        params, moments = state
        drop_key, noise_key = jax.random.split(key)
        kept = jax.random.bernoulli(drop_key, 1 - dropout, rows.shape) / (1 - dropout)
        noise = jax.random.normal(noise_key, (len(rows), settings["latent"]))
        loss, gradient = jax.value_and_grad(
            lambda params: vae_loss(
                nnx.merge(structure, params),
                rows,
                weight,
                kept,
                noise,
                kl_weight,
                settings["l2"],
            )
        )(params)
        updates, moments = optimizer.update(gradient, moments)
        return (optax.apply_updates(params, updates), moments), loss

    step = jax.jit(step, donate_argnums=0)
    root = jax.random.key(seed)

    def run_epoch(state, epoch):
        order = generator("vae", seed, epoch).permutation(users)
        losses, steps = [], -(-len(order) // batch_size)
        for n in range(steps):
            some = order[n * batch_size : (n + 1) * batch_size]
            rows, weight = np.zeros((batch_size, n_items), np.float32), np.zeros(batch_size)
            rows[: len(some)], weight[: len(some)] = positives[some].toarray(), 1
            passed = (epoch - 1 + n / steps) / max(settings["kl_epochs"], 1e-9)
            key = jax.random.fold_in(jax.random.fold_in(root, epoch), n)
            state, loss = step(
                state, rows, np.float32(weight), key, settings["kl_cap"] * min(1.0, passed)
            )
            losses.append(loss)
        return state, float(np.mean(jax.device_get(losses)))

    found = fit_epochs(
        name,
        (params, optimizer.init(params)),
        run_epoch,
        lambda state: state[0],
        _validation(structure, positives, validation, seed),
        epochs=settings["epochs"],
        patience=settings["patience"],
        checkpoint=checkpoint,
        fingerprint=fingerprint,
        progress=progress,
    )
    return replace(found, params=nnx.merge(structure, found.params).arrays())


def _validation(
    structure: nnx.GraphDef, positives: csr_matrix, validation: csr_matrix | None, seed: int
) -> Callable[[nnx.State], tuple[float, float]] | None:
    if validation is None:
        return None
    ranked = Validation.of(positives, validation, seed)

    @jax.jit
    def logits(params: nnx.State, rows: jax.Array) -> jax.Array:
        model = nnx.merge(structure, params)
        return model.decode(model.encode(unit_length(rows))[0])

    return lambda params: ranked(lambda users: logits(params, positives[users].toarray()))
