"""Read and write `DecoderConfig` as Hugging Face `config.json`; nothing is guessed.

A field that this decoder would compute differently is refused by name. So is every field that
is neither read nor listed as without effect, because a new field may be a new architecture.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignuser_jax.model.config import MODEL_TYPES, DecoderConfig, RopeScaling

CONFIG, GENERATION = "config.json", "generation_config.json"
"""Names of the files in a model directory."""

_SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "max_position_embeddings": "max_position_embeddings",
}
_CLASSES = {"qwen3": "Qwen3", "qwen2": "Qwen2", "llama": "Llama"}

_FIXED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "pretraining_tp": (1,),
    "is_encoder_decoder": (False,),
    "is_decoder": (False, True),
    "add_cross_attention": (False,),
    "tie_encoder_decoder": (False,),
    "chunk_size_feed_forward": (0,),
    "partial_rotary_factor": (1, 1.0),
    "quantization_config": (None,),
    "auto_map": (None,),
    "pruned_heads": (None, {}),
}
"""Fields that may have these values only."""

_WITHOUT_EFFECT = frozenset(
    """
    _name_or_path _attn_implementation_autoset attention_dropout bad_words_ids
    begin_suppress_tokens bos_token_id decoder_start_token_id diversity_penalty
    do_sample dtype early_stopping encoder_no_repeat_ngram_size
    exponential_decay_length_penalty finetuning_task forced_bos_token_id
    forced_eos_token_id id2label initializer_range label2id length_penalty max_length
    min_length no_repeat_ngram_size num_beam_groups num_beams num_return_sequences
    output_attentions output_hidden_states output_scores pad_token_id prefix
    problem_type remove_invalid_values repetition_penalty return_dict
    return_dict_in_generate sep_token_id suppress_tokens task_specific_params
    temperature tf_legacy_loss tokenizer_class top_k top_p torch_dtype torchscript
    transformers_version typical_p unsloth_fixed unsloth_version use_bfloat16 use_cache
    """.split()  # noqa: SIM905
)
"""Fields about training, generation and bookkeeping, which this decoder ignores."""


def strict_json(text: bytes) -> Any:
    """Parse JSON; raise `ValueError` also for repeated keys, NaN and infinity."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) < len(pairs):
            counts = Counter(key for key, _ in pairs)
            raise ValueError(f"repeated keys {[key for key, n in counts.items() if n > 1]}")
        return content

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    return json.loads(text, object_pairs_hook=once, parse_constant=refuse)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; raise `ValueError`, naming the file, for anything else."""
    try:
        content = strict_json(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected a JSON object")
    return content


def read_config(source: str | Path | Mapping[str, Any]) -> DecoderConfig:
    """Read the shape of a decoder.

    Args:
        source: A model directory, its `config.json`, or that file's content.

    Returns:
        The configuration. The end-of-text ids are those of `generation_config.json` if there is
        one.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If this decoder would compute anything differently (another architecture,
            an unknown field, a value out of range); names all of it.
    """
    content: Mapping[str, Any]
    generation: Mapping[str, Any] = {}
    where = "this config.json"
    if isinstance(source, Mapping):
        content = source
    else:
        path = Path(source)
        path = path / CONFIG if path.is_dir() else path
        if not path.is_file():
            raise FileNotFoundError(f"no {path}: expected a Hugging Face model directory")
        content, where = read_json(path), str(path)
        if (path.parent / GENERATION).is_file():
            generation = read_json(path.parent / GENERATION)
    reader = _Reader(dict(content))
    try:
        fields = _fields(reader, generation)
        reader.finish()
        if not reader.problems:
            return DecoderConfig(**fields)
    except ValueError as error:
        reader.problems.append(str(error))
    raise ValueError(f"{where} is not one this decoder can run: " + "; ".join(reader.problems))


class _Reader:
    """Take fields out of the content, and collect what is wrong with them."""

    def __init__(self, content: dict[str, Any], prefix: str = ""):
        self.left, self.prefix = content, prefix
        self.problems: list[str] = []

    def wrong(self, name: str, value: Any, expected: str) -> None:
        text = repr(value)
        text = text if len(text) < 80 else text[:77] + "..."
        self.problems.append(f"{self.prefix}{name}={text} (supported: {expected})")

    def take(self, name: str, kind: str, default: Any = None, required: bool = False) -> Any:
        """Return the field as "size", "number" or "flag"; None counts as absent."""
        value = self.left.pop(name, None)
        if value is None:
            if required:
                self.problems.append(f"{self.prefix}{name} is missing")
            return default
        whole = isinstance(value, int) and not isinstance(value, bool)
        if kind == "size":
            good, expected = whole and 1 <= value < 2**31, "a whole number of 1 or more"
        elif kind == "number":
            good = whole or (isinstance(value, float) and math.isfinite(value))
            expected = "a finite number"
            value = float(value) if good and abs(value) < 1e300 else value
        else:
            good, expected = isinstance(value, bool), "true or false"
        if not good:
            self.wrong(name, value, expected)
            return default
        return value

    def finish(self) -> None:
        """Report every field that was not taken."""
        for name in sorted(self.left):
            if name not in _WITHOUT_EFFECT:
                self.wrong(name, self.left[name], "a decoder without this field")


def _fields(reader: _Reader, generation: Mapping[str, Any]) -> dict[str, Any]:
    left = reader.left
    model_type = left.pop("model_type", None)
    if model_type not in MODEL_TYPES:
        reader.wrong("model_type", model_type, ", ".join(MODEL_TYPES))
        raise ValueError("nothing else was read")
    fields: dict[str, Any] = {"model_type": model_type}
    fields |= {
        ours: reader.take(name, "size", 1, required=True) for ours, name in _SIZES.items()
    }
    heads, width = fields["num_heads"], fields["hidden_size"]
    fields["num_kv_heads"] = reader.take("num_key_value_heads", "size", heads)
    if (head_dim := reader.take("head_dim", "size")) is None:
        if width % heads:
            reader.wrong("hidden_size", width, f"a multiple of num_attention_heads={heads}")
        head_dim = max(width // heads, 1)
    fields["head_dim"] = head_dim
    fields["rms_norm_eps"] = reader.take("rms_norm_eps", "number", 1e-6, required=True)
    fields["tie_word_embeddings"] = reader.take("tie_word_embeddings", "flag", False)
    if model_type != "qwen2":
        fields["attention_bias"] = reader.take("attention_bias", "flag", False)
    if model_type == "llama":
        fields["mlp_bias"] = reader.take("mlp_bias", "flag", False)
    for name, allowed in _FIXED.items():
        value = left.pop(name, allowed[0])
        if not any(value == v and type(value) is type(v) for v in allowed):
            reader.wrong(name, value, " or ".join(repr(v) for v in allowed))
    fields["rope_theta"], fields["rope_scaling"] = _rope(reader)
    if model_type != "llama":
        fields |= _sliding(reader, fields["num_layers"])
    fields["headless"] = _headless(reader, model_type)
    fields["eos_token_ids"] = _eos(reader, generation)
    return fields


def _rope(reader: _Reader) -> tuple[float, RopeScaling | None]:
    theta = reader.take("rope_theta", "number")
    scaling = None
    for name in ("rope_parameters", "rope_scaling"):
        content = reader.left.pop(name, None)
        if content is None:
            continue
        if not isinstance(content, dict):
            reader.wrong(name, content, "an object or null")
            continue
        inner = _Reader(dict(content), prefix=f"{name}.")
        kinds = [inner.left.pop(key, None) for key in ("rope_type", "type")]
        kind = next((k for k in kinds if k is not None), "default")
        its_theta = inner.take("rope_theta", "number")
        if theta is not None and its_theta is not None and theta != its_theta:
            inner.wrong("rope_theta", its_theta, f"the same as rope_theta={theta}")
        theta = its_theta if theta is None else theta
        if inner.left.pop("partial_rotary_factor", 1) != 1:
            inner.wrong("partial_rotary_factor", content["partial_rotary_factor"], "1")
        if kind == "llama3":
            numbers = {
                key: inner.take(key, "number", 1.0, required=True)
                for key in ("factor", "low_freq_factor", "high_freq_factor")
            }
            size = "original_max_position_embeddings"
            numbers[size] = inner.take(size, "size", 1, required=True)
            inner.finish()
            if not inner.problems:
                scaling = RopeScaling(**numbers)
        elif kind == "default":
            inner.finish()
        else:
            inner.wrong("rope_type", kind, "'default', 'llama3'")
        reader.problems += inner.problems
    if theta is None:
        reader.problems.append("rope_theta is missing")
    return theta or 1.0, scaling


def _sliding(reader: _Reader, layers: int) -> dict[str, Any]:
    use = reader.take("use_sliding_window", "flag", False)
    window = reader.take("sliding_window", "size")
    first = reader.left.pop("max_window_layers", None)
    if first is not None and not (type(first) is int and first >= 0):
        reader.wrong("max_window_layers", first, "a whole number of 0 or more")
    kinds = reader.left.pop("layer_types", None)
    if kinds is not None:
        choices = ["full_attention", "sliding_attention"]
        if (
            not isinstance(kinds, list)
            or len(kinds) != layers
            or any(kind not in choices for kind in kinds)
        ):
            reader.wrong(
                "layer_types", kinds, f"one of {choices} for each of num_hidden_layers={layers}"
            )
            return {}
        slides = tuple(kind == "sliding_attention" for kind in kinds)
        if any(slides) and not (use and window):
            reader.wrong("layer_types", kinds, "full_attention without use_sliding_window")
    elif not use:
        return {}
    elif window is None or type(first) is not int:
        reader.wrong(
            "use_sliding_window",
            use,
            "with sliding_window, and max_window_layers or layer_types",
        )
        return {}
    else:
        slides = tuple(layer >= first for layer in range(min(layers, 1 << 16)))
    return {"sliding_window": window, "sliding_layers": slides} if any(slides) else {}


def _headless(reader: _Reader, model_type: str) -> bool:
    architectures = reader.left.pop("architectures", None)
    name = _CLASSES[model_type]
    causal, bare = [f"{name}ForCausalLM"], [f"{name}Model"]
    if architectures not in (None, causal, bare):
        reader.wrong("architectures", architectures, f"{causal} or {bare}")
    return architectures == bare


def _eos(reader: _Reader, generation: Mapping[str, Any]) -> tuple[int, ...]:
    name = "eos_token_id"
    value = reader.left.pop(name, None)
    value = generation.get(name, value)
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if any(type(token) is not int for token in ids):
        reader.wrong(name, value, "a token id or a list of them")
        return ()
    return tuple(dict.fromkeys(ids))


def to_hf(config: DecoderConfig) -> dict[str, Any]:
    """Return the content of a `config.json` that `transformers` 4 and 5 read as this model."""
    name = _CLASSES[config.model_type]
    rope: dict[str, Any] = {"rope_type": "default"}
    if config.rope_scaling is not None:
        s = config.rope_scaling
        rope = {"rope_type": "llama3"} | {key: getattr(s, key) for key in s.__slots__}
    content = {
        "architectures": [f"{name}Model" if config.headless else f"{name}ForCausalLM"],
        "model_type": config.model_type,
        **{hf: getattr(config, ours) for ours, hf in _SIZES.items()},
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "rope_theta": config.rope_theta,
        "rope_parameters": rope | {"rope_theta": config.rope_theta},
        "rope_scaling": None if config.rope_scaling is None else rope,
        "rms_norm_eps": config.rms_norm_eps,
        "tie_word_embeddings": config.tie_word_embeddings,
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "eos_token_id": list(config.eos_token_ids) or None,
    }
    if config.model_type != "qwen2":
        content["attention_bias"] = config.attention_bias
    if config.model_type == "llama":
        return content | {"mlp_bias": config.mlp_bias}
    slides = config.sliding_layers or (False,) * config.num_layers
    kinds = ["sliding_attention" if s else "full_attention" for s in slides]
    return content | {
        "use_sliding_window": any(slides),
        "sliding_window": config.sliding_window if any(slides) else None,
        "max_window_layers": slides.index(True) if any(slides) else config.num_layers,
        "layer_types": kinds,
    }
