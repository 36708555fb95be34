"""Read a decoder's shape from the metadata of a GGUF file."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from alignuser_jax.model.config import DecoderConfig, RopeScaling
from alignuser_jax.model.files.gguf.header import GgufError
from alignuser_jax.model.files.gguf.reading import GgufModel

ARCHITECTURES = ("llama", "qwen2", "qwen3")

LLAMA_3_ROPE = RopeScaling(
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=8192,
)
"""What Llama 3.1 has (its config.json; Llama 3.2 has another factor).

A GGUF file keeps only the factor of each frequency.
"""

_UNREAD = {
    "expert_count": 0,
    "logit_scale": 0.0,
    "residual_scale": 0.0,
    "embedding_scale": 0.0,
    "attention.scale": 0.0,
    "attn_logit_softcapping": 0.0,
    "final_logit_softcapping": 0.0,
    "attention.clamp_kqv": 0.0,
    "attention.max_alibi_bias": 0.0,
}
"""Settings that change the computation and that the decoder does not have, and their "off"."""

_END_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")


def read_shape(model: GgufModel) -> DecoderConfig:
    """Return the shape of the decoder in a GGUF model.

    Raises:
        GgufError: If the architecture, or a setting of it, is one that the decoder lacks; names
            it.
    """
    family = model.value("general.architecture", str)
    if family not in ARCHITECTURES:
        raise GgufError(
            f"{model.path} holds the architecture {family!r}: "
            f"{', '.join(ARCHITECTURES)} are read"
        )
    _refuse_unread(model, family)
    hidden = _size(model, f"{family}.embedding_length")
    heads = _uniform(model, f"{family}.attention.head_count")
    head_dim = _head_dim(model, family, hidden, heads)
    layers = _size(model, f"{family}.block_count")
    window = model.value(f"{family}.attention.sliding_window", int, 0)
    if window:
        raise GgufError(
            f"{model.path} has a sliding window of {window} tokens, and does not say in which "
            "layers: give the Hugging Face directory of this model instead"
        )
    tensors = model.tensors
    if "token_embd.weight" not in tensors:
        raise GgufError(f"{model.path} lacks the tensor token_embd.weight")
    vocabulary = tensors["token_embd.weight"].shape[0]
    try:
        return DecoderConfig(
            vocab_size=vocabulary,
            hidden_size=hidden,
            intermediate_size=_uniform(model, f"{family}.feed_forward_length"),
            num_layers=layers,
            num_heads=heads,
            num_kv_heads=_uniform(model, f"{family}.attention.head_count_kv", heads),
            head_dim=head_dim,
            rope_theta=_decimal(model.value(f"{family}.rope.freq_base", float, 10_000.0)),
            rms_norm_eps=_decimal(
                model.value(f"{family}.attention.layer_norm_rms_epsilon", float)
            ),
            tie_word_embeddings="output.weight" not in tensors,
            max_position_embeddings=_size(model, f"{family}.context_length"),
            model_type=family,
            attention_bias=family != "qwen2" and "blk.0.attn_output.bias" in tensors,
            mlp_bias=family == "llama" and "blk.0.ffn_gate.bias" in tensors,
            rope_scaling=_rope_scaling(model, family, head_dim),
            eos_token_ids=_ends(model, vocabulary),
        )
    except GgufError:
        raise
    except ValueError as error:
        raise GgufError(f"{model.path} is no decoder that can be computed: {error}") from error


def _refuse_unread(model: GgufModel, family: str) -> None:
    for name, off in _UNREAD.items():
        key = f"{family}.{name}"
        if model.has(key) and model.value(key, type(off)) != off:
            value = model.value(key, type(off))
            raise GgufError(
                f"{model.path} has {key}={value}, which the decoder does not compute"
            )
    kind = model.value(f"{family}.rope.scaling.type", str, "none")
    factor = model.value(f"{family}.rope.scaling.factor", float, 1.0)
    if kind not in ("none", "") and factor != 1.0:
        raise GgufError(
            f"{model.path} has rope scaling {kind!r} by {factor}: only Llama 3's is computed"
        )


def _size(model: GgufModel, key: str) -> int:
    size = model.value(key, int)
    if size < 1:
        raise GgufError(f"{model.path}: {key} is {size}, expected at least 1")
    return size


def _uniform(model: GgufModel, key: str, default: int | None = None) -> int:
    """A size that files may also give layer by layer; all layers must agree."""
    if not model.has(key) and default is not None:
        return default
    value: Any = model.value(key, object)
    sizes = value if isinstance(value, list) else [value]
    first = sizes[0] if sizes else None
    if type(first) is not int or first < 1 or any(size != first for size in sizes):
        raise GgufError(
            f"{model.path}: {key} is {value!r:.80}, expected one size for all layers"
        )
    return first


def _head_dim(model: GgufModel, family: str, hidden: int, heads: int) -> int:
    stated = {
        model.value(f"{family}.{name}", int)
        for name in ("attention.key_length", "attention.value_length", "rope.dimension_count")
        if model.has(f"{family}.{name}")
    }
    if not stated and hidden % heads == 0:
        return hidden // heads
    if len(stated) != 1:
        raise GgufError(
            f"{model.path}: keys, values and rotary positions have {sorted(stated)} dimensions "
            f"({heads} heads, hidden {hidden}): expected one size for all three"
        )
    return stated.pop()


def _decimal(value: float) -> float:
    """The shortest decimal that is this float32: 9.9999997e-06 is 1e-5."""
    return float(str(np.float32(value)))


def _rope_scaling(model: GgufModel, family: str, head_dim: int) -> RopeScaling | None:
    """Llama 3's scaling, found again from the factors that the file keeps per frequency."""
    tensor = model.tensors.get("rope_freqs.weight")
    if tensor is None:
        return None
    factors = tensor.read().ravel()
    if factors.shape != (head_dim // 2,) or not np.isfinite(factors).all():
        raise GgufError(f"{model.path}: rope_freqs.weight has shape {list(factors.shape)}")
    if np.allclose(factors, 1.0):
        return None
    scaling = replace(LLAMA_3_ROPE, factor=round(float(factors.max()), 4))
    theta = model.value(f"{family}.rope.freq_base", float, 10_000.0)
    expected = _llama_3_factors(scaling, theta, head_dim)
    if not np.allclose(factors, expected, rtol=1e-3):
        raise GgufError(
            f"{model.path}: rope_freqs.weight does not follow Llama 3's rule (low 1, high 4, "
            "8,192 positions): give the Hugging Face directory of this model instead"
        )
    return scaling


def _llama_3_factors(scaling: RopeScaling, theta: float, head_dim: int) -> np.ndarray:
    """What each wavelength is multiplied by, float64[head_dim / 2].

    Source: `_compute_llama3_parameters` in transformers' modeling_rope_utils.
    """
    wavelengths = 2 * math.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    turns = scaling.original_max_position_embeddings / wavelengths
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return 1.0 / ((1.0 - smooth) / scaling.factor + smooth)


def _ends(model: GgufModel, vocabulary: int) -> tuple[int, ...]:
    keys = [f"tokenizer.ggml.{name}" for name in _END_KEYS]
    ids = [model.value(key, int) for key in keys if model.has(key)]
    if wrong := [token for token in ids if not 0 <= token < vocabulary]:
        raise GgufError(f"{model.path}: the end tokens {wrong} are outside the vocabulary")
    return tuple(dict.fromkeys(ids))
