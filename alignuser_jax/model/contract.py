"""One matrix product for the whole model, accumulated in f32 and with a fast backward pass.

A bf16 dot with an f32 result is what accelerators do, and several times faster on a CPU too,
but its plain gradient multiplies an f32 cotangent with a bf16 operand. Here cotangents are cast
back to the operands' type first, and the backward dots accumulate in f32 again.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


@partial(jax.custom_vjp, nondiff_argnums=(0, 3))
def contract(
    spec: str, x: jax.Array, y: jax.Array, out_dtype: DTypeLike | None = None
) -> jax.Array:
    """Return `jnp.einsum(spec, x, y)`, accumulated in f32.

    Args:
        spec: Einsum letters with "->", no ellipsis; each letter of an operand stands in the
            other operand or in the result as well.
        x: First operand.
        y: Second operand.
        out_dtype: Type of the result; default the type of `x`.
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
        # XLA's CPU back end copies a dot's first operand into another layout: make that the
        # smaller one. The barrier keeps XLA from swapping the operands again.
        turned = _einsum(f"{result},{a}->{b[::-1]}", g, x, y.dtype)
        dy = jax.lax.optimization_barrier(turned).T
    else:
        dy = _einsum(f"{a},{result}->{b}", x, g, y.dtype)
    return dx, dy


contract.defvjp(_forward, _backward)
