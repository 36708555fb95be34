"""The language model: a Qwen3 decoder in Flax NNX, its cache, its adapters, its weights.

Names resolve on first use, so `alignuser_jax.model.config` can be had without importing jax.
"""

import importlib

_HOMES = {
    "config": ("DecoderConfig", "LoraConfig", "PROJECTIONS"),
    "cache": ("KVCache", "init_cache"),
    "decoder": (
        "Decoder",
        "abstract_decoder",
        "count_parameters",
        "init_decoder",
        "merge",
        "merge_lora",
        "split",
        "unstack",
    ),
    "weights": ("load_pretrained", "save_pretrained"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
