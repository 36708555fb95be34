"""The decoder of Qwen3, Qwen2.5 and Llama 3: RMSNorm, grouped-query attention, rotary
positions, SwiGLU; with QK-norm (Qwen3), biases (Qwen2.5) or scaled rotary positions (Llama 3.1)
as its configuration says.

Layers are one stacked module applied by `jax.lax.scan` (training), or a list of modules
(`unstack`, for decoding, where slicing a stack would copy every weight at every token).
Letters: B rows, T tokens, D hidden, N heads, K key heads, H head size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from alignuser_jax.model import attention
from alignuser_jax.model.cache import KVCache, write
from alignuser_jax.model.config import DecoderConfig, LoraConfig
from alignuser_jax.model.contract import contract
from alignuser_jax.model.lora import PROJECTED, Adapter, Projection
from alignuser_jax.parallel import constrain

REMAT: Mapping[str, object] = {
    "none": jax.checkpoint_policies.everything_saveable,
    "dots": jax.checkpoint_policies.save_only_these_names(PROJECTED, attention.ATTENDED),
    "full": jax.checkpoint_policies.nothing_saveable,
}
"""What the backward pass keeps of a layer: all, the results of its projections and of
attention (not cuDNN's), only its input."""

EVERYTHING = 2**31 - 1  # a window that no position leaves


class RMSNorm(nnx.Module):
    def __init__(self, size: int, eps: float, *, param_dtype: jnp.dtype) -> None:
        ones = jnp.ones((size,), param_dtype)
        self.scale = nnx.Param(ones, axes=(None,), init=("constant", 1.0))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.eps)
        return (y * self.scale[...].astype(jnp.float32)).astype(x.dtype)


class Block(nnx.Module):
    """One layer: attention and feed-forward, each on a normed copy of the residual stream."""

    def __init__(
        self, config: DecoderConfig, lora: LoraConfig, *, param_dtype: jnp.dtype
    ) -> None:
        def projection(name, fan_in, fan_out, axes, heads=None, gain=1.0):
            adapted = lora if name in lora.targets else None
            options = {"bias": config.has_bias(name), "heads": heads, "gain": gain}
            return Projection(
                fan_in, fan_out, axes, adapted, param_dtype=param_dtype, **options
            )

        c, into, out = config, ("embed", "heads"), ("heads", "embed")
        norm = {"eps": c.rms_norm_eps, "param_dtype": param_dtype}
        small = (2 * c.num_layers) ** -0.5  # keeps the residual stream's variance near 1
        queries, keys = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
        self.head_dim = c.head_dim
        self.attention_norm = RMSNorm(c.hidden_size, **norm)
        self.q = projection("q", c.hidden_size, queries, into, c.num_heads)
        self.k = projection("k", c.hidden_size, keys, into, c.num_kv_heads)
        self.v = projection("v", c.hidden_size, keys, into, c.num_kv_heads)
        self.q_norm = RMSNorm(c.head_dim, **norm) if c.qk_norm else None
        self.k_norm = RMSNorm(c.head_dim, **norm) if c.qk_norm else None
        self.o = projection("o", queries, c.hidden_size, out, c.num_heads, small)
        self.mlp_norm = RMSNorm(c.hidden_size, **norm)
        self.gate = projection("gate", c.hidden_size, c.intermediate_size, ("embed", "mlp"))
        self.up = projection("up", c.hidden_size, c.intermediate_size, ("embed", "mlp"))
        self.down = projection(
            "down", c.intermediate_size, c.hidden_size, ("mlp", "embed"), gain=small
        )

    def __call__(
        self,
        x: jax.Array,
        rotation: attention.Rotation,
        adapter: Adapter,
        look: Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, Any]],
    ) -> tuple[jax.Array, Any]:
        """`[B, T, D] -> [B, T, D]`, and what `look` kept: `(q, k, v) -> (attended, kept)`."""
        heads = (*x.shape[:2], -1, self.head_dim)
        y = self.attention_norm(x)
        q = self.q(y, adapter.fold(0)).reshape(heads)
        k = self.k(y, adapter.fold(1)).reshape(heads)
        v = self.v(y, adapter.fold(2)).reshape(heads)
        if self.q_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (constrain(a, "batch", None, "heads", None) for a in (q, k, v))
        q, k = attention.rotate(q, rotation), attention.rotate(k, rotation)
        y, kept = look(q, k, v)
        y = y.reshape(*x.shape[:2], -1)
        x = constrain(x + self.o(y, adapter.fold(3)), "batch", None, None)
        y = self.mlp_norm(x)
        y = jax.nn.silu(self.gate(y, adapter.fold(4))) * self.up(y, adapter.fold(5))
        y = self.down(constrain(y, "batch", None, "mlp"), adapter.fold(6))
        return constrain(x + y, "batch", None, None), kept


