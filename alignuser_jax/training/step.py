"""One optimizer step as a pure jitted function; what trains is structure, not a mask.

The decoder is split once into structure, LoRA weights and base weights. Gradients are taken
with respect to one of the two trees only; the other is an argument that is never touched.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from alignuser_jax.model import Decoder, merge, split
from alignuser_jax.parallel import batch_shards
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
    """Per-task (Σ w·nll, Σ w) pairs, divided by whoever reports them; `K` tasks by name.

    `tokens` are those that are no padding; `attended` is how many tokens one of them sees on
    average, itself included."""

    loss: Float[Array, ""]
    nll: Float[Array, " K"]
    weight: Float[Array, " K"]
    grad_norm: Float[Array, ""]
    learning_rate: Float[Array, ""]
    tokens: Int[Array, ""]
    attended: Float[Array, ""]


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


def check_rows(config: TrainConfig, mesh: Mesh) -> None:
    """Raises `ValueError` where the rows of a micro-batch do not divide among the devices."""
    rows, shards = config.batch_size // config.accumulation, batch_shards(mesh)
    if rows % shards:
        raise ValueError(
            f"a micro-batch of {rows} rows (batch_size={config.batch_size} / accumulation="
            f"{config.accumulation}) does not divide among data={mesh.shape['data']} x"
            f" fsdp={mesh.shape['fsdp']} = {shards} parts: make batch_size / accumulation a"
            f" multiple of {shards}, or give more devices to tensor"
        )


def abstract_state(parts: Parts, config: TrainConfig) -> TrainState:
    """The shapes, types and places of a state; moments lie as their weights do."""
    abstract = jax.eval_shape(functools.partial(_start, config), parts.params)
    layout = jax.tree.map(lambda leaf: getattr(leaf, "sharding", None), parts.params)
    first = jax.tree.leaves(parts.params)[0]
    rest = getattr(first, "sharding", None)
    if isinstance(rest, NamedSharding):
        rest = NamedSharding(rest.mesh, PartitionSpec())

    def placed(leaf, sharding):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    def of_moment(moment, weight, sharding):  # Adafactor's are smaller than their weight
        return placed(moment, sharding if moment.shape == weight.shape else rest)

    return TrainState(
        placed(abstract.step, rest),
        jax.tree.map(placed, abstract.params, layout, is_leaf=lambda x: x is None),
        optax.tree.map_params(
            make_optimizer(config),
            of_moment,
            abstract.opt_state,
            abstract.params,
            layout,
            transform_non_params=lambda leaf: placed(leaf, rest),
        ),
    )


def init_state(parts: Parts, config: TrainConfig) -> TrainState:
    """The state at step 0, on its own copy of the weights (a step donates its state)."""
    # Placed from the start, as restored and stepped states are: one compilation.
    places = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(parts, config))
    return jax.jit(functools.partial(_start, config), out_shardings=places)(parts.params)


def _start(config: TrainConfig, params: nnx.State) -> TrainState:
    params = jax.tree.map(jnp.copy, params)
    return TrainState(jnp.zeros((), jnp.int32), params, make_optimizer(config).init(params))


def make_train_step(
    parts: Parts, tasks: Sequence[str], config: TrainConfig
) -> Callable[[TrainState, nnx.State, Batch], tuple[TrainState, StepOutput]]:
    """`(state, frozen, batch) -> (state, output)`, jitted, the state donated.

    The loss is decision 6's, over the whole batch; how it is cut into micro-batches changes
    memory only (and which dropout masks are drawn).
    """
    _check_decided(config)
    lambdas = _lambdas(tasks, config.task_weights)
    optimizer, schedule = make_optimizer(config), learning_rate(config)

    def loss_of(params, frozen, batch, key):
        decoder = parts.join(params, frozen)
        return _loss(decoder, batch, config, key)

    gradient = jax.value_and_grad(loss_of, has_aux=True)

    def step(state: TrainState, frozen: nnx.State, batch: Batch):
        folded, weight = fold_weights(batch.weights, batch.task, lambdas)
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        real = batch.segment_ids != 0

        def add(carry, xs):
            index, micro = xs
            (loss, nll), grads = gradient(
                state.params, frozen, micro, jax.random.fold_in(key, index)
            )
            return (carry[0] + loss, jax.tree.map(jnp.add, carry[1], grads)), nll

        zero = (jnp.float32(0), jax.tree.map(jnp.zeros_like, state.params))
        xs = (jnp.arange(len(folded)), batch._replace(weights=folded))
        (loss, grads), nll = jax.lax.scan(add, zero, xs)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        output = StepOutput(
            loss=loss,
            nll=task_sums(batch.weights * nll, batch.task, len(tasks)),
            weight=weight,
            grad_norm=optax.tree.norm(grads),
            learning_rate=jnp.asarray(schedule(state.step), jnp.float32),
            tokens=jnp.sum(real),
            attended=jnp.sum(jnp.where(real, batch.positions + 1.0, 0)) / jnp.sum(real),
        )
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, opt_state), output

    # What comes out lies where it went in: one compilation.
    places = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(parts, config))
    return jax.jit(step, donate_argnums=0, out_shardings=(places, None))


def make_eval_step(
    parts: Parts, tasks: Sequence[str], config: TrainConfig
) -> Callable[[nnx.State, nnx.State, Batch], tuple[Array, Array]]:
    """`(params, frozen, batch) -> (Σ w·nll [K], Σ w [K])`, jitted, without dropout."""
    _check_decided(config)

    def step(params: nnx.State, frozen: nnx.State, batch: Batch):
        decoder = parts.join(params, frozen)
        nll = jax.lax.map(lambda micro: _loss(decoder, micro, config, None)[1], batch)
        sums = task_sums(batch.weights * nll, batch.task, len(tasks))
        return sums, task_sums(batch.weights, batch.task, len(tasks))

    return jax.jit(step)


def _check_decided(config: TrainConfig) -> None:
    if not config.decided:
        raise ValueError(
            f"attention={config.attention!r} and packing={config.packing!r}: decide them first,"
            " config.on(platform)"
        )


def _loss(decoder: Decoder, batch: Batch, config: TrainConfig, key: Array | None):
    """`(Σ w·nll, nll [B T])` of one micro-batch `[B T]`."""
    segments, lengths = batch.segment_ids, None
    if not config.packing:  # one example a row: all back ends know where it ends
        segments, lengths = None, jnp.sum(batch.segment_ids != 0, axis=1)
    hidden, _ = decoder(
        batch.tokens,
        batch.positions,
        segments,
        lengths=lengths,
        reach=config.seq_len,
        implementation=config.attention,
        remat=config.remat,
        dropout_key=key if decoder.lora.dropout else None,
    )
    mesh = jax.sharding.get_abstract_mesh()
    return cross_entropy(
        hidden,
        decoder.head(),
        batch.targets,
        batch.weights,
        trained_head=config.trainable == "full",
        chunk=config.loss_chunk,
        groups=1 if mesh.empty else batch_shards(mesh),
    )


def _lambdas(tasks: Sequence[str], weights: Mapping[str, float]) -> Any:
    return jnp.asarray([weights.get(task, 1.0) for task in tasks], jnp.float32)
