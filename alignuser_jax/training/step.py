"""One optimizer step as a pure jitted function.

What trains is decided by structure, not by a mask: the decoder is split once into structure,
LoRA weights and base weights. Gradients are taken with respect to one of the two trees only;
the other is an argument that is never changed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol, cast

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from alignuser_jax.model import Decoder, merge, split
from alignuser_jax.model.attention import RowLayout
from alignuser_jax.model.decoder import Execution
from alignuser_jax.parallel import batch_shards
from alignuser_jax.training.config import TrainConfig
from alignuser_jax.training.data import Batch
from alignuser_jax.training.loss import cross_entropy, fold_weights, task_sums
from alignuser_jax.training.optimizer import learning_rate, make_optimizer


class TrainState(NamedTuple):
    """What a step changes and a checkpoint holds.

    Attributes:
        step: Number of steps done.
        params: The trained weights, f32.
        opt_state: The optimizer's moments.
    """

    step: Int[Array, ""]
    params: nnx.State
    opt_state: optax.OptState


class StepOutput(NamedTuple):
    """What a step computes beside its state, over the whole global batch.

    Attributes:
        loss: The trained loss L (docs/architecture.md decision 6).
        nll: Σ w·nll of each of the K tasks, in the order of their names; whoever reports them
            divides by `weight`.
        weight: Σ w of each task.
        grad_norm: Norm of the gradient before clipping.
        learning_rate: The step's learning rate.
        tokens: Number of tokens that are not padding.
        attended: How many tokens one of them sees on average, itself included.
    """

    loss: Float[Array, ""]
    nll: Float[Array, " K"]
    weight: Float[Array, " K"]
    grad_norm: Float[Array, ""]
    learning_rate: Float[Array, ""]
    tokens: Int[Array, ""]
    attended: Float[Array, ""]


class Parts(NamedTuple):
    """A decoder, split into what trains and what does not.

    Attributes:
        params: The trained weights.
        frozen: The others.
        join: Makes the decoder of `params` and `frozen`; to be called inside `jax.jit`.
    """

    params: nnx.State
    frozen: nnx.State
    join: Callable[[nnx.State, nnx.State], Decoder]


class TrainStep(Protocol):
    """A jitted optimizer step."""

    def __call__(
        self, state: TrainState, frozen: nnx.State, batch: Batch, /
    ) -> tuple[TrainState, StepOutput]:
        """Return the next state and what the step computed; `state` is donated."""
        ...

    def lower(
        self, state: TrainState, frozen: nnx.State, batch: Batch, /
    ) -> jax.stages.Lowered:
        """Return the step lowered for arguments of these shapes, to be compiled."""
        ...

    def _cache_size(self) -> int: ...


def trainable_parts(decoder: Decoder, trainable: str) -> Parts:
    """Split a decoder into what trains ("lora" or "full") and what does not.

    Raises:
        ValueError: If "lora" meets a decoder without an adapter or "full" one with an adapter,
            or if trained weights are not float32 (AdamW's updates would be lost to rounding).
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
    """Raise `ValueError` if the rows of a micro-batch do not divide among the devices."""
    rows, shards = config.batch_size // config.accumulation, batch_shards(mesh)
    if rows % shards:
        raise ValueError(
            f"a micro-batch of {rows} rows (batch_size={config.batch_size} / accumulation="
            f"{config.accumulation}) does not divide among data={mesh.shape['data']} x"
            f" fsdp={mesh.shape['fsdp']} = {shards} parts: make batch_size / accumulation a"
            f" multiple of {shards}, or give more devices to tensor"
        )


def abstract_state(parts: Parts, config: TrainConfig) -> TrainState:
    """Return shapes, types and shardings of a state; moments are laid out as their weights."""
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
    """Return the state at step 0 with its own copy of the weights: a step donates its state."""
    # Laid out from the start as restored and later states are, so that the step compiles once.
    places = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(parts, config))
    return jax.jit(functools.partial(_start, config), out_shardings=places)(parts.params)


def _start(config: TrainConfig, params: nnx.State) -> TrainState:
    params = jax.tree.map(jnp.copy, params)
    return TrainState(jnp.zeros((), jnp.int32), params, make_optimizer(config).init(params))


def make_train_step(parts: Parts, tasks: Sequence[str], config: TrainConfig) -> TrainStep:
    """Return the jitted step `(state, frozen, batch) -> (state, output)`; `state` is donated.

    The loss is taken over the whole global batch (docs/architecture.md decision 6). How the
    batch is cut into micro-batches changes memory only (and which dropout masks are drawn).

    Args:
        parts: The decoder.
        tasks: Names of the tasks; `batch.task` counts them in this order.
        config: The training's settings, decided (`TrainConfig.on`).
    """
    _check_decided(config)
    lambdas = _lambdas(tasks, config.task_weights)
    optimizer, schedule = make_optimizer(config), learning_rate(config)

    def loss_of(params, frozen, batch, key):
        decoder = parts.join(params, frozen)
        return _loss(decoder, batch, config, key)

    gradient = jax.value_and_grad(loss_of, has_aux=True)

    def step(
        state: TrainState, frozen: nnx.State, batch: Batch
    ) -> tuple[TrainState, StepOutput]:
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

    # The state comes out laid out as it went in, so that the step compiles once.
    places = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(parts, config))
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(places, None))
    return cast(TrainStep, jitted)


def make_eval_step(
    parts: Parts, tasks: Sequence[str], config: TrainConfig
) -> Callable[[nnx.State, nnx.State, Batch], tuple[Array, Array]]:
    """Return the jitted `(params, frozen, batch) -> (Σ w·nll [K], Σ w [K])`; no dropout."""
    _check_decided(config)

    def step(params: nnx.State, frozen: nnx.State, batch: Batch) -> tuple[Array, Array]:
        decoder = parts.join(params, frozen)
        nll = jax.lax.map(lambda micro: _loss(decoder, micro, config, None)[1], batch)
        sums = task_sums(batch.weights * nll, batch.task, len(tasks))
        return sums, task_sums(batch.weights, batch.task, len(tasks))

    return jax.jit(step)


def _check_decided(config: TrainConfig) -> None:
    if not config.decided:
        raise ValueError(
            f"attention={config.attention!r} and packing={config.packing!r} are undecided: use"
            " config.on(platform)"
        )


def _loss(
    decoder: Decoder, batch: Batch, config: TrainConfig, key: Array | None
) -> tuple[Array, Array]:
    """Return Σ w·nll and nll `[B, T]` of one micro-batch `[B, T]`."""
    layout = RowLayout(segment_ids=batch.segment_ids)
    if not config.packing:  # one example a row: every implementation takes its length
        layout = RowLayout(lengths=jnp.sum(batch.segment_ids != 0, axis=1))
    hidden = decoder(
        batch.tokens,
        batch.positions,
        layout,
        Execution(config.attention, reach=config.seq_len, remat=config.remat),
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


def _lambdas(tasks: Sequence[str], weights: Mapping[str, float]) -> Array:
    return jnp.asarray([weights.get(task, 1.0) for task in tasks], jnp.float32)
