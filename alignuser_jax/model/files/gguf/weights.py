"""Name the tensors of a GGUF model as Hugging Face does, and undo llama.cpp's rotary layout."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import ml_dtypes
import numpy as np

from alignuser_jax.model.config import DecoderConfig
from alignuser_jax.model.files.gguf.header import GgufError
from alignuser_jax.model.files.gguf.reading import GgufModel, GgufTensor

WEIGHT_TYPES = {"bfloat16": np.dtype(ml_dtypes.bfloat16), "float32": np.dtype("f4")}
"""The types that imported weights may have."""

_WHOLE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_OF_LAYER = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_LAYER_NAME = re.compile(r"blk\.(?P<layer>\d+)\.(?P<module>\w+)\.(?P<part>weight|bias)")
_IGNORED = {"rope_freqs.weight"}
"""Read with the shape, and no weight of the model."""


def named_tensors(
    model: GgufModel, config: DecoderConfig
) -> dict[str, tuple[GgufTensor, Callable[[np.ndarray], np.ndarray]]]:
    """Return Hugging Face's name of each tensor to the tensor and what its rows must undergo.

    Raises:
        GgufError: If a tensor has a name that the decoder does not know.
    """
    named: dict[str, tuple[GgufTensor, Callable[[np.ndarray], np.ndarray]]] = {}
    unknown = []
    for name, tensor in model.tensors.items():
        if name in _IGNORED:
            continue
        match = _LAYER_NAME.fullmatch(name)
        if name in _WHOLE:
            named[_WHOLE[name]] = (tensor, _as_it_is)
        elif match and match["module"] in _OF_LAYER:
            module, part = match["module"], match["part"]
            theirs = f"model.layers.{int(match['layer'])}.{_OF_LAYER[module]}.{part}"
            heads = {"attn_q": config.num_heads, "attn_k": config.num_kv_heads}.get(module)
            rotated = heads is not None and config.model_type == "llama"
            named[theirs] = (tensor, _halves_of(heads) if heads and rotated else _as_it_is)
        else:
            unknown.append(name)
    if unknown:
        raise GgufError(
            f"{model.path} holds {len(unknown)} tensors that no {config.model_type} has: "
            f"{', '.join(unknown[:5])}"
        )
    return named


def read_as(
    tensor: GgufTensor, undo: Callable[[np.ndarray], np.ndarray], dtype: np.dtype
) -> np.ndarray:
    """Return a tensor in another type and Hugging Face's order of rows, block by block.

    The float32 of one block and the result are all the memory it needs.
    """
    values = np.empty((int(np.prod(tensor.shape[:-1])), tensor.shape[-1]), dtype)
    for rows, block in tensor.blocks():
        if not np.isfinite(block).all():
            raise GgufError(f"the tensor {tensor.name!r} holds NaN or infinite numbers")
        values[rows] = block.astype(dtype)
    return undo(values.reshape(tensor.shape))


def _as_it_is(values: np.ndarray) -> np.ndarray:
    return values


def _halves_of(heads: int) -> Callable[[np.ndarray], np.ndarray]:
    """Undo llama.cpp's layout, which puts the two numbers that rotate together side by side.

    Hugging Face has the first halves of all pairs of a head before all second halves.
    """

    def undo(values: np.ndarray) -> np.ndarray:
        if values.shape[0] % (2 * heads):
            raise GgufError(f"{values.shape[0]} rows are no {heads} heads of pairs")
        pairs = values.reshape(heads, values.shape[0] // heads // 2, 2, *values.shape[1:])
        return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(values.shape)

    return undo


def shards_of(
    model: GgufModel, config: DecoderConfig, dtype: str, shard_bytes: int
) -> Iterator[list[str]]:
    """Yield lists of names whose tensors make one file of at most `shard_bytes` bytes.

    A tensor that is larger alone makes a file of its own.
    """
    width = WEIGHT_TYPES[dtype].itemsize
    names: list[str] = []
    size = 0
    for name, (tensor, _) in named_tensors(model, config).items():
        nbytes = int(np.prod(tensor.shape, dtype=np.int64)) * width
        if names and size + nbytes > shard_bytes:
            yield names
            names, size = [], 0
        names.append(name)
        size += nbytes
    yield names
