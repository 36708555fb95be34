"""Cross entropy over the trained positions, without ever a `[B, T, V]` array.

The loss is that of docs/architecture.md decision 6. Positions are ordered so that those with
weight come first, then taken in chunks by a loop that ends with the last weight, so that a
batch costs what it trains. The forward pass of a differentiated chunk computes d(hidden), and
d(head) if the head is trained, at once: logits are neither kept nor computed twice, and a
chunk's d(hidden) replaces its hidden states.

Letters in shapes: B rows, T tokens, D hidden, V vocabulary, G groups of P positions, C
positions of a chunk.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from alignuser_jax.parallel import constrain


def fold_weights(
    weights: Float[Array, "*shape"], task: Int[Array, "*shape"], lambdas: Float[Array, " K"]
) -> tuple[Float[Array, "*shape"], Float[Array, " K"]]:
    """Return per-token weights that make L a plain weighted sum, and each task's summed weight.

    L = Σ_task λ_task · Σ w·nll / Σ w = Σ w̃·nll with w̃ = λ_task · w / Σ_task w; the arrays
    hold the whole global batch, all accumulation steps. A task without weight adds 0.
    """
    totals = task_sums(weights, task, lambdas.shape[0])
    scale = jnp.where(totals > 0, lambdas / jnp.where(totals > 0, totals, 1.0), 0.0)
    return weights * scale[task], totals


def task_sums(
    values: Float[Array, "*shape"], task: Int[Array, "*shape"], tasks: int
) -> Float[Array, " K"]:
    """Return the sum of `values` of each task index, `[K]`."""
    axes = tuple(range(values.ndim))
    return jnp.stack([jnp.sum(jnp.where(task == k, values, 0.0), axes) for k in range(tasks)])


def cross_entropy(
    hidden: Float[Array, "B T D"],
    head: Float[Array, "D V"],
    targets: Int[Array, "B T"],
    weights: Float[Array, "B T"],
    *,
    trained_head: bool,
    chunk: int = 512,
    groups: int = 1,
) -> tuple[Float[Array, ""], Float[Array, "B T"]]:
    """Return Σ weights·nll and nll `[B, T]`; only the first is differentiated.

    Logits, logsumexp and nll are f32. Under a mesh the head is gathered once, and its
    vocabulary stays divided.

    Args:
        hidden: Hidden states.
        head: Matrix from hidden states to logits.
        targets: The token to predict at each position.
        weights: Weight of each position; nll is 0 where it is 0.
        trained_head: False gives no gradient to `head`, and raises `ValueError` if one is
            wanted.
        chunk: Positions whose logits exist at the same time.
        groups: Parts of the batch that are ordered separately; as many as the batch has
            shards, so that nothing crosses devices.
    """
    batch, length, width = hidden.shape
    if batch % groups:
        raise ValueError(f"{batch} rows cannot be cut into {groups} groups of equal size")
    positions = batch * length // groups
    size = min(max(chunk // groups, 1), positions)

    def grouped(values: Array, *tail: int) -> Array:
        return _split(values.reshape(groups, positions, *tail))

    weights = jax.lax.stop_gradient(weights)
    # The head as it lies in memory, [V, D]: its transpose would be a copy on some back ends.
    table = constrain(head.T, "vocab", None)
    loss, nll = _fused(
        (trained_head, size), grouped(hidden, width), table, grouped(targets), grouped(weights)
    )
    return loss, jax.lax.stop_gradient(nll.reshape(batch, length))


def _split(values: Array) -> Array:
    """Lay groups `[G, …]` out as the batch is."""
    return constrain(values, "batch", *(None,) * (values.ndim - 1))


class _Order:
    """An order of positions `[G, P]` in chunks of `size`: those with weight first, by place."""

    def __init__(self, weights: Float[Array, "G P"], size: int):
        self.size, self.positions = size, weights.shape[1]
        order = jnp.argsort(weights == 0, axis=1, stable=True)
        self._back = _split(jnp.argsort(order, axis=1))
        self._order = _split(jnp.pad(order, ((0, 0), (0, -self.positions % size)), mode="edge"))
        trained = jnp.sum(weights != 0, axis=1)
        self._trained = trained[:, None]
        self.chunks = -(-jnp.max(trained) // size)
        """How many chunks have weight, in the group that has most."""

    def sort(self, values: Array) -> Array:
        """Order `[G, P, …]` into whole chunks `[G, P', …]`; the filling means nothing."""
        return _take(values, self._order)

    def restore(self, values: Array) -> Array:
        """Undo `sort`, with 0 where there is no weight."""
        values = _take(values, self._back)
        trained = (self._back < self._trained).reshape(*self._back.shape, *_ones(values))
        return jnp.where(trained, values, 0)

    def chunk(self, values: Array, number: Array) -> Array:
        """Return chunk `number`, `[G, size, …]`, of sorted values."""
        return jax.lax.dynamic_slice_in_dim(values, number * self.size, self.size, axis=1)

    def put(self, values: Array, number: Array, chunk: Array) -> Array:
        """Return sorted values with chunk `number` replaced."""
        return jax.lax.dynamic_update_slice_in_dim(values, chunk, number * self.size, axis=1)

    def is_trained(self, number: Array) -> Array:
        """Return bool `[G, size]`: which positions of chunk `number` have weight."""
        return number * self.size + jnp.arange(self.size) < self._trained


def _take(values: Array, index: Int[Array, "G N"]) -> Array:
    index = index.reshape(*index.shape, *_ones(values))
    return _split(jnp.take_along_axis(values, index, axis=1))


def _ones(values: Array) -> tuple[int, ...]:
    return (1,) * (values.ndim - 2)


def _inside(table, number):
    """Tie both together: else XLA moves the transpose of the table, a copy, out of the loop."""
    return jax.lax.optimization_barrier((table, number))


def _nll(hidden, table, targets):
    """Return nll `[G C]`, log Σ exp `[G C 1]`, logits and target mask `[G C V]` of a chunk."""
    logits = jnp.einsum("gcd,vd->gcv", hidden, table, preferred_element_type=jnp.float32)
    logits = constrain(logits, "batch", None, "vocab")
    total = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    # Compare and sum instead of a gather: the vocabulary may be sharded.
    hit = jnp.arange(table.shape[0], dtype=targets.dtype) == targets[..., None]
    nll = total[..., 0] - jnp.sum(jnp.where(hit, logits, 0.0), axis=-1)
    return nll, total, logits, hit


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _fused(options, hidden, head, targets, weights):
    """Return Σ w·nll and nll `[G P]` of groups `[G, P, …]`, without gradients."""
    order = _Order(weights, options[1])
    hidden, targets = order.sort(hidden), order.sort(targets)

    def body(number, nll):
        table, number = _inside(head, number)
        h, t = order.chunk(hidden, number), order.chunk(targets, number)
        return order.put(nll, number, _nll(h, table, t)[0])

    nll = jax.lax.fori_loop(0, order.chunks, body, jnp.zeros(targets.shape, jnp.float32))
    nll = order.restore(nll)
    return jnp.sum(weights * nll), nll


def _fused_forward(options, hidden, head, targets, weights):
    trained_head, size = options
    if head.perturbed and not trained_head:
        raise ValueError(
            "the loss with a frozen head cannot give the gradient of the head, which is"
            " trainable here (an output or tied embedding): use trained_head=True"
        )
    hidden, head, targets, weights = (x.value for x in (hidden, head, targets, weights))
    order = _Order(weights, size)
    sorted_targets, sorted_weights = order.sort(targets), order.sort(weights)
    f32 = {"preferred_element_type": jnp.float32}

    def body(number, carry):
        table, number = _inside(head, number)
        states, nll, d_table = carry
        h, t = order.chunk(states, number), order.chunk(sorted_targets, number)
        w = jnp.where(order.is_trained(number), order.chunk(sorted_weights, number), 0.0)
        value, total, logits, hit = _nll(h, table, t)
        d_logits = ((jnp.exp(logits - total) - hit) * w[..., None]).astype(table.dtype)
        d_hidden = jnp.einsum("gcv,vd->gcd", d_logits, table, **f32).astype(h.dtype)
        if trained_head:
            d_table += jnp.einsum("gcv,gcd->vd", d_logits, h, **f32)
        return (
            order.put(states, number, _split(d_hidden)),
            order.put(nll, number, value),
            d_table,
        )

    zeros = jnp.zeros(head.shape if trained_head else (), jnp.float32)
    start = (order.sort(hidden), jnp.zeros(sorted_targets.shape, jnp.float32), zeros)
    d_hidden, nll, d_table = jax.lax.fori_loop(0, order.chunks, body, start)
    d_hidden, nll = order.restore(d_hidden), order.restore(nll)
    loss = jnp.sum(weights * nll)
    return (loss, nll), (d_hidden, d_table.astype(head.dtype))


def _fused_backward(options, gradients, cotangents):
    d_loss, _ = cotangents  # nll is reported, never differentiated
    if isinstance(d_loss, jax.custom_derivatives.SymbolicZero):
        d_loss = jnp.float32(0)
    d_hidden, d_table = ((d_loss * g).astype(g.dtype) for g in gradients)
    return d_hidden, d_table if options[0] else None, None, None


_fused.defvjp(_fused_forward, _fused_backward, symbolic_zeros=True)
