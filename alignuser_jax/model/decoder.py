"""The decoder of Qwen3, Qwen2.5 and Llama 3, as one Flax NNX module.

It has RMSNorm, grouped-query attention, rotary positions and SwiGLU, with QK-norm (Qwen3),
biases (Qwen2.5) or scaled rotary positions (Llama 3.1) as its configuration says.

The layers are one stacked module that `jax.lax.scan` applies (training), or a list of modules
(`unstack`, for decoding, where slicing a stack would copy every weight at every token). With
adapters on the upper layers only (`LoraConfig.layers`) the lower ones are a stack of their own,
which no gradient passes. The KV cache is the engine's (`sampling.engine.forward`), which calls
the same blocks.

Letters in shapes: B rows, T tokens, D hidden, N query heads, K key heads, H head size,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from alignuser_jax.model import attention
from alignuser_jax.model.attention import ONE_SEGMENT, RowLayout
from alignuser_jax.model.config import DecoderConfig, LoraConfig
from alignuser_jax.model.contract import contract
from alignuser_jax.model.lora import PROJECTED, Adapter, Projection, ProjectionSpec
from alignuser_jax.parallel import constrain

REMAT: Mapping[str, Callable[..., bool]] = {
    "none": jax.checkpoint_policies.everything_saveable,
    "dots": jax.checkpoint_policies.save_only_these_names(PROJECTED, attention.ATTENDED),
    "full": jax.checkpoint_policies.nothing_saveable,
}
"""What the backward pass keeps of a layer, by name of the policy.

"none" recomputes nothing and keeps everything; "dots" keeps the results of the projections and
of attention (but not cuDNN's); "full" keeps the layer's input only and recomputes the rest."""

EVERYTHING = 2**31 - 1
"""A sliding window that no position leaves, for layers without one."""


@dataclass(frozen=True)
class Execution:
    """How a forward pass is computed; everything here is static under `jax.jit`.

    Attributes:
        attention: Implementation of attention: "xla", "cudnn" or "splash" (see
            `attention.attend_causal`).
        reach: Number of tokens of the longest segment, or None. A token then looks back at
            most so far, itself included, which saves work in rows longer than that.
        remat: What the backward pass keeps of a layer: "none", "dots" or "full" (`REMAT`).
        unroll: Layers per step of the scan. More can be faster for some shapes, and is slower
            to compile.
    """

    attention: str = "xla"
    reach: int | None = None
    remat: str = "none"
    unroll: int = 1

    def __post_init__(self) -> None:
        """Refuse an unknown rematerialisation policy."""
        if self.remat not in REMAT:
            raise ValueError(f"remat={self.remat!r} is not one of {tuple(REMAT)}")


class RMSNorm(nnx.Module):
    """Root-mean-square normalisation over the last axis, computed in f32."""

    def __init__(self, size: int, eps: float, *, param_dtype: jnp.dtype) -> None:
        ones = jnp.ones((size,), param_dtype)
        self.scale = nnx.Param(ones, axes=(None,), init=("constant", 1.0))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalise `x [..., size]` and scale it; the result has the type of `x`."""
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.eps)
        return (y * self.scale[...].astype(jnp.float32)).astype(x.dtype)


class Block(nnx.Module):
    """One layer: attention and feed-forward, each on a normed copy of the residual stream."""

    def __init__(
        self, config: DecoderConfig, lora: LoraConfig, *, param_dtype: jnp.dtype
    ) -> None:
        c, into, out = config, ("embed", "heads"), ("heads", "embed")

        def projection(name: str, spec: ProjectionSpec) -> Projection:
            adapted = lora if name in lora.targets else None
            return Projection(spec, adapted, bias=c.has_bias(name), param_dtype=param_dtype)

        def norm(size: int) -> RMSNorm:
            return RMSNorm(size, c.rms_norm_eps, param_dtype=param_dtype)

        small = (2 * c.num_layers) ** -0.5  # keeps the residual stream's variance near 1
        width, inner = c.hidden_size, c.intermediate_size
        queries, keys = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
        self.head_dim = c.head_dim
        self.attention_norm = norm(width)
        self.q = projection("q", ProjectionSpec(width, queries, into, c.num_heads))
        self.k = projection("k", ProjectionSpec(width, keys, into, c.num_kv_heads))
        self.v = projection("v", ProjectionSpec(width, keys, into, c.num_kv_heads))
        self.q_norm = norm(c.head_dim) if c.qk_norm else None
        self.k_norm = norm(c.head_dim) if c.qk_norm else None
        self.o = projection("o", ProjectionSpec(queries, width, out, c.num_heads, small))
        self.mlp_norm = norm(width)
        self.gate = projection("gate", ProjectionSpec(width, inner, ("embed", "mlp")))
        self.up = projection("up", ProjectionSpec(width, inner, ("embed", "mlp")))
        self.down = projection(
            "down", ProjectionSpec(inner, width, ("mlp", "embed"), gain=small)
        )

    def __call__(
        self,
        x: jax.Array,
        rotation: attention.Rotation,
        adapter: Adapter,
        look: Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, Any]],
    ) -> tuple[jax.Array, Any]:
        """Apply the layer.

        Args:
            x: The residual stream `[B, T, D]`.
            rotation: Cosine and sine of the tokens' positions (`Decoder.rotation`).
            adapter: How the adapters are used, with a key folded for this layer.
            look: Attention over whatever keys the caller has: called with `q [B, T, N, H]`,
                `k` and `v` `[B, T, K, H]`, rotated, it returns the attended values
                `[B, T, N, H]` and anything to hand back, such as a written KV cache.

        Returns:
            The residual stream after the layer, and what `look` handed back.
        """
        heads = (*x.shape[:2], -1, self.head_dim)
        y = self.attention_norm(x)
        q = self.q(y, adapter.fold(0)).reshape(heads)
        k = self.k(y, adapter.fold(1)).reshape(heads)
        v = self.v(y, adapter.fold(2)).reshape(heads)
        if self.q_norm is not None and self.k_norm is not None:
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


