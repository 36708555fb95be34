"""The network and the loss of MultVAE (Liang et al., 2018), and how it is trained.

Imports jax: only `MultVAE.fit` imports this module.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.nn.initializers import glorot_uniform

from alignuser_jax.randomness import named_generator
from alignuser_jax.recommenders.models.fitting import (
    FitResult,
    TrainState,
    Validate,
    Validation,
    fit_epochs,
)
from alignuser_jax.recommenders.models.settings import MultVAESettings
from alignuser_jax.recommenders.models.trained import FitPlan, TrainingData

LAYERS = ("encode_hidden", "encode_code", "decode_hidden", "decode_items")
"""The linear layers of `VAE`, in order."""


class VAE(nnx.Module):
    """An autoencoder of a user's row of items, with tanh between linear layers.

    The encoder maps n_items to hidden to 2·latent (the mean, then the log variance), the
    decoder latent to hidden to n_items. Weights start Glorot-uniform, biases at zero.

    Args:
        n_items: length of a row.
        hidden: width of both hidden layers.
        latent: dimension of the code.
        rngs: draws the initial weights.
    """

    def __init__(self, n_items: int, hidden: int, latent: int, *, rngs: nnx.Rngs):
        def linear(size: int, out: int) -> nnx.Linear:
            return nnx.Linear(size, out, kernel_init=glorot_uniform(), rngs=rngs)

        self.encode_hidden = linear(n_items, hidden)
        self.encode_code = linear(hidden, 2 * latent)
        self.decode_hidden = linear(latent, hidden)
        self.decode_items = linear(hidden, n_items)

    def encode(self, rows: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return mean and log variance, [b, latent] each, of unit-length rows [b, n_items]."""
        code = self.encode_code(jnp.tanh(self.encode_hidden(rows)))
        mean, log_variance = jnp.split(code, 2, axis=-1)
        return mean, log_variance

    def decode(self, code: jax.Array) -> jax.Array:
        """Return logits [b, n_items] of codes [b, latent]."""
        return self.decode_items(jnp.tanh(self.decode_hidden(code)))

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the weights `w1` to `w4` and biases `b1` to `b4`, numbered as `LAYERS`."""
        layers = [getattr(self, name) for name in LAYERS]
        weights = {f"w{n}": layer.kernel[...] for n, layer in enumerate(layers, 1)}
        biases = {f"b{n}": layer.bias[...] for n, layer in enumerate(layers, 1)}
        return {name: np.asarray(array) for name, array in (weights | biases).items()}


def unit_length(rows: jax.Array) -> jax.Array:
    """Return rows [b, n_items] divided by their lengths; a row of zeros stays zero."""
    return rows * jax.lax.rsqrt(jnp.maximum(jnp.square(rows).sum(-1, keepdims=True), 1e-12))


def vae_loss(
    model: VAE,
    rows: jax.Array,
    weight: jax.Array,
    dropout_scale: jax.Array,
    noise: jax.Array,
    kl_weight: float | jax.Array,
    l2: float,
) -> jax.Array:
    """Return the mean loss of a batch, a scalar.

    A row x has the loss -Σ_i x_i log softmax_i(decode(z)) + kl_weight · KL(q(z|x) ‖ N(0, 1)).
    To the mean over the weighted rows, l2 / 2 times the squared weights is added.

    Args:
        model: the network.
        rows: 0/1 [b, n_items].
        weight: [b], 0 for a row that only fills up the batch.
        dropout_scale: [b, n_items], factor on the unit-length input: 0 for a dropped item.
        noise: normal [b, latent].
        kl_weight: weight of the KL term.
        l2: weight of the penalty.
    """
    mean, log_variance = model.encode(unit_length(rows) * dropout_scale)
    logits = model.decode(mean + jnp.exp(0.5 * log_variance) * noise)
    likelihood = jnp.sum(rows * jax.nn.log_softmax(logits), -1)
    kl = 0.5 * jnp.sum(jnp.exp(log_variance) + jnp.square(mean) - 1 - log_variance, -1)
    norms = sum(jnp.square(getattr(model, name).kernel[...]).sum() for name in LAYERS)
    return jnp.sum(weight * (kl_weight * kl - likelihood)) / weight.sum() + 0.5 * l2 * norms


def train_vae(settings: MultVAESettings, data: TrainingData, plan: FitPlan) -> FitResult:
    """Minimize `vae_loss` with Adam over the users with a history, reordered every epoch.

    The weight of the KL term rises linearly to `kl_cap` over `kl_epochs` epochs.

    Returns:
        The fit, whose `params` are `VAE.arrays` of the trained network.
    """
    optimizer = optax.adam(settings.learning_rate)
    batch_size, n_items = settings.batch_size, data.positives.shape[1]
    model = VAE(n_items, settings.hidden, settings.latent, rngs=nnx.Rngs(settings.seed))
    structure, params = nnx.split(model)
    step = _train_step(structure, optimizer, settings)
    users = np.flatnonzero(np.diff(data.positives.indptr))
    root = jax.random.key(settings.seed)

    def run_epoch(state: TrainState, epoch: int) -> tuple[TrainState, float]:
        order = named_generator("vae", settings.seed, epoch).permutation(users)
        losses, steps = [], -(-len(order) // batch_size)
        for n in range(steps):
            some = order[n * batch_size : (n + 1) * batch_size]
            rows, weight = np.zeros((batch_size, n_items), np.float32), np.zeros(batch_size)
            rows[: len(some)], weight[: len(some)] = data.positives[some].toarray(), 1
            passed = (epoch - 1 + n / steps) / max(settings.kl_epochs, 1e-9)
            kl_weight = settings.kl_cap * min(1.0, passed)
            key = jax.random.fold_in(jax.random.fold_in(root, epoch), n)
            state, loss = step(state, rows, np.float32(weight), key, kl_weight)
            losses.append(loss)
        return state, float(np.mean(jax.device_get(losses)))

    state = TrainState(params, optimizer.init(params))
    result = fit_epochs(plan, state, run_epoch, _validation(structure, data, settings.seed))
    return replace(result, params=nnx.merge(structure, result.params).arrays())


def _train_step(
    structure: nnx.GraphDef, optimizer: optax.GradientTransformation, settings: MultVAESettings
) -> Callable[..., tuple[TrainState, jax.Array]]:
    """Return the jitted step: state, rows, weight, key and KL weight to state and loss."""
    keep = 1 - settings.dropout

    def step(
        state: TrainState,
        rows: jax.Array,
        weight: jax.Array,
        key: jax.Array,
        kl_weight: jax.Array,
    ) -> tuple[TrainState, jax.Array]:
        params, moments = state
        drop_key, noise_key = jax.random.split(key)
        dropout_scale = jax.random.bernoulli(drop_key, keep, rows.shape) / keep
        noise = jax.random.normal(noise_key, (len(rows), settings.latent))

        def loss_of(params: nnx.State) -> jax.Array:
            model = nnx.merge(structure, params)
            return vae_loss(model, rows, weight, dropout_scale, noise, kl_weight, settings.l2)

        loss, gradient = jax.value_and_grad(loss_of)(params)
        updates, moments = optimizer.update(gradient, moments)
        return TrainState(optax.apply_updates(params, updates), moments), loss

    return jax.jit(step, donate_argnums=0)


def _validation(structure: nnx.GraphDef, data: TrainingData, seed: int) -> Validate | None:
    if data.validation is None:
        return None
    ranked = Validation.of(data.positives, data.validation, seed)

    @jax.jit
    def logits(params: nnx.State, rows: jax.Array) -> jax.Array:
        model = nnx.merge(structure, params)
        return model.decode(model.encode(unit_length(rows))[0])

    return lambda params: ranked(lambda users: logits(params, data.positives[users].toarray()))
