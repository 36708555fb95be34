"""One matrix product for the whole model: f32 accumulation forwards, fast dots backwards.

A bf16 dot with an f32 result is what accelerators do and several times faster on a CPU, but its
plain gradient multiplies an f32 cotangent with a bf16 operand. Here cotangents are cast back to
the operands' type first, and the backward dots accumulate in f32 again.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp


@partial(jax.custom_vjp, nondiff_argnums=(0, 3))
def contract(spec: str, x: jax.Array, y: jax.Array, out_dtype=None) -> jax.Array:
    """`jnp.einsum(spec, x, y)` accumulated in f32 and returned as `out_dtype` (default x's).

    `spec` has explicit letters, and no letter stands in one operand alone.
    """
    return _einsum(spec, x, y, out_dtype or x.dtype)


def _einsum(spec, x, y, dtype):
    if y.ndim == 2 and x.size == x.shape[-1] and x.dtype == jnp.bfloat16:
        # XLA's CPU back end multiplies a bf16 matrix 8 times slower with one row than with two.
        return _einsum(spec, jnp.concatenate([x, x]), y, dtype)[:1]
    return jnp.einsum(spec, x, y, preferred_element_type=jnp.float32).astype(dtype)


def _forward(spec, x, y, out_dtype):
    return contract(spec, x, y, out_dtype), (x, y)


def _backward(spec, out_dtype, operands, g):
    (x, y), (left, result) = operands, spec.split("->")
    a, b = left.split(",")
    dx = _einsum(f"{result},{b}->{a}", g.astype(y.dtype), y, x.dtype)
    g = g.astype(x.dtype)
    if x.size > g.size and y.ndim == 2:
        # XLA lays a CPU dot's first operand out anew: let that be the smaller one. The barrier
        # keeps it from turning the product round again.
        turned = _einsum(f"{result},{a}->{b[::-1]}", g, x, y.dtype)
        dy = jax.lax.optimization_barrier(turned).T
    else:
        dy = _einsum(f"{a},{result}->{b}", x, g, y.dtype)
    return dx, dy


contract.defvjp(_forward, _backward)
