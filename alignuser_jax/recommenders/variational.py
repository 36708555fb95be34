"""The network and loss of MultVAE (Liang et al., 2018) and its epochs. Imports jax: only `fit`
imports this module."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
import optax

from alignuser_jax.recommenders.base import generator
from alignuser_jax.recommenders.fitting import Fitted, Validation, fit_epochs

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

Params = dict[str, jax.Array]


def initial_params(n_items: int, hidden: int, latent: int, seed: int) -> Params:
    """`w1` to `w4` Glorot-uniform, `b1` to `b4` zero: n_items - hidden - 2·latent (mean, then
    log variance), latent - hidden - n_items."""
    shapes = [(n_items, hidden), (hidden, 2 * latent), (latent, hidden), (hidden, n_items)]
    params = {}
    for n, (rows, columns) in enumerate(shapes, 1):
        bound = np.sqrt(6 / (rows + columns))
        drawn = generator("initial", f"w{n}", seed).random((rows, columns), np.float32)
        params[f"w{n}"] = jnp.asarray((bound * (2 * drawn - 1)).astype(np.float32))
        params[f"b{n}"] = jnp.zeros(columns, np.float32)
    return params


def encode(params: Params, rows: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and log variance, [b, latent] each, of rows [b, n_items] of unit length."""
    made = jnp.tanh(rows @ params["w1"] + params["b1"]) @ params["w2"] + params["b2"]
    return tuple(jnp.split(made, 2, axis=-1))


def decode(params: Params, code: jax.Array) -> jax.Array:
    """Logits [b, n_items]."""
    return jnp.tanh(code @ params["w3"] + params["b3"]) @ params["w4"] + params["b4"]


def unit_length(rows: jax.Array) -> jax.Array:
    return rows * jax.lax.rsqrt(jnp.maximum(jnp.square(rows).sum(-1, keepdims=True), 1e-12))


def vae_loss(
    params: Params,
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
    mean, log_variance = encode(params, unit_length(rows) * kept)
    logits = decode(params, mean + jnp.exp(0.5 * log_variance) * noise)
    likelihood = jnp.sum(rows * jax.nn.log_softmax(logits), -1)
    kl = 0.5 * jnp.sum(jnp.exp(log_variance) + jnp.square(mean) - 1 - log_variance, -1)
    norms = sum(jnp.square(params[f"w{n}"]).sum() for n in range(1, 5))
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
    params = initial_params(n_items, settings["hidden"], settings["latent"], seed)
    users = np.flatnonzero(np.diff(positives.indptr))

    def step(state, rows, weight, key, kl_weight):
        params, moments = state
        drop_key, noise_key = jax.random.split(key)
        kept = jax.random.bernoulli(drop_key, 1 - dropout, rows.shape) / (1 - dropout)
        noise = jax.random.normal(noise_key, (len(rows), settings["latent"]))
        loss, gradient = jax.value_and_grad(vae_loss)(
            params, rows, weight, kept, noise, kl_weight, settings["l2"]
        )
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

    return fit_epochs(
        name,
        (params, optimizer.init(params)),
        run_epoch,
        lambda state: state[0],
        _validation(positives, validation, seed),
        epochs=settings["epochs"],
        patience=settings["patience"],
        checkpoint=checkpoint,
        fingerprint=fingerprint,
        progress=progress,
    )


def _validation(
    positives: csr_matrix, validation: csr_matrix | None, seed: int
) -> Callable[[Params], tuple[float, float]] | None:
    if validation is None:
        return None
    ranked = Validation.of(positives, validation, seed)

    @jax.jit
    def logits(params: Params, rows: jax.Array) -> jax.Array:
        return decode(params, encode(params, unit_length(rows))[0])

    return lambda params: ranked(lambda users: logits(params, positives[users].toarray()))
