"""A decoder's weights as trees: draw, describe, split, merge, unstack, fold in adapters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from alignuser_jax.model.config import DecoderConfig, LoraConfig
from alignuser_jax.model.decoder import Block, Decoder
from alignuser_jax.model.lora import Projection
from alignuser_jax.parallel import shardings
from alignuser_jax.randomness import named_generator


def split(decoder: Decoder) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """Return structure, LoRA weights and base weights; do it once, the rest is plain JAX."""
    parts: Any = nnx.split(decoder, nnx.LoRAParam, ...)
    graphdef, lora, base = parts
    return graphdef, lora, base


def merge(graphdef: nnx.GraphDef, lora: nnx.State, base: nnx.State) -> Decoder:
    """Return the decoder of `split`'s three parts; cheap, meant to be used in `jax.jit`."""
    return nnx.merge(graphdef, lora, base)


def named_arrays(state: nnx.State) -> dict[str, np.ndarray]:
    """Return every weight in a part of `split` as a host array, by dotted path."""
    leaves = jax.tree.leaves_with_path(state, is_leaf=lambda x: isinstance(x, nnx.Variable))
    return {
        ".".join(str(part.key) for part in path): np.asarray(leaf.get_value())
        for path, leaf in leaves
    }


def with_arrays(state: nnx.State, arrays: Mapping[str, jax.Array]) -> nnx.State:
    """Return a part of `split` with the weights of `named_arrays` in place of its own."""

    def one(path, weight):
        return weight.replace(arrays[".".join(str(part.key) for part in path)])

    return jax.tree.map_with_path(one, state, is_leaf=lambda x: isinstance(x, nnx.Variable))


def abstract_decoder(
    config: DecoderConfig,
    lora: LoraConfig | None = None,
    *,
    adapters: tuple[tuple[str, int], ...] | None = None,
    dtype: jnp.dtype = jnp.float32,
    param_dtype: jnp.dtype = jnp.float32,
) -> Decoder:
    """Return a decoder of `ShapeDtypeStruct`s: structure and shapes, but no memory.

    The arguments are those of `Decoder`.
    """
    return nnx.eval_shape(
        lambda: Decoder(config, lora, adapters=adapters, dtype=dtype, param_dtype=param_dtype)
    )


def init_decoder(
    config: DecoderConfig,
    lora: LoraConfig | None = None,
    seed: int = 0,
    dtype: jnp.dtype = jnp.float32,
    param_dtype: jnp.dtype = jnp.float32,
) -> Decoder:
    """Return a random decoder; one seed gives the same base with and without adapters."""
    abstract = abstract_decoder(config, lora, dtype=dtype, param_dtype=param_dtype)
    return nnx.merge(nnx.graphdef(abstract), draw_weights(nnx.state(abstract), seed))


def draw_weights(abstract: nnx.State, seed: int, mesh: Mesh | None = None) -> nnx.State:
    """Return random weights, each from its own distribution and its own named stream.

    NumPy draws them: the numbers are the same on every machine, and nothing is compiled. A
    layer has the same numbers whether all layers are one stack or the lower ones are another.

    Args:
        abstract: State of `ShapeDtypeStruct`s with the metadata of `Decoder`.
        seed: Names the streams.
        mesh: Lays the weights out by their logical axes; None for one device.
    """
    layout = shardings(abstract, mesh) if mesh else abstract

    def is_variable(x: Any) -> bool:
        return isinstance(x, nnx.Variable)

    def named(path: tuple[Any, ...]) -> str:
        return ".".join(str(part.key) for part in path)

    below = {
        named(path).replace("lower", "layers", 1): len(weight.get_value())
        for path, weight in jax.tree.leaves_with_path(abstract, is_leaf=is_variable)
        if named(path).startswith("lower.")
    }

    def one(path: tuple[Any, ...], weight: nnx.Variable, where: nnx.Variable) -> nnx.Variable:
        shape, dtype = weight.get_value().shape, weight.get_value().dtype
        kind, size = weight.get_metadata("init")
        name = named(path)
        before = below.get(name, 0)  # layers of the same stream that lie in the lower stack
        shape = (before + shape[0], *shape[1:])
        random = named_generator("weights", seed, name.replace("lower.", "layers.", 1))
        if kind == "normal":
            values = random.standard_normal(shape, np.float32) * np.float32(size)
        elif kind == "uniform":
            values = (random.random(shape, np.float32) * 2 - 1) * np.float32(size)
        else:
            values = np.full(shape, size, np.float32)
        values = values[before:].astype(dtype)
        return weight.replace(
            jax.device_put(values, where.get_value()) if mesh else jnp.asarray(values)
        )

    return jax.tree.map_with_path(one, abstract, layout, is_leaf=is_variable)


def unstack(decoder: Decoder) -> Decoder:
    """Return the decoder with a list of layers, each with its own arrays, for decoding."""
    if not isinstance(decoder.layers, Block):
        return decoder
    result = nnx.merge(*nnx.split(decoder))
    result.layers, result.lower = nnx.List(decoder.blocks()), None
    return result


def merge_lora(decoder: Decoder) -> Decoder:
    """Return the decoder of rank 0 that computes the same: kernels become `W + scale * A B`."""
    if not isinstance(decoder.layers, Block):
        raise ValueError("merge_lora needs stacked layers: call it before unstack")
    result = abstract_decoder(
        decoder.config, dtype=decoder.dtype, param_dtype=decoder.param_dtype
    )
    base = split(decoder)[2]
    for name, block in nnx.iter_modules(decoder):
        if isinstance(block, Projection):
            node: Any = base
            for part in name:
                node = node[part]
            node["kernel"] = node["kernel"].replace(block.merged_kernel())
    if decoder.lower is not None:  # the plain decoder has one stack of all layers
        lower = base.pop("lower")
        base["layers"] = jax.tree.map(
            lambda a, b: jnp.concatenate([a, b]), lower, base["layers"]
        )
    return nnx.merge(nnx.graphdef(result), base)


def count_parameters(state: object) -> int:
    """Return how many numbers a decoder or a state holds, abstract or not."""
    leaves = jax.tree.leaves(nnx.state(state) if isinstance(state, nnx.Module) else state)
    return sum(leaf.size for leaf in leaves)
