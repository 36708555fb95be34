"""What a decoder is: plain frozen numbers, read from and written as Hugging Face `config.json`.

No jax here, so that configs and data programs can name a model without an accelerator stack.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROJECTIONS = ("q", "k", "v", "o", "gate", "up", "down")


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """The shape of a Qwen3 decoder; the defaults are those of a small test model."""

    vocab_size: int
    hidden_size: int = 128
    intermediate_size: int = 384
    num_layers: int = 4
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 32
    rope_theta: float = 10_000.0
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = True
    max_position_embeddings: int = 4096

    def __post_init__(self) -> None:
        sizes = {name: getattr(self, name) for name in _HF_SIZES} | {"head_dim": self.head_dim}
        wrong = {name: size for name, size in sizes.items() if size < 1}
        if wrong:
            raise ValueError(f"sizes of a decoder must be at least 1, got {wrong}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads={self.num_heads} must be a multiple of "
                f"num_kv_heads={self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"rotary positions need an even head_dim, got {self.head_dim}")

    @classmethod
    def from_hf(cls, source: str | Path | Mapping[str, Any]) -> DecoderConfig:
        """From a `config.json`, the directory that holds it, or its content.

        Raises `ValueError` for whatever this decoder would compute differently (another
        architecture, scaled rotary positions, biases, a sliding window), all at once.
        """
        if not isinstance(source, Mapping):
            path = Path(source)
            path = path / "config.json" if path.is_dir() else path
            source = json.loads(path.read_text())
        rope = source.get("rope_parameters") or source.get("rope_scaling") or {}
        rope_type = rope.get("rope_type", rope.get("type", "default"))
        theta = rope.get("rope_theta", source.get("rope_theta"))
        refused = [
            f"{name}={found!r} (supported: {supported!r})"
            for name, found, supported in (
                ("model_type", source.get("model_type"), "qwen3"),
                ("rope_type", rope_type, "default"),
                ("attention_bias", source.get("attention_bias", False), False),
                ("hidden_act", source.get("hidden_act", "silu"), "silu"),
                ("use_sliding_window", source.get("use_sliding_window", False), False),
            )
            if found != supported
        ]
        missing = [hf for hf in _HF_SIZES.values() if hf not in source]
        missing += ["rope_theta"] if theta is None else []
        if refused or missing:
            raise ValueError(
                "this config.json is not one this decoder can run: "
                + "; ".join(refused + [f"{name} is missing" for name in missing])
            )
        sizes = {ours: int(source[hf]) for ours, hf in _HF_SIZES.items()}
        return cls(
            **sizes,
            head_dim=int(source.get("head_dim") or sizes["hidden_size"] // sizes["num_heads"]),
            rope_theta=float(theta),
            rms_norm_eps=float(source.get("rms_norm_eps", 1e-6)),
            tie_word_embeddings=bool(source.get("tie_word_embeddings", False)),
        )

    def to_hf(self) -> dict[str, Any]:
        """The content of a `config.json` that `transformers` (4 and 5) reads as this model."""
        return {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            **{hf: getattr(self, ours) for ours, hf in _HF_SIZES.items()},
            "head_dim": self.head_dim,
            "rope_theta": self.rope_theta,
            "rope_parameters": {"rope_theta": self.rope_theta, "rope_type": "default"},
            "rms_norm_eps": self.rms_norm_eps,
            "tie_word_embeddings": self.tie_word_embeddings,
            "hidden_act": "silu",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "use_sliding_window": False,
        }


_HF_SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "max_position_embeddings": "max_position_embeddings",
}


@dataclass(frozen=True, slots=True)
class LoraConfig:
    """Low-rank adapters (Hu et al. 2021) on `targets`; rank 0 is a model without adapters.

    The adapter's output is scaled by `alpha / rank`, or `alpha / sqrt(rank)` with `rslora`
    (Kalajdzievski 2023).
    """

    rank: int = 0
    alpha: float = 32.0
    dropout: float = 0.0
    targets: tuple[str, ...] = PROJECTIONS
    rslora: bool = False

    def __post_init__(self) -> None:
        unknown = sorted(set(self.targets) - set(PROJECTIONS))
        if unknown:
            raise ValueError(f"unknown LoRA targets {unknown}; choose from {PROJECTIONS}")
        if self.rank < 0 or not 0 <= self.dropout < 1:
            raise ValueError(
                f"LoRA needs rank >= 0 and 0 <= dropout < 1, got rank={self.rank} and "
                f"dropout={self.dropout}"
            )

    @property
    def scale(self) -> float:
        if not self.rank:
            return 0.0
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)
