"""A linear map with optional low-rank adapters: `y = x W + b + scale * (x A * gate) B`.

Which weights train is decided by structure, not by a mask: `W` is an `nnx.Param`, `A` and `B`
are `nnx.LoRAParam` (f32, `B` starts at 0), so that splitting by type separates them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from alignuser_jax.model.config import LoraConfig
from alignuser_jax.model.contract import contract

PROJECTED = "projected"
"""Checkpoint name of every projection's result, for rematerialisation policies."""


class Adapter(NamedTuple):
    """How a call uses the adapters; its values are traced, so switching never recompiles.

    Several adapters lie side by side in the rank R, so that a gate of 0s and 1s chooses one of
    them, or none, for each row.

    Attributes:
        gate: `[R]`, or `[B, R]` for one choice per row; multiplies the R low-rank features.
            None is 1 everywhere.
        key: Draws the dropout mask; None means no dropout.
    """

    gate: jax.Array | None = None
    key: jax.Array | None = None

    def fold(self, index: int | jax.Array) -> Adapter:
        """Return the same use with its own dropout key for layer or projection `index`."""
        key = None if self.key is None else jax.random.fold_in(self.key, index)
        return Adapter(self.gate, key)


@dataclass(frozen=True)
class ProjectionSpec:
    """Shape, logical axes and initial scale of one projection.

    Attributes:
        fan_in: Size of the last axis of the input.
        fan_out: Size of the last axis of the output.
        axes: Logical names of the two axes of the kernel, for sharding.
        heads: How many heads the axis named "heads" holds; sharding keeps each head whole.
        gain: Factor of the kernel's initial standard deviation `fan_in ** -0.5`.
    """

    fan_in: int
    fan_out: int
    axes: tuple[str | None, str | None]
    heads: int | None = None
    gain: float = 1.0


class Projection(nnx.Module):
    """A linear map `[B, T, fan_in] -> [B, T, fan_out]`, with low-rank adapters if asked for.

    Args:
        spec: Shape and axes.
        lora: Shape of the adapters; None or rank 0 is a plain linear map.
        bias: Whether a bias is added.
        param_dtype: Type of kernel and bias.
    """

    def __init__(
        self,
        spec: ProjectionSpec,
        lora: LoraConfig | None,
        *,
        param_dtype: jnp.dtype,
        bias: bool = False,
    ) -> None:
        def weight(kind, shape, axes, init, dtype=param_dtype):
            return kind(jnp.zeros(shape, dtype), axes=axes, init=init, heads=spec.heads)

        std, (into, out) = spec.fan_in**-0.5, spec.axes
        shape = (spec.fan_in, spec.fan_out)
        self.kernel = weight(nnx.Param, shape, spec.axes, ("normal", spec.gain * std))
        offset = weight(nnx.Param, (spec.fan_out,), (out,), ("constant", 0.0)) if bias else None
        self.bias: nnx.Param | None = offset
        self.lora = lora if lora is not None and lora.rank else None
        if self.lora is not None:
            low, kind, f32 = self.lora.rank, nnx.LoRAParam, jnp.float32
            self.a = weight(kind, (spec.fan_in, low), (into, None), ("uniform", std), f32)
            self.b = weight(kind, (low, spec.fan_out), (None, out), ("constant", 0.0), f32)

    def __call__(self, x: jax.Array, adapter: Adapter) -> jax.Array:
        """Map `x [B, T, fan_in]`; the result has its type."""
        y = contract("btd,df->btf", x, self.kernel[...].astype(x.dtype))
        if self.bias is not None:
            y = y + self.bias[...].astype(x.dtype)
        if self.lora is not None:
            y = y + self._low_rank(x, adapter, self.lora)
        return checkpoint_name(y, PROJECTED)

    def _low_rank(self, x: jax.Array, adapter: Adapter, lora: LoraConfig) -> jax.Array:
        if adapter.key is not None and lora.dropout:
            keep = jax.random.bernoulli(adapter.key, 1 - lora.dropout, x.shape)
            x = jnp.where(keep, x / (1 - lora.dropout), 0).astype(x.dtype)
        low = checkpoint_name(
            contract("btd,dr->btr", x, self.a[...].astype(x.dtype)), PROJECTED
        )
        if adapter.gate is not None:
            low = low * adapter.gate[..., None, :].astype(x.dtype)
        # The scale goes to B, which is small: applied to the result, it would be one more pass
        # over the result and over its cotangent.
        return contract("btr,rf->btf", low, (self.b[...] * lora.scale).astype(x.dtype))

    def merged_kernel(self) -> jax.Array:
        """Return `W + scale * A B` in the type of W: the kernel with its adapter folded in."""
        kernel = self.kernel[...]
        if self.lora is None:
            return kernel
        delta = jnp.einsum("...dr,...rf->...df", self.a[...], self.b[...])
        return (kernel.astype(jnp.float32) + self.lora.scale * delta).astype(kernel.dtype)
