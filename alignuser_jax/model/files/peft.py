"""Read and write adapters as PEFT directories (`adapter_config.json` and safetensors).

PEFT is the one format of adapters here: training saves it, and what `peft` wrote is read.
PEFT's `lora_A [rank, in]` and `lora_B [out, rank]` of each layer are stacked and transposed
here, so that every adapter array is f32 `[layers, in, rank]` or `[layers, rank, out]`, over the
adapted layers (`LoraConfig.layers`, PEFT's `layers_to_transform`).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from alignuser_jax.durable.whole import write_whole
from alignuser_jax.model.config import PROJECTIONS, DecoderConfig, LoraConfig
from alignuser_jax.model.files.hf_config import read_json
from alignuser_jax.model.files.tensors import (
    FLOATS,
    Tensor,
    listed,
    read_headers,
    write_tensors,
)

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
_NAME = re.compile(
    r"base_model\.model\.(?:model\.)?layers\.(\d+)\.(?:self_attn|mlp)\."
    r"(q|k|v|o|gate|up|down)_proj\.lora_([AB])(?:\.default)?\.weight"
)
Arrays = dict[str, np.ndarray]
"""Stacked adapter weights, named `layers.<projection>.a` and `.b`."""

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "fan_in_fan_out": (False,),
    "use_dora": (False,),
    "use_qalora": (False,),
    "lora_bias": (False,),
    "modules_to_save": (None, []),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
    "layer_replication": (None, []),
    "trainable_token_indices": (None, [], {}),
    "target_parameters": (None, []),
    "alora_invocation_tokens": (None, []),
    "use_bdlora": (None, False),
    "arrow_config": (None,),
    "kasa_config": (None,),
    "velora_config": (None,),
    "monteclora_config": (None,),
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal"),
}
"""Fields that change what an adapter computes, with their values in plain LoRA."""


def save_adapter(
    directory: str | Path,
    arrays: Mapping[str, np.ndarray],
    config: LoraConfig,
    base: str = "",
    *,
    num_layers: int | None = None,
) -> None:
    """Write a directory that `peft`, vLLM and `read_adapter` read.

    Args:
        directory: The directory; it is created.
        arrays: Stacked adapter weights, as in `named_arrays`.
        config: The adapter's shape.
        base: Directory or hub id of the base model, saved as `base_model_name_or_path`.
        num_layers: Layers of the base model; None if all of them are adapted.

    Raises:
        ValueError: If the arrays lie in other layers than `config` and `num_layers` say.
    """
    stacked = {len(array) for array in arrays.values()}
    adapted = config.adapted_layers(num_layers or max(stacked, default=1))
    if stacked - {len(adapted)} or (config.layers is not None and num_layers is None):
        raise ValueError(
            f"adapter arrays of {sorted(stacked)} layers with lora.layers={config.layers} of "
            f"{num_layers or 'an unknown number of'} layers: give the base model's num_layers"
        )
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for path, array in arrays.items():
        _, projection, which = path.split(".")
        for layer, values in zip(adapted, np.asarray(array), strict=True):
            name = _spelled(layer, projection, which.upper())
            tensors[name] = np.ascontiguousarray(values.T)
    write_tensors(directory / WEIGHTS, tensors)
    content: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base) or None,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "use_rslora": config.rslora,
        "target_modules": [f"{projection}_proj" for projection in config.targets],
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "modules_to_save": None,
    }
    if config.layers is not None:
        content["layers_to_transform"] = list(adapted)
        content["layers_pattern"] = "layers"
    write_whole(directory / CONFIG, json.dumps(content, indent=2, sort_keys=True) + "\n")


def _spelled(layer: int, projection: str, which: str) -> str:
    module = f"{'self_attn' if projection in 'qkvo' else 'mlp'}.{projection}_proj"
    return f"base_model.model.model.layers.{layer}.{module}.lora_{which}.weight"


def base_of(directory: str | Path) -> str:
    """Return the base model that an adapter names, "" if it names none."""
    return read_json(_file(directory, CONFIG)).get("base_model_name_or_path") or ""


def read_adapter(
    directory: str | Path, decoder: DecoderConfig | None = None
) -> tuple[LoraConfig, Arrays]:
    """Read an adapter.

    Args:
        directory: Its PEFT directory.
        decoder: The decoder that it must fit; None checks no sizes.

    Returns:
        The adapter's shape and its stacked weights.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If it is not plain LoRA on the seven projections of every layer or of the
            upper ones, or does not fit; names all that is wrong.
    """
    config, listed_layers = _read_config(directory)
    tensors = read_headers([_file(directory, WEIGHTS)])
    problems: list[str] = []
    by_kind: dict[tuple[str, str], dict[int, Tensor]] = {}
    for name, tensor in tensors.items():
        match = _NAME.fullmatch(name)
        if match is None:
            problems.append(f"unexpected {name}")
            continue
        layer, projection, which = int(match[1]), match[2], match[3]
        by_kind.setdefault((projection, which), {})[layer] = tensor
    targets = tuple(p for p in PROJECTIONS if (p, "A") in by_kind or (p, "B") in by_kind)
    if not targets:
        problems.append("no lora_A or lora_B of any layer")
    top = decoder.num_layers if decoder else 1 + max(map(max, by_kind.values()), default=-1)
    layers = range(min(top, 1 << 16))
    if listed_layers:
        layers = listed_layers
        if layers.stop != top:
            problems.append(
                f"layers_to_transform ends at layer {layers.stop - 1}, expected the upper "
                f"layers of a model with {top} (lora.layers)"
            )
    for projection in targets:
        for which in "AB":
            parts = by_kind.get((projection, which), {})
            for layer in sorted(set(layers) ^ parts.keys()):
                state = "missing" if layer not in parts else "unexpected"
                problems.append(f"{state} {_spelled(layer, projection, which)}")
            for layer in sorted(parts.keys() & set(layers)):
                name, side = _spelled(layer, projection, which), (projection, which)
                problems += _misfit(parts[layer], name, side, config.rank, decoder)
    if problems:
        raise ValueError(listed(f"the adapter in {directory} does not fit", problems))
    arrays: Arrays = {}
    for projection in targets:
        for which in "AB":
            parts = by_kind[projection, which]
            stacked = [parts[layer].read().T.astype(np.float32) for layer in layers]
            arrays[f"layers.{projection}.{which.lower()}"] = np.stack(stacked)
    return replace(config, targets=targets), arrays


def _read_config(directory: str | Path) -> tuple[LoraConfig, range | None]:
    """Return an adapter's shape without its targets, and the layers that it lists.

    Raises:
        FileNotFoundError: If there is no adapter.
        ValueError: If it is not plain LoRA; names all that is wrong.
    """
    content = read_json(_file(directory, CONFIG))
    problems = [
        f"{name}={content[name]!r} (supported: {' or '.join(map(repr, allowed))})"
        for name, allowed in _NEUTRAL.items()
        if name in content and content[name] not in allowed
    ]
    rank: Any = content.get("r")
    alpha: Any = content.get("lora_alpha")
    dropout, rslora = content.get("lora_dropout", 0.0), content.get("use_rslora", False)
    if type(rank) is not int or not 1 <= rank < 2**16:
        problems.append(f"r={rank!r}, expected a rank of 1 or more")
    if type(alpha) not in (int, float) or not math.isfinite(alpha):
        problems.append(f"lora_alpha={alpha!r}, expected a finite number")
    if type(dropout) not in (int, float) or not 0 <= dropout < 1:
        problems.append(f"lora_dropout={dropout!r}, expected 0 <= dropout < 1")
    if not isinstance(rslora, bool):
        problems.append(f"use_rslora={rslora!r}, expected true or false")
    layers = None
    given: Any = content.get("layers_to_transform")
    if given is not None and given != []:
        numbers = given if isinstance(given, list) else [given]
        if all(type(n) is int and 0 <= n < 1 << 16 for n in numbers):
            layers = range(min(numbers), max(numbers) + 1)
        if layers is None or sorted(numbers) != list(layers):
            problems.append(
                f"layers_to_transform={given!r} (supported: None, or the numbers of the upper "
                "layers without a gap)"
            )
    if problems:
        raise ValueError(listed(f"the adapter in {directory} cannot be used", problems))
    count = len(layers) if layers else None
    config = LoraConfig(rank, float(alpha), float(dropout), rslora=rslora, layers=count)
    return config, layers


def _file(directory: str | Path, name: str) -> Path:
    path = Path(directory) / name
    if not path.is_file():
        raise FileNotFoundError(
            f"{directory} holds no adapter: {name} is missing (expected a PEFT directory, as "
            "alignuser train and peft's save_pretrained write it)"
        )
    return path


def _misfit(
    tensor: Tensor, name: str, side: tuple[str, str], rank: int, decoder: DecoderConfig | None
) -> list[str]:
    """Say what is wrong with an adapter's tensor; `side` is a projection and "A" or "B"."""
    (projection, which), problems = side, []
    if tensor.dtype not in FLOATS:
        problems.append(f"{name} is {tensor.dtype}, expected one of {', '.join(FLOATS)}")
    expected: tuple[int | None, int | None] = (rank, None) if which == "A" else (None, rank)
    if decoder is not None:
        ins, outs = widths(decoder, projection)
        expected = (rank, ins) if which == "A" else (outs, rank)
    fits = len(tensor.shape) == 2 and all(
        want in (None, size) for want, size in zip(expected, tensor.shape, strict=True)
    )
    if not fits:
        want = ["any" if size is None else size for size in expected]
        problems.append(f"{name} has shape {list(tensor.shape)}, expected {want}")
    return problems


