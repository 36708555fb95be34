"""Read and write weights as a Hugging Face directory, without torch.

One table drives both directions. Layers are stacked here and separate there; linear maps are
`[in, out]` here and `[out, in]` there. Reading takes one device's block of one stacked tensor
at a time: that is all the host memory it needs beside the result, and each byte is read once.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, Sharding, SingleDeviceSharding

from alignuser_jax.durable.whole import write_whole
from alignuser_jax.model.config import PROJECTIONS, DecoderConfig, LoraConfig
from alignuser_jax.model.decoder import Block, Decoder
from alignuser_jax.model.files.hf_config import CONFIG, GENERATION, read_config, to_hf
from alignuser_jax.model.files.peft import Arrays, join_adapters, read_adapter
from alignuser_jax.model.files.tensors import (
    FLOATS,
    INDEX,
    WHOLE,
    Tensor,
    find_tensors,
    listed,
    write_tensors,
)
from alignuser_jax.model.states import abstract_decoder, draw_weights, merge, split, with_arrays
from alignuser_jax.parallel import shardings

_NORMS = {
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
}
MODULES = {
    name: f"{'self_attn' if name in 'qkvo' else 'mlp'}.{name}_proj" for name in PROJECTIONS
}
"""Our projection to Hugging Face's module within a layer."""

TABLE: tuple[tuple[str, str, bool], ...] = (
    ("embedding", "model.embed_tokens.weight", False),
    ("unembedding", "lm_head.weight", False),
    ("norm.scale", "model.norm.weight", False),
    *(
        (f"layers.{ours}.scale", f"model.layers.{{i}}.{theirs}.weight", False)
        for ours, theirs in _NORMS.items()
    ),
    *(
        (f"layers.{ours}.kernel", f"model.layers.{{i}}.{theirs}.weight", True)
        for ours, theirs in MODULES.items()
    ),
    *(
        (f"layers.{ours}.bias", f"model.layers.{{i}}.{theirs}.bias", False)
        for ours, theirs in MODULES.items()
    ),
)
"""Path in the base state, name in the file (`{i}`: the layer), whether transposed there."""

TILE = 128
_IGNORED = re.compile(r"(model\.)?(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")


def load_decoder(
    directory: str | Path,
    lora: LoraConfig | None = None,
    *,
    adapters: Mapping[str, str | Path] | None = None,
    seed: int = 0,
    dtype: jnp.dtype = jnp.float32,
    param_dtype: jnp.dtype | None = None,
    mesh: Mesh | None = None,
) -> Decoder:
    """Load the decoder in a Hugging Face directory.

    Args:
        directory: The model directory.
        lora: Shape of fresh adapters (`B` = 0); None or rank 0 adds none.
        adapters: Trained adapters, name to PEFT directory, which lie side by side. Give either
            fresh adapters or trained ones.
        seed: Names the random weights of fresh adapters.
        dtype: Type of activations.
        param_dtype: Type of base weights, default `dtype`. Files in bf16, f16 or f32 are
            converted.
        mesh: Lays each weight out by its logical axes; every process reads its own part only.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a tensor is missing, unexpected, truncated, of another shape or not of
            floats; names all of them. Both are raised before anything is allocated.

    Example:
        >>> decoder = load_decoder("models/qwen3-0.6b", LoraConfig(rank=16))  # doctest: +SKIP
    """
    if lora is not None and adapters:
        raise ValueError("give fresh adapters (lora) or trained ones (adapters), not both")
    directory = Path(directory)
    config, tensors = checked_tensors(directory)
    ranks: tuple[tuple[str, int], ...] | None = None
    learned: Arrays = {}
    if adapters:
        read = {name: read_adapter(path, config) for name, path in adapters.items()}
        lora, ranks, learned = join_adapters(read)
    param_dtype = dtype if param_dtype is None else param_dtype
    abstract = abstract_decoder(
        config, lora, adapters=ranks, dtype=dtype, param_dtype=param_dtype
    )
    graphdef, low_rank, base = split(abstract)
    local = SingleDeviceSharding(jax.local_devices()[0])
    layout = shardings(base, mesh) if mesh else jax.tree.map(lambda _: local, base)
    for ours, template, transposed in TABLE:
        names = iter(_names(template, config.num_layers))
        for path in _stacks(ours):
            node = find(base, path)
            if node is not None:
                stacked = "{i}" in template
                want, where = node.get_value(), find(layout, path).get_value()
                count = want.shape[0] if stacked else 1
                parts = [tensors[name] for name in islice(names, count)]
                node.set_value(_place(parts, stacked, transposed, want, where))
    if not adapters:
        return merge(graphdef, draw_weights(low_rank, seed, mesh), base)
    layout = shardings(low_rank, mesh) if mesh else jax.tree.map(lambda _: local, low_rank)
    placed = {
        ours: jax.device_put(values, find(layout, ours).get_value())
        for ours, values in learned.items()
    }
    return merge(graphdef, with_arrays(low_rank, placed), base)


