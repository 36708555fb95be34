"""A linear map with optional low-rank adapters: `y = x W + b + scale * (x A * gate) B`.

Which weights train is structure, not a mask: `W` is an `nnx.Param`, `A` and `B` are
`nnx.LoRAParam` (f32, `B` starts at 0), so splitting by type separates them.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from alignuser_jax.model.config import LoraConfig
from alignuser_jax.model.contract import contract

PROJECTED = "projected"
"""The name of every projection's result, for rematerialisation policies."""


class Adapter(NamedTuple):
    """How a call uses the adapters: traced values, so switching never recompiles.

    `gate` (`[R]`, or `[B, R]` one per row) multiplies the R low-rank features; None is 1
    everywhere. Several adapters lie side by side in R, so that 0s and 1s choose one of them,
    or none, for each row. `key` draws the dropout mask; None means no dropout.
    """

    gate: jax.Array | None = None
    key: jax.Array | None = None

    def fold(self, index: int | jax.Array) -> Adapter:
        key = None if self.key is None else jax.random.fold_in(self.key, index)
        return Adapter(self.gate, key)


class Projection(nnx.Module):
    """`[B, T, fan_in] -> [B, T, fan_out]`; `lora=None` or rank 0 is plain.

    `heads`: how many heads the axis named "heads" holds; they are not cut by sharding.
    """

    def __init__(
        self,
        fan_in: int,
        fan_out: int,
        axes: tuple[str | None, str | None],
        lora: LoraConfig | None,
        *,
        param_dtype: jnp.dtype,
        bias: bool = False,
        heads: int | None = None,
        gain: float = 1.0,
    ) -> None:
        def weight(kind, shape, axes, init, dtype=param_dtype):
            return kind(jnp.zeros(shape, dtype), axes=axes, init=init, heads=heads)

        std, (into, out) = fan_in**-0.5, axes
        self.kernel = weight(nnx.Param, (fan_in, fan_out), axes, ("normal", gain * std))
        self.bias = weight(nnx.Param, (fan_out,), (out,), ("constant", 0.0)) if bias else None
        self.lora = lora if lora is not None and lora.rank else None
        if self.lora is not None:
            low, kind, f32 = self.lora.rank, nnx.LoRAParam, jnp.float32
            self.a = weight(kind, (fan_in, low), (into, None), ("uniform", std), f32)
            self.b = weight(kind, (low, fan_out), (None, out), ("constant", 0.0), f32)

    def __call__(self, x: jax.Array, adapter: Adapter) -> jax.Array:
        y = contract("btd,df->btf", x, self.kernel[...].astype(x.dtype))
        if self.bias is not None:
            y = y + self.bias[...].astype(x.dtype)
        if self.lora is not None:
            y = y + self._low_rank(x, adapter)
        return checkpoint_name(y, PROJECTED)

    def _low_rank(self, x: jax.Array, adapter: Adapter) -> jax.Array:
        if adapter.key is not None and self.lora.dropout:
            keep = jax.random.bernoulli(adapter.key, 1 - self.lora.dropout, x.shape)
            x = jnp.where(keep, x / (1 - self.lora.dropout), 0).astype(x.dtype)
        low = checkpoint_name(
            contract("btd,dr->btr", x, self.a[...].astype(x.dtype)), PROJECTED
        )
        if adapter.gate is not None:
            low = low * adapter.gate[..., None, :].astype(x.dtype)
        # B is scaled, being small: neither the result nor its cotangent is gone through again.
        return contract("btr,rf->btf", low, (self.b[...] * self.lora.scale).astype(x.dtype))

    def merged_kernel(self) -> jax.Array:
        """`W + scale * A B`, in W's type: the projection without its adapter."""
        kernel = self.kernel[...]
        if self.lora is None:
            return kernel
        delta = jnp.einsum("...dr,...rf->...df", self.a[...], self.b[...])
        return (kernel.astype(jnp.float32) + self.lora.scale * delta).astype(kernel.dtype)
