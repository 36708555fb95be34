"""One optimizer step as a pure jitted function; what trains is structure, not a mask.

The decoder is split once into structure, LoRA weights and base weights. Gradients are taken
with respect to one of the two trees only; the other is an argument that is never touched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from alignuser_jax.model import Decoder, merge, split
from alignuser_jax.training.config import TrainConfig
from alignuser_jax.training.data import Batch
from alignuser_jax.training.loss import cross_entropy, fold_weights, task_sums
from alignuser_jax.training.optimizer import learning_rate, make_optimizer


class TrainState(NamedTuple):
    """What a step changes and a checkpoint holds."""

    step: Int[Array, ""]
    params: nnx.State
    opt_state: optax.OptState


class StepOutput(NamedTuple):
    """Per-task (Σ w·nll, Σ w) pairs, divided by whoever reports them; `K` tasks by name."""

    loss: Float[Array, ""]
    nll: Float[Array, " K"]
    weight: Float[Array, " K"]
    grad_norm: Float[Array, ""]
    learning_rate: Float[Array, ""]
    tokens: Int[Array, ""]


class Parts(NamedTuple):
    """A decoder in three parts; `join(params, frozen)` is the decoder again."""

    params: nnx.State
    frozen: nnx.State
    join: Callable[[nnx.State, nnx.State], Decoder]


def trainable_parts(decoder: Decoder, trainable: str) -> Parts:
    """Splits into what trains ("lora" or "full") and what does not.

    Raises `ValueError` for "lora" without an adapter, for "full" with one, and for trained
    weights that are not float32 (AdamW's updates would be lost to rounding).
    """
    graphdef, lora, base = split(decoder)
    if bool(jax.tree.leaves(lora)) != (trainable == "lora"):
        raise ValueError(
            f"trainable={trainable!r} with a LoRA rank of {decoder.lora.rank}: 'lora' needs a"
            " rank of 1 or more, 'full' needs rank 0 (merge_lora makes one out of an adapter)"
        )
    if trainable == "lora":
        parts = Parts(lora, base, lambda params, frozen: merge(graphdef, params, frozen))
    else:
        parts = Parts(base, lora, lambda params, frozen: merge(graphdef, frozen, params))
    dtypes = {str(leaf.dtype) for leaf in jax.tree.leaves(parts.params)} - {"float32"}
    if dtypes:
        raise ValueError(
            f"trained weights are {sorted(dtypes)}, expected float32: load the decoder with"
            " param_dtype=float32 (its compute type may stay bfloat16)"
        )
    return parts


def init_state(parts: Parts, config: TrainConfig) -> TrainState:
    """The state at step 0, on its own copy of the weights (a step donates its state)."""
    params = jax.tree.map(jnp.copy, parts.params)
    opt_state = make_optimizer(config).init(params)
    state = TrainState(jnp.zeros((), jnp.int32), params, opt_state)
    # Committed from the start, as restored and stepped states are: one compilation.
    return jax.device_put(state, jax.tree.leaves(params)[0].sharding)


def make_train_step(
    parts: Parts, tasks: Sequence[str], config: TrainConfig
) -> Callable[[TrainState, nnx.State, Batch], tuple[TrainState, StepOutput]]:
    """`(state, frozen, batch) -> (state, output)`, jitted, the state donated.

    The loss is decision 6's, over the whole batch; `config.accumulation` micro-batches change
    memory only.
    """
    lambdas = _lambdas(tasks, config.task_weights)
    optimizer, schedule = make_optimizer(config), learning_rate(config)

    def loss_of(params, frozen, batch, key):
        decoder = parts.join(params, frozen)
        return _loss(decoder, batch, config, key)

    gradient = jax.value_and_grad(loss_of, has_aux=True)

    def step(state: TrainState, frozen: nnx.State, batch: Batch):
        folded, weight = fold_weights(batch.weights, batch.task, lambdas)
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)

        def add(carry, xs):
            index, micro = xs
            (loss, nll), grads = gradient(
                state.params, frozen, micro, jax.random.fold_in(key, index)
            )
            return (carry[0] + loss, jax.tree.map(jnp.add, carry[1], grads)), nll

        parts_of_batch = jax.tree.map(
            lambda x: x.reshape(config.accumulation, -1, x.shape[-1]),
            batch._replace(weights=folded),
        )
        zero = (jnp.float32(0), jax.tree.map(jnp.zeros_like, state.params))
        xs = (jnp.arange(config.accumulation), parts_of_batch)
        (loss, grads), nll = jax.lax.scan(add, zero, xs)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        output = StepOutput(
            loss=loss,
            nll=task_sums(batch.weights * nll.reshape(folded.shape), batch.task, len(tasks)),
            weight=weight,
            grad_norm=optax.tree.norm(grads),
            learning_rate=jnp.asarray(schedule(state.step), jnp.float32),
            tokens=jnp.sum(batch.segment_ids != 0),
        )
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, opt_state), output

    return jax.jit(step, donate_argnums=0)


def make_eval_step(
    parts: Parts, tasks: Sequence[str], config: TrainConfig
) -> Callable[[nnx.State, nnx.State, Batch], tuple[Array, Array]]:
    """`(params, frozen, batch) -> (Σ w·nll [K], Σ w [K])`, jitted, without dropout."""

    def step(params: nnx.State, frozen: nnx.State, batch: Batch):
        _, nll = _loss(parts.join(params, frozen), batch, config, None)
        sums = task_sums(batch.weights * nll, batch.task, len(tasks))
        return sums, task_sums(batch.weights, batch.task, len(tasks))

    return jax.jit(step)


def _loss(decoder: Decoder, batch: Batch, config: TrainConfig, key: Array | None):
    hidden, _ = decoder(
        batch.tokens,
        batch.positions,
        batch.segment_ids,
        remat=config.remat,
        dropout_key=key if decoder.lora.dropout else None,
    )
    return cross_entropy(
        hidden,
        decoder.head(),
        batch.targets,
        batch.weights,
        trained_head=config.trainable == "full",
        chunk=config.loss_chunk,
        groups=_batch_shards(),
    )


def _batch_shards() -> int:
    """Devices that the batch axis is spread over under the current mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else math.prod(mesh.shape[axis] for axis in ("data", "fsdp"))


def _lambdas(tasks: Sequence[str], weights: Mapping[str, float]) -> Any:
    return jnp.asarray([weights.get(task, 1.0) for task in tasks], jnp.float32)
