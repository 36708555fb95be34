"""Weights from and to a Hugging Face directory (`config.json` and safetensors), without torch.

One table drives both directions. Layers are stacked here and separate there, linear maps are
`[in, out]` here and `[out, in]` there. Reading takes one block of one tensor at a time.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, Sharding, SingleDeviceSharding
from safetensors import safe_open
from safetensors.numpy import save_file

from alignuser_jax.model.config import DecoderConfig, LoraConfig
from alignuser_jax.model.decoder import Block, Decoder, abstract_decoder, draw, merge, split
from alignuser_jax.parallel import shardings

INDEX = "model.safetensors.index.json"
TABLE: tuple[tuple[str, str, bool], ...] = (
    ("embedding", "model.embed_tokens.weight", False),
    ("unembedding", "lm_head.weight", False),
    ("norm.scale", "model.norm.weight", False),
    ("layers.attention_norm.scale", "model.layers.{i}.input_layernorm.weight", False),
    ("layers.q.kernel", "model.layers.{i}.self_attn.q_proj.weight", True),
    ("layers.k.kernel", "model.layers.{i}.self_attn.k_proj.weight", True),
    ("layers.v.kernel", "model.layers.{i}.self_attn.v_proj.weight", True),
    ("layers.q_norm.scale", "model.layers.{i}.self_attn.q_norm.weight", False),
    ("layers.k_norm.scale", "model.layers.{i}.self_attn.k_norm.weight", False),
    ("layers.o.kernel", "model.layers.{i}.self_attn.o_proj.weight", True),
    ("layers.mlp_norm.scale", "model.layers.{i}.post_attention_layernorm.weight", False),
    ("layers.gate.kernel", "model.layers.{i}.mlp.gate_proj.weight", True),
    ("layers.up.kernel", "model.layers.{i}.mlp.up_proj.weight", True),
    ("layers.down.kernel", "model.layers.{i}.mlp.down_proj.weight", True),
)
"""(path in the base state, name in the file with `{i}` the layer, transposed there)."""


def load_pretrained(
    directory: str | Path,
    lora: LoraConfig | None = None,
    *,
    seed: int = 0,
    dtype: jnp.dtype = jnp.float32,
    param_dtype: jnp.dtype | None = None,
    mesh: Mesh | None = None,
) -> Decoder:
    """The decoder in `directory`, with fresh adapters (`B` = 0) where `lora` has a rank.

    Args:
      param_dtype: of base weights; default `dtype`. Files in bf16, f16 or f32 are converted.
      mesh: lays each weight out by its logical axes; every process reads its own part only.

    Raises `FileNotFoundError` where there is nothing to read, and `ValueError` naming every
    tensor that is missing, unexpected or of another shape.
    """
    directory = Path(directory)
    config = DecoderConfig.from_hf(directory)
    param_dtype = dtype if param_dtype is None else param_dtype
    abstract = abstract_decoder(config, lora, dtype=dtype, param_dtype=param_dtype)
    graphdef, adapters, base = split(abstract)
    local = SingleDeviceSharding(jax.local_devices()[0])
    layout = shardings(base, mesh) if mesh else jax.tree.map(lambda _: local, base)
    with contextlib.ExitStack() as files:
        tensors = _open(directory, files)
        _check(directory, tensors, config, base)
        for ours, template, transposed in TABLE:
            node = _find(base, ours)
            if node is not None:
                want, where = node.get_value(), _find(layout, ours).get_value()
                node.set_value(_read(tensors, template, transposed, want, where))

    return merge(graphdef, draw(adapters, seed, mesh), base)


def save_pretrained(
    decoder: Decoder, directory: str | Path, shard_bytes: int = 5 << 30
) -> None:
    """Writes what `load_pretrained` and `transformers`' `AutoModelForCausalLM` read.

    Base weights only, in their own type; a decoder with adapters or with a list of layers is
    refused. More than `shard_bytes` go into several files and an index.
    """
    if decoder.lora.rank or not isinstance(decoder.layers, Block):
        raise ValueError(
            f"a checkpoint holds a plain stacked decoder, but this one has adapters of rank "
            f"{decoder.lora.rank} and layers as {type(decoder.layers).__name__}; save "
            "merge_lora(decoder) to keep what its adapters learned, before unstack"
        )
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    base = split(decoder)[2]
    shards: list[dict[str, np.ndarray]] = [{}]
    size = 0
    for ours, template, transposed in TABLE:
        node = _find(base, ours)
        if node is None:
            continue
        stacked = np.asarray(node.get_value())
        names = _names(template, decoder.config.num_layers)
        for name, tensor in zip(
            names, stacked if "{i}" in template else [stacked], strict=True
        ):
            if size and size + tensor.nbytes > shard_bytes:
                shards.append({})
                size = 0
            shards[-1][name] = np.ascontiguousarray(tensor.T if transposed else tensor)
            size += tensor.nbytes
    weight_map = {}
    for n, shard in enumerate(shards, start=1):
        file = f"model-{n:05d}-of-{len(shards):05d}.safetensors"
        file = file if len(shards) > 1 else "model.safetensors"
        partial = directory / (file + ".partial")  # never torn at its own name
        save_file(shard, partial, {"format": "pt"})
        partial.replace(directory / file)
        weight_map |= dict.fromkeys(shard, file)
    if len(shards) > 1:
        total = sum(tensor.nbytes for shard in shards for tensor in shard.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    config = decoder.config.to_hf() | {"dtype": decoder.param_dtype.name}
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def _names(template: str, layers: int) -> list[str]:
    return [template.format(i=i) for i in range(layers if "{i}" in template else 1)]


def _find(state: nnx.State, path: str):
    """The variable at a dotted path; None where the state lacks it (a tied head)."""
    for part in path.split("."):
        if part not in state:
            return None
        state = state[part]
    return state


def _open(directory: Path, files: contextlib.ExitStack) -> dict[str, Any]:
    """Tensor name -> lazy slice, over one file or all files of an index."""
    if (directory / INDEX).is_file():
        weight_map = json.loads((directory / INDEX).read_text())["weight_map"]
        paths = [directory / name for name in sorted(set(weight_map.values()))]
    else:
        paths = [directory / "model.safetensors"]
    absent = [path.name for path in paths if not path.is_file()]
    if absent:
        raise FileNotFoundError(
            f"{directory} lacks {', '.join(absent)}: expected model.safetensors, or "
            f"{INDEX} and every file that it names"
        )
    tensors = {}
    for path in paths:
        file = files.enter_context(safe_open(path, framework="numpy"))
        tensors |= {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
    return tensors


def _check(directory: Path, tensors: dict[str, Any], config: DecoderConfig, base: nnx.State):
    expected = {}
    for ours, template, transposed in TABLE:
        node = _find(base, ours)
        if node is not None:
            shape = node.get_value().shape["{i}" in template :]
            shape = list(shape[::-1] if transposed else shape)
            expected |= dict.fromkeys(_names(template, config.num_layers), shape)
    ignored = {"lm_head.weight"} if config.tie_word_embeddings else set()  # a copy of the table
    found = {name: list(tensor.get_shape()) for name, tensor in tensors.items()}
    problems = [f"missing {name}" for name in expected if name not in found]
    problems += [
        f"unexpected {name}" for name in found if name not in expected.keys() | ignored
    ]
    problems += [
        f"{name} has shape {found[name]}, expected {shape}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    if problems:
        raise ValueError(
            f"the tensors in {directory} do not fit its config.json: " + "; ".join(problems)
        )


def _read(
    tensors: dict[str, Any],
    template: str,
    transposed: bool,
    want: jax.ShapeDtypeStruct,
    where: Sharding,
) -> jax.Array:
    """One stacked weight, each device's block read from the files by itself."""

    def block(index: tuple[slice, ...]) -> np.ndarray:
        if "{i}" not in template:
            return _block(tensors[template], index, transposed, want.dtype)
        layers = range(want.shape[0])[index[0]]
        names = [template.format(i=i) for i in layers]
        return np.stack(
            [_block(tensors[name], index[1:], transposed, want.dtype) for name in names]
        )

    return jax.make_array_from_callback(want.shape, where, block)


def _block(tensor: Any, index: tuple[slice, ...], transposed: bool, dtype) -> np.ndarray:
    part = tensor[tuple(index[::-1] if transposed else index)]
    return (part.T if transposed else part).astype(dtype)