def checked_tensors(directory: Path) -> tuple[DecoderConfig, dict[str, Tensor]]:
    """Return config and tensors of a model directory, checked; only headers are read.

    The tensors have the names of `TABLE`. Errors are those of `load_decoder`.
    """
    config = read_config(directory)
    problems: list[str] = []
    tensors = find_tensors(directory, problems)
    if config.num_layers > len(tensors):
        few = f"num_hidden_layers={config.num_layers}, but {len(tensors)} tensors in all"
        raise ValueError(_refusal(directory, [few, *problems]))
    config, tensors = _with_full_names(config, tensors)
    problems += _misfits(tensors, config, split(abstract_decoder(config))[2])
    if problems:
        raise ValueError(_refusal(directory, problems))
    return config, tensors


def save_pretrained(
    decoder: Decoder, directory: str | Path, shard_bytes: int = 5 << 30
) -> None:
    """Write a directory that `load_decoder` and `transformers` read.

    Only base weights are written, in their own type.

    Args:
        decoder: A stacked decoder without adapters.
        directory: The directory; it is created.
        shard_bytes: More bytes than this go into several files and an index.

    Raises:
        ValueError: If the decoder has adapters, or a list of layers.
    """
    if decoder.lora.rank or not isinstance(decoder.layers, Block):
        raise ValueError(
            f"a checkpoint holds a plain stacked decoder, but this one has adapters of rank "
            f"{decoder.lora.rank} and layers as {type(decoder.layers).__name__}; save "
            "merge_lora(decoder) to keep what its adapters learned, before unstack"
        )
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    shards: list[dict[str, np.ndarray]] = [{}]
    size = 0
    for name, tensor in _tensors(decoder):
        if size and size + tensor.nbytes > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    weight_map: dict[str, str] = {}
    for n, shard in enumerate(shards, start=1):
        file = f"model-{n:05d}-of-{len(shards):05d}.safetensors" if len(shards) > 1 else WHOLE
        write_tensors(directory / file, shard)
        weight_map |= dict.fromkeys(shard, file)
    if len(shards) > 1:
        total = sum(tensor.nbytes for shard in shards for tensor in shard.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_whole(directory / INDEX, json.dumps(index, indent=2) + "\n")
    if ends := list(decoder.config.eos_token_ids):
        write_whole(directory / GENERATION, json.dumps({"eos_token_id": ends}) + "\n")
    config = to_hf(decoder.config) | {"dtype": decoder.param_dtype.name}
    write_whole(directory / CONFIG, json.dumps(config, indent=2) + "\n")


def _tensors(decoder: Decoder) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the base weights as the file has them."""
    base = split(decoder)[2]
    for ours, template, transposed in TABLE:
        node = find(base, ours)
        if node is not None:
            stacked = np.asarray(node.get_value())
            parts = stacked if "{i}" in template else [stacked]
            for name, tensor in zip(
                _names(template, decoder.config.num_layers), parts, strict=True
            ):
                yield name, np.ascontiguousarray(tensor.T if transposed else tensor)


def _names(template: str, layers: int) -> list[str]:
    return [template.format(i=i) for i in range(layers if "{i}" in template else 1)]


def _stacks(path: str) -> tuple[str, ...]:
    """Return the paths that a path of `TABLE` can have, lower layers first."""
    if not path.startswith("layers."):
        return (path,)
    return (path.replace("layers", "lower", 1), path)


def find(state: nnx.State, path: str) -> Any:
    """Return the variable at a dotted path; None if the state lacks it (a tied head)."""
    node: Any = state
    for part in path.split("."):
        if part not in node:
            return None
        node = node[part]
    return node


def _with_full_names(
    config: DecoderConfig, tensors: dict[str, Tensor]
) -> tuple[DecoderConfig, dict[str, Tensor]]:
    """Add the prefix `model.`, which a bare backbone (Qwen3-Embedding) lacks."""
    if "model.embed_tokens.weight" in tensors or "embed_tokens.weight" not in tensors:
        return config, tensors
    full = {
        name if name == "lm_head.weight" else f"model.{name}": t for name, t in tensors.items()
    }
    if "lm_head.weight" not in full:
        config = dataclasses.replace(config, headless=True)
    return config, full


def _refusal(directory: Path, problems: list[str]) -> str:
    return listed(f"the tensors in {directory} do not fit its {CONFIG}", problems)


def _misfits(
    tensors: Mapping[str, Tensor], config: DecoderConfig, base: nnx.State
) -> list[str]:
    """Say which tensors are missing, unexpected, of another shape or not of floats."""
    expected: dict[str, tuple[int, ...]] = {}
    for ours, template, transposed in TABLE:
        node = find(base, ours)
        if node is not None:
            shape = node.get_value().shape["{i}" in template :]
            shape = tuple(shape[::-1] if transposed else shape)
            expected |= dict.fromkeys(_names(template, config.num_layers), shape)
    without_head = config.tie_word_embeddings or config.headless
    ignored = {"lm_head.weight"} if without_head else set()  # a copy of the table
    problems = [f"missing {name}" for name in expected if name not in tensors]
    for name, tensor in tensors.items():
        if name not in expected:
            if name not in ignored and not _IGNORED.fullmatch(name):
                problems.append(f"unexpected {name}")
            continue
        if tensor.shape != expected[name]:
            problems.append(
                f"{name} has shape {list(tensor.shape)}, expected {list(expected[name])}"
            )
        if tensor.dtype not in FLOATS:
            problems.append(f"{name} is {tensor.dtype}, expected one of {', '.join(FLOATS)}")
    return problems


def _place(
    parts: list[Tensor],
    stacked: bool,
    transposed: bool,
    want: jax.ShapeDtypeStruct,
    where: Sharding,
) -> jax.Array:
    """Return one (stacked) weight; each block is read once, for all devices that hold it."""
    devices: dict[tuple, list] = {}
    for device, index in where.addressable_devices_indices_map(want.shape).items():
        assert index is not None  # the device is addressable
        extents = tuple(s.indices(n) for s, n in zip(index, want.shape, strict=True))
        devices.setdefault(extents, []).append(device)
    arrays = []
    for extents, holders in devices.items():
        index = tuple(slice(*extent) for extent in extents)
        block = np.empty([len(range(*extent)) for extent in extents], want.dtype)
        rows = block if stacked else block[None]
        for row, part in zip(rows, parts[index[0]] if stacked else parts, strict=True):
            inner = index[1:] if stacked else index
            for at, values in part.pieces(inner[::-1] if transposed else inner):
                into = row[:, at] if transposed else row[at]
                _copy(into, values.T if transposed else values)
        arrays += [jax.device_put(block, device) for device in holders]
        jax.block_until_ready(arrays)  # so that one block at a time is in host memory
    return jax.make_array_from_single_device_arrays(want.shape, where, arrays)


def _copy(into: np.ndarray, values: np.ndarray) -> None:
    """Do `into[...] = values` in tiles that stay in cache: four times faster if transposed."""
    if into.dtype == values.dtype and into.dtype.itemsize == 2:  # NumPy is slow with bfloat16
        into, values = into.view(np.uint16), values.view(np.uint16)
    if into.ndim < 2 or values.flags.c_contiguous:
        np.copyto(into, values, casting="unsafe")
        return
    for i in range(0, into.shape[0], TILE):
        for j in range(0, into.shape[1], TILE):
            tile = into[i : i + TILE, j : j + TILE]
            np.copyto(tile, values[i : i + TILE, j : j + TILE], casting="unsafe")