class Decoder(nnx.Module):
    """A causal language model up to its last hidden state; `head()` turns that into logits.

    Made by `load_decoder`, `init_decoder` or `abstract_decoder`: the constructor alone gives
    the structure, with the initial distribution and logical axes of each weight as metadata.

    Args:
      adapters: (name, rank) of several adapters that lie side by side in `lora`'s rank; by
        default `lora` is one adapter.
      dtype: of activations and products. Norms, softmax and accumulation are f32 always.
      param_dtype: of base weights. LoRA weights are f32 always.
    """

    def __init__(
        self,
        config: DecoderConfig,
        lora: LoraConfig | None = None,
        *,
        adapters: tuple[tuple[str, int], ...] | None = None,
        dtype: jnp.dtype = jnp.float32,
        param_dtype: jnp.dtype = jnp.float32,
    ) -> None:
        self.config, self.lora = config, lora or LoraConfig()
        alone = (("adapter", self.lora.rank),) if self.lora.rank else ()
        self.adapters = alone if adapters is None else adapters
        if (total := sum(rank for _, rank in self.adapters)) != self.lora.rank:
            raise ValueError(
                f"the adapters {self.adapters} have ranks of {total} in all, but the decoder "
                f"a rank of {self.lora.rank}"
            )
        self.dtype, self.param_dtype = jnp.dtype(dtype), jnp.dtype(param_dtype)

        def table() -> nnx.Param:
            zeros = jnp.zeros((config.vocab_size, config.hidden_size), param_dtype)
            std = config.hidden_size**-0.5
            return nnx.Param(zeros, axes=("vocab", "embed"), init=("normal", std))

        def block(_: jax.Array) -> Block:
            return Block(config, self.lora, param_dtype=param_dtype)

        self.embedding = table()
        self.layers = nnx.vmap(block)(jnp.arange(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, param_dtype=param_dtype)
        tied = config.tie_word_embeddings or config.headless
        self.unembedding = None if tied else table()

    def __call__(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        segment_ids: jax.Array | None = None,
        cache: KVCache | None = None,
        valid: jax.Array | None = None,
        *,
        lengths: jax.Array | None = None,
        reach: int | None = None,
        implementation: str = "xla",
        remat: str = "none",
        unroll: int = 1,
        adapter: int | jax.Array = 1,
        dropout_key: jax.Array | None = None,
    ) -> tuple[jax.Array, KVCache | None]:
        """Hidden states `[B, T, D]` after the last norm, and the cache with the new tokens.

        Args:
          tokens, positions: int32 `[B, T]`.
          segment_ids: int32 `[B, T]`; a token attends within its segment. Not with a cache.
          cache: new keys and values are written at `positions`, and each query attends to the
            slots up to its own position; so every earlier position must have been written.
          valid: bool `[B, T]`, with a cache only: other tokens are not written and their
            hidden states mean nothing.
          lengths: int32 `[B]`: what follows in a row is padding. Not with a cache.
          reach: tokens of the longest segment, itself included, which saves work in longer
            rows: what lies farther back is not looked at. Not with a cache.
          implementation: of attention without a cache, see `attention.attend_causal`.
          remat: "none", "dots" or "full" (`REMAT`).
          unroll: layers per step of the scan: can be faster for some shapes, slower to compile.
          adapter: which of `adapters` is at work, counted from 1, for all or one per row `[B]`;
            0 is the base.
          dropout_key: turns on the adapters' dropout.
        """
        uncached = any(a is not None for a in (segment_ids, lengths, reach))
        if uncached if cache is not None else (valid is not None):
            raise ValueError(
                "segment_ids, lengths and reach are for calls without a cache and valid for "
                f"calls with one: got cache={'given' if cache is not None else None}"
            )
        if remat not in REMAT:
            raise ValueError(f"remat={remat!r} is not one of {tuple(REMAT)}")
        c, depth = self.config, self.config.num_layers
        x = self.embedding[...][tokens].astype(self.dtype)
        # As the table lies, then as the batch does: in one step XLA would gather all of it.
        x = constrain(constrain(x, "data", None, "embed"), "batch", None, None)
        rotation = self.rotation(positions)
        adapter = self.adapter(adapter, dropout_key)
        windows = [min(w or EVERYTHING, reach or EVERYTHING) for w in c.windows()]
        mixed = len(set(windows)) > 1  # else static, which faster attention needs

        def look_here(q, k, v, window):
            k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
            given = {"segment_ids": segment_ids, "lengths": lengths, "window": window}
            y = attention.attend_causal(q, k, v, **given, implementation=implementation)
            return y, None

        if cache is None and isinstance(self.layers, Block):
            graph, weights = nnx.split(self.layers)

            def body(x, xs):
                weights, layer, window = xs
                look = partial(look_here, window=window if mixed else windows[0])
                return nnx.merge(graph, weights)(x, rotation, adapter.fold(layer), look)

            if remat != "none":
                body = jax.checkpoint(body, prevent_cse=False, policy=REMAT[remat])
            xs = (weights, jnp.arange(depth), jnp.asarray(windows))
            x, _ = jax.lax.scan(body, x, xs, unroll=unroll)
            return self.norm(x), None

        def look_back(q, k, v, past, window):
            past = [write(*pair, positions, valid) for pair in zip(past, (k, v), strict=True)]
            k, v = (a.astype(q.dtype) for a in past)
            slots = jnp.arange(k.shape[2])
            mask = slots <= positions[:, :, None]
            if window != EVERYTHING:
                mask = mask & (slots > positions[:, :, None] - window)
            return attention.attend(q, k, v, mask), past

        kept = []
        for layer, block in enumerate(self.blocks()):
            look = partial(look_here, window=windows[layer])
            if cache is not None:
                past = cache.k[layer], cache.v[layer]
                look = partial(look_back, past=past, window=windows[layer])
            x, past = block(x, rotation, adapter.fold(layer), look)
            kept.append(past)
        x = self.norm(x)
        return x, cache and KVCache(*(tuple(arrays) for arrays in zip(*kept, strict=True)))

    def rotation(self, positions: jax.Array) -> attention.Rotation:
        """The rotary positions' cosine and sine at positions `[B, T]`."""
        c = self.config
        frequencies = attention.rotary_frequencies(c.head_dim, c.rope_theta, c.rope_scaling)
        return attention.rotation(positions, frequencies)

    def adapter(self, which: int | jax.Array, key: jax.Array | None = None) -> Adapter:
        """How a call uses adapter number `which` (or one per row `[B]`), 0 being none."""
        if isinstance(which, int) and not 0 <= which <= max(len(self.adapters), 1):
            raise ValueError(
                f"adapter={which}: expected 0 (the base) to {len(self.adapters)}, the "
                f"adapters are {[name for name, _ in self.adapters]}"
            )
        if not self.adapters or (isinstance(which, int) and which == len(self.adapters) == 1):
            return Adapter(None, key)
        gates = np.zeros((len(self.adapters) + 1, self.lora.rank), np.float32)
        begin = 0
        for number, (_, rank) in enumerate(self.adapters, start=1):
            gates[number, begin : begin + rank] = 1
            begin += rank
        return Adapter(jnp.asarray(gates)[which], key)

    def blocks(self) -> Iterator[Block]:
        """The layers one by one, however they are held."""
        if not isinstance(self.layers, Block):
            yield from self.layers
            return
        graph, weights = nnx.split(self.layers)
        for i in range(self.config.num_layers):
            yield nnx.merge(graph, jax.tree.map(lambda a, i=i: a[i], weights))

    def head(self) -> jax.Array:
        """The matrix `[D, V]` from hidden states to logits, in the compute type.

        Raises `ValueError` for an embedding model, which has none.
        """
        if self.config.headless:
            raise ValueError(
                "this checkpoint is an embedding model without a head: it gives hidden states "
                "and embeddings, but no logits"
            )
        table = self.embedding if self.unembedding is None else self.unembedding
        return table[...].T.astype(self.dtype)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """f32 logits `[B, T, V]` of hidden states `[B, T, D]`."""
        return contract("btd,dv->btv", hidden, self.head(), jnp.float32)