@dataclass(frozen=True)
class _Run:
    """What all layers of one forward pass share."""

    rotation: attention.Rotation
    adapter: Adapter
    layout: RowLayout
    execution: Execution

    def look(self, window: int | jax.Array) -> Callable[..., tuple[jax.Array, None]]:
        """Return attention over the row's own keys, for one layer's window."""

        def attend(q, k, v):
            k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
            how = self.execution.attention
            y = attention.attend_causal(q, k, v, self.layout, window=window, implementation=how)
            return y, None

        return attend


class Decoder(nnx.Module):
    """A causal language model up to its last hidden state; `logits` and `head` do the rest.

    `load_decoder`, `init_decoder` and `abstract_decoder` make one with weights. The
    constructor alone builds the structure: zeros, with the initial distribution and the logical
    axes of each weight as metadata.

    Attributes:
        config: The decoder's shape.
        lora: Shape of the adapters; rank 0 is none.
        adapters: `(name, rank)` of each adapter. Several lie side by side in the rank of
            `lora`, so their ranks sum to it.
        lower: The stack of the layers below the first adapted one; None if there is none.
        layers: The stack of the other layers, or a list of all.
        dtype: Type of activations and products. Norms, softmax and accumulation are f32 always.
        param_dtype: Type of base weights. LoRA weights are f32 always.

    Example:
        >>> import jax.numpy as jnp
        >>> from alignuser_jax.model import DecoderConfig, LoraConfig, init_decoder
        >>> decoder = init_decoder(DecoderConfig(vocab_size=64), LoraConfig(rank=4), seed=0)
        >>> tokens = jnp.array([[5, 6, 7]])
        >>> hidden = decoder(tokens, positions=jnp.arange(3)[None])
        >>> decoder.logits(hidden).shape
        (1, 3, 64)
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
                f"the ranks of the adapters {self.adapters} sum to {total}, but lora has rank "
                f"{self.lora.rank}: give a LoraConfig whose rank is the sum"
            )
        self.dtype, self.param_dtype = jnp.dtype(dtype), jnp.dtype(param_dtype)

        def table() -> nnx.Param:
            zeros = jnp.zeros((config.vocab_size, config.hidden_size), param_dtype)
            std = config.hidden_size**-0.5
            return nnx.Param(zeros, axes=("vocab", "embed"), init=("normal", std))

        def stack(lora: LoraConfig, layers: range) -> Block:
            def block(_: jax.Array) -> Block:
                return Block(config, lora, param_dtype=param_dtype)

            return nnx.vmap(block)(jnp.arange(len(layers)))

        adapted = self.lora.adapted_layers(config.num_layers)
        below = range(adapted.start)
        self.embedding = table()
        self.lower: Block | None = stack(LoraConfig(), below) if below else None
        self.layers: Block | nnx.List = stack(self.lora, adapted)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, param_dtype=param_dtype)
        tied = config.tie_word_embeddings or config.headless
        self.unembedding: nnx.Param | None = None if tied else table()

    def __call__(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        layout: RowLayout = ONE_SEGMENT,
        execution: Execution = Execution(),
        *,
        adapter: int | jax.Array = 1,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """Return the hidden states `[B, T, D]` after the last norm, in the compute type.

        Args:
            tokens: int32 `[B, T]`.
            positions: int32 `[B, T]`, counted from 0 within each segment.
            layout: Segments and lengths of the rows; by default each row is one segment.
            execution: How the pass is computed.
            adapter: Which of `adapters` is used, counted from 1, for all rows or one per row
                `[B]`; 0 is the base model.
            dropout_key: A key turns on the adapters' dropout.
        """
        x = self.below(tokens, positions, layout, execution)
        return self.above(
            x, positions, layout, execution, adapter=adapter, dropout_key=dropout_key
        )

    def below(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        layout: RowLayout = ONE_SEGMENT,
        execution: Execution = Execution(),
    ) -> jax.Array:
        """Return the states `[B, T, D]` that enter the first adapted layer.

        They depend on the frozen weights only. The arguments are those of a call.
        """
        x = self.embedding[...][tokens].astype(self.dtype)
        # First laid out as the table is, then as the batch is: in one step XLA would gather all
        # of the table.
        x = constrain(constrain(x, "data", None, "embed"), "batch", None, None)
        if self.lower is None:
            return x
        run = _Run(self.rotation(positions), Adapter(), layout, execution)
        return self._scan(self.lower, 0, x, run)

    def above(
        self,
        x: jax.Array,
        positions: jax.Array,
        layout: RowLayout = ONE_SEGMENT,
        execution: Execution = Execution(),
        *,
        adapter: int | jax.Array = 1,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """Return the hidden states `[B, T, D]` of what `below` returned.

        The other arguments are those of a call.
        """
        use = self.adapter(adapter, dropout_key)
        run = _Run(self.rotation(positions), use, layout, execution)
        if isinstance(self.layers, Block):
            first = self.lora.adapted_layers(self.config.num_layers).start
            return self.norm(self._scan(self.layers, first, x, run))
        windows = self._windows(execution)
        for layer, block in enumerate(self.blocks()):
            x, _ = block(x, run.rotation, use.fold(layer), run.look(windows[layer]))
        return self.norm(x)

    def _windows(self, execution: Execution) -> list[int]:
        """Return how many tokens each layer looks back, itself included."""
        reach = execution.reach or EVERYTHING
        return [min(w or EVERYTHING, reach) for w in self.config.windows()]

    def _scan(self, stack: Block, first: int, x: jax.Array, run: _Run) -> jax.Array:
        """Apply the layers of a stack, of which the lowest is the decoder's layer `first`."""
        graph, weights = nnx.split(stack)
        count = len(jax.tree.leaves(weights)[0])
        windows = self._windows(run.execution)[first : first + count]
        mixed = len(set(windows)) > 1  # else static, which faster attention needs

        def body(x, xs):
            weights, layer, window = xs
            look = run.look(window if mixed else windows[0])
            return nnx.merge(graph, weights)(x, run.rotation, run.adapter.fold(layer), look)

        remat = run.execution.remat
        if remat != "none":
            body = jax.checkpoint(body, prevent_cse=False, policy=REMAT[remat])
        xs = (weights, first + jnp.arange(count), jnp.asarray(windows))
        x, _ = jax.lax.scan(body, x, xs, unroll=run.execution.unroll)
        return x

    def rotation(self, positions: jax.Array) -> attention.Rotation:
        """Return cosine and sine of the rotary embedding at `positions [B, T]`."""
        c = self.config
        frequencies = attention.rotary_frequencies(c.head_dim, c.rope_theta, c.rope_scaling)
        return attention.rotation(positions, frequencies)

    def adapter(self, which: int | jax.Array, key: jax.Array | None = None) -> Adapter:
        """Return how a call uses the adapters.

        Args:
            which: Number of the adapter, from 1; 0 is none. One for all rows, or one per row
                `[B]`.
            key: A key turns on dropout.

        Raises:
            ValueError: If `which` is an int that is no adapter's number.
        """
        if isinstance(which, int) and not 0 <= which <= max(len(self.adapters), 1):
            raise ValueError(
                f"adapter={which}: expected 0 (the base) to {len(self.adapters)}; the "
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
        """Yield the layers one by one, lowest first, whether they are stacked or a list."""
        if not isinstance(self.layers, Block):
            yield from self.layers
            return
        for stack in (self.lower, self.layers):
            if stack is not None:
                graph, weights = nnx.split(stack)
                for i in range(len(jax.tree.leaves(weights)[0])):
                    yield nnx.merge(graph, jax.tree.map(lambda a, i=i: a[i], weights))

    def head(self) -> jax.Array:
        """Return the matrix `[D, V]` from hidden states to logits, in the compute type.

        Raises:
            ValueError: If this is an embedding model, which has no head.
        """
        if self.config.headless:
            raise ValueError(
                "this checkpoint is an embedding model without a head: it gives hidden states "
                "and embeddings, but no logits"
            )
        table = self.embedding if self.unembedding is None else self.unembedding
        return table[...].T.astype(self.dtype)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Return f32 logits `[B, T, V]` of hidden states `[B, T, D]`."""
        return contract("btd,dv->btv", hidden, self.head(), jnp.float32)
