"""A linear map with an optional low-rank adapter: `y = x W + scale * (x A) B`.

Which weights train is structure, not a mask: `W` is an `nnx.Param`, `A` and `B` are
`nnx.LoRAParam` (f32, `B` starts at 0), so splitting by type separates them.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from alignuser_jax.model.config import LoraConfig
from alignuser_jax.model.contract import contract


class Adapter(NamedTuple):
    """How a call uses the adapters: traced values, so switching never recompiles.

    `scale` (a scalar, or `[B]` one per row) multiplies the configured scale: 1 is the adapted
    model, 0 the base. `key` draws the dropout mask; None means no dropout.
    """

    scale: jax.Array
    key: jax.Array | None = None

    def fold(self, index: int | jax.Array) -> Adapter:
        key = None if self.key is None else jax.random.fold_in(self.key, index)
        return Adapter(self.scale, key)


class Projection(nnx.Module):
    """`[B, T, fan_in] -> [B, T, fan_out]` without bias; `lora=None` or rank 0 is plain."""

    def __init__(
        self,
        fan_in: int,
        fan_out: int,
        axes: tuple[str | None, str | None],
        lora: LoraConfig | None,
        *,
        param_dtype: jnp.dtype,
        gain: float = 1.0,
    ) -> None:
        std = gain * fan_in**-0.5
        kernel = jnp.zeros((fan_in, fan_out), param_dtype)
        self.kernel = nnx.Param(kernel, axes=axes, init=("normal", std))
        self.lora = lora if lora is not None and lora.rank else None
        if self.lora is not None:
            a = jnp.zeros((fan_in, self.lora.rank), jnp.float32)
            b = jnp.zeros((self.lora.rank, fan_out), jnp.float32)
            self.a = nnx.LoRAParam(a, axes=(axes[0], None), init=("uniform", fan_in**-0.5))
            self.b = nnx.LoRAParam(b, axes=(None, axes[1]), init=("constant", 0.0))

    def __call__(self, x: jax.Array, adapter: Adapter) -> jax.Array:
        y = contract("btd,df->btf", x, self.kernel[...].astype(x.dtype))
        if self.lora is None:
            return y
        if adapter.key is not None and self.lora.dropout:
            keep = jax.random.bernoulli(adapter.key, 1 - self.lora.dropout, x.shape)
            x = jnp.where(keep, x / (1 - self.lora.dropout), 0).astype(x.dtype)
        low = contract("btd,dr->btr", x, self.a[...].astype(x.dtype))
        delta = contract("btr,rf->btf", low, self.b[...].astype(x.dtype))
        scale = (self.lora.scale * adapter.scale).astype(x.dtype)
        return y + delta * scale.reshape(-1, 1, 1)

    def merged_kernel(self) -> jax.Array:
        """`W + scale * A B`, in W's type: the projection without its adapter."""
        kernel = self.kernel[...]
        if self.lora is None:
            return kernel
        delta = jnp.einsum("...dr,...rf->...df", self.a[...], self.b[...])
        return (kernel.astype(jnp.float32) + self.lora.scale * delta).astype(kernel.dtype)
