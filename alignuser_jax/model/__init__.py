"""The language model: one decoder for Qwen3, Qwen2.5 and Llama 3, its adapters and weights.

`load_pretrained` is the way in for code outside this project. Names resolve on first use, so
that `alignuser_jax.model.config` can be imported without importing jax.
"""

import importlib
from typing import Any

_HOMES = {
    "config": ("DecoderConfig", "LoraConfig", "RopeScaling", "PROJECTIONS"),
    "files.hf_config": ("read_config",),
    "decoder": ("Decoder",),
    "states": (
        "abstract_decoder",
        "count_parameters",
        "init_decoder",
        "merge",
        "merge_lora",
        "named_arrays",
        "split",
        "unstack",
        "with_arrays",
    ),
    "files.weights": ("load_decoder", "save_pretrained"),
    "files.peft": ("base_of", "read_adapter", "save_adapter"),
    "files.merged": ("export_merged",),
    "pretrained": ("LanguageModel", "load_pretrained"),
    "files.backbone": ("backbone_directory", "backbone_name"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