def widths(config: DecoderConfig, projection: str) -> tuple[int, int]:
    """Return sizes of input and output of a projection."""
    hidden, inner = config.hidden_size, config.intermediate_size
    queries = config.num_heads * config.head_dim
    keys = config.num_kv_heads * config.head_dim
    return {
        "q": (hidden, queries),
        "k": (hidden, keys),
        "v": (hidden, keys),
        "o": (queries, hidden),
        "gate": (hidden, inner),
        "up": (hidden, inner),
        "down": (inner, hidden),
    }[projection]


def join_adapters(
    adapters: Mapping[str, tuple[LoraConfig, Arrays]],
) -> tuple[LoraConfig, tuple[tuple[str, int], ...], Arrays]:
    """Put several adapters side by side into one.

    Ranks add up, scales move into `B`, and a projection or a layer that one of them does not
    adapt gets zeros there. A gate over the joined rank then chooses per row (`lora.Adapter`).
    One adapter alone stays as it is.

    Args:
        adapters: Shape and weights by name.

    Returns:
        The joined shape, (name, rank) of each adapter, and the joined weights.
    """
    ranks = tuple((name, config.rank) for name, (config, _) in adapters.items())
    if len(adapters) == 1:
        (config, arrays) = next(iter(adapters.values()))
        return config, ranks, arrays
    total = sum(rank for _, rank in ranks)
    most = max(len(array) for _, arrays in adapters.values() for array in arrays.values())
    joined: Arrays = {}
    for path, like in (each for _, arrays in adapters.values() for each in arrays.items()):
        shape = (like.shape[1], total) if path.endswith(".a") else (total, like.shape[2])
        joined[path] = np.zeros((most, *shape), np.float32)
    begin = 0
    for config, arrays in adapters.values():
        end = begin + config.rank
        for path, array in arrays.items():
            upper = joined[path][-len(array) :]
            if path.endswith(".a"):
                upper[:, :, begin:end] = array
            else:
                upper[:, begin:end] = array * np.float32(config.scale)
        begin = end
    targets = tuple(p for p in PROJECTIONS if f"layers.{p}.a" in joined)
    upper_only = all(config.layers is not None for config, _ in adapters.values())
    layers = most if upper_only else None
    return LoraConfig(total, float(total), 0.0, targets, layers=layers), ranks, joined
