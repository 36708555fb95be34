"""Cross entropy over the trained positions without ever a `[B, T, V]` array (decision 6).

Positions are put in an order in which those with weight stand first, then taken in chunks by
a scan; a chunk without weight computes nothing, so that a batch costs what it trains. The
forward pass of a differentiated chunk computes d(hidden), and d(head) where the head is
trained, at once: logits are neither kept nor made twice.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def fold_weights(
    weights: Float[Array, "*shape"], task: Int[Array, "*shape"], lambdas: Float[Array, " K"]
) -> tuple[Float[Array, "*shape"], Float[Array, " K"]]:
    """Per-token weights that make L a plain weighted sum, and each task's summed weight.

    L = Σ_task λ_task · Σ w·nll / Σ w = Σ w̃·nll with w̃ = λ_task · w / Σ_task w; the arrays
    hold the whole global batch, all accumulation steps. A task without weight adds 0.
    """
    totals = task_sums(weights, task, lambdas.shape[0])
    scale = jnp.where(totals > 0, lambdas / jnp.where(totals > 0, totals, 1.0), 0.0)
    return weights * scale[task], totals


def task_sums(
    values: Float[Array, "*shape"], task: Int[Array, "*shape"], tasks: int
) -> Float[Array, " K"]:
    """The sum of `values` per task index."""
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
    """`(Σ weights·nll, nll)`; only the first is differentiated, `nll` is 0 where weight is 0.

    `trained_head=False` gives no gradient to `head` and raises `ValueError` where one is asked
    for. `chunk`: positions whose logits exist at the same time. `groups`: parts of the batch
    that are ordered apart; as many as the batch has shards, so that nothing crosses devices.
    Logits, logsumexp and nll are float32.
    """
    batch, length, width = hidden.shape
    if batch % groups:
        raise ValueError(f"{batch} rows cannot be cut into {groups} groups of equal size")
    weights = jax.lax.stop_gradient(weights)
    positions = batch * length // groups
    size = min(max(chunk // groups, 1), positions)
    order = jnp.argsort(weights.reshape(groups, -1) == 0, axis=1, stable=True)
    back = jnp.argsort(order, axis=1)

    def chunked(values: Array, *tail: int) -> Array:
        values = values.reshape(groups, positions, *tail)
        index = order.reshape(groups, positions, *(1 for _ in tail))
        values = jnp.take_along_axis(values, index, axis=1)
        padding = [(0, 0), (0, -positions % size)] + [(0, 0)] * len(tail)
        values = jnp.pad(values, padding)
        return jnp.moveaxis(values.reshape(groups, -1, size, *tail), 1, 0)

    loss, nll = _fused(
        trained_head, chunked(hidden, width), head, chunked(targets), chunked(weights)
    )
    nll = jnp.moveaxis(nll, 0, 1).reshape(groups, -1)[:, :positions]
    nll = jnp.take_along_axis(nll, back, axis=1).reshape(batch, length)
    return loss, jax.lax.stop_gradient(nll)


def _nll(hidden, head, targets, weights):
    """`(nll [G C], log p [G C V], target mask [G C V])` of one chunk."""
    logits = jnp.einsum("gcd,dv->gcv", hidden, head, preferred_element_type=jnp.float32)
    log_probabilities = jax.nn.log_softmax(logits)
    # Compare and sum instead of a gather: the vocabulary may be sharded.
    hit = jnp.arange(head.shape[1], dtype=targets.dtype) == targets[..., None]
    nll = -jnp.sum(jnp.where(hit, log_probabilities, 0.0), axis=-1)
    return jnp.where(weights != 0, nll, 0.0), log_probabilities, hit


def _scan(body, empty, carry, chunks):
    """`body(carry, h, t, w)` over the chunks; `empty` where a chunk has no weight."""

    def step(carry, xs):
        return jax.lax.cond(jnp.any(xs[2] != 0), body, empty, carry, *xs)

    return jax.lax.scan(step, carry, chunks)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _fused(trained_head, hidden, head, targets, weights):
    """`(Σ w·nll, nll)` over chunks `[n, G, C, …]`, without gradients."""

    def body(loss, h, t, w):
        nll, _, _ = _nll(h, head, t, w)
        return loss + jnp.sum(w * nll), nll

    def empty(loss, h, t, w):
        return loss, jnp.zeros(w.shape, jnp.float32)

    return _scan(body, empty, jnp.float32(0), (hidden, targets, weights))


def _fused_forward(trained_head, hidden, head, targets, weights):
    if head.perturbed and not trained_head:
        raise ValueError(
            "the frozen-head loss was asked for the gradient of the head (an output or tied"
            " embedding is trainable): call cross_entropy with trained_head=True"
        )
    hidden, head, targets, weights = (x.value for x in (hidden, head, targets, weights))
    f32 = {"preferred_element_type": jnp.float32}

    def body(carry, h, t, w):
        loss, d_head = carry
        nll, log_probabilities, hit = _nll(h, head, t, w)
        d_logits = ((jnp.exp(log_probabilities) - hit) * w[..., None]).astype(head.dtype)
        d_hidden = jnp.einsum("gcv,dv->gcd", d_logits, head, **f32).astype(h.dtype)
        if trained_head:
            d_head += jnp.einsum("gcd,gcv->dv", h, d_logits, **f32)
        return (loss + jnp.sum(w * nll), d_head), (nll, d_hidden)

    def empty(carry, h, t, w):
        return carry, (jnp.zeros(w.shape, jnp.float32), jnp.zeros_like(h))

    none = jnp.zeros(head.shape if trained_head else (), jnp.float32)
    (loss, d_head), (nll, d_hidden) = _scan(
        body, empty, (jnp.float32(0), none), (hidden, targets, weights)
    )
    return (loss, nll), (d_hidden, d_head.astype(head.dtype))


def _fused_backward(trained_head, gradients, cotangents):
    d_loss, _ = cotangents  # nll is reported, never differentiated
    if isinstance(d_loss, jax.custom_derivatives.SymbolicZero):
        d_loss = jnp.float32(0)
    d_hidden, d_head = ((d_loss * g).astype(g.dtype) for g in gradients)
    return d_hidden, d_head if trained_head else None, None, None


_fused.defvjp(_fused_forward, _fused_backward, symbolic_zeros=True)
