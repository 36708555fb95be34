"""The shape of a decoder and of its adapters, as plain frozen numbers.

No jax is imported here, so that configs and data programs can name a model without an
accelerator stack. `files.hf_config` reads and writes them as Hugging Face `config.json`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

PROJECTIONS = ("q", "k", "v", "o", "gate", "up", "down")
"""The linear maps of a layer, by our short names."""

MODEL_TYPES = ("qwen3", "qwen2", "llama")
"""The families that this decoder computes, by Hugging Face's names."""


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """Scaled rotary positions of Llama 3.1, `rope_type: llama3` in a `config.json`.

    As in `transformers.modeling_rope_utils`, wavelengths longer than
    `original_max_position_embeddings / low_freq_factor` are stretched by `factor`, those
    shorter than `original_max_position_embeddings / high_freq_factor` stay, and those between
    are interpolated.

    Attributes:
        factor: How much long wavelengths are stretched, 1 or more.
        low_freq_factor: Number of turns over the original positions below which a wavelength
            is stretched in full.
        high_freq_factor: Number of turns from which it stays.
        original_max_position_embeddings: Positions that the model was first trained on.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int

    def __post_init__(self) -> None:
        if not 0 < self.low_freq_factor < self.high_freq_factor:
            raise ValueError(
                "rope scaling needs 0 < low_freq_factor < high_freq_factor, got "
                f"{self.low_freq_factor} and {self.high_freq_factor}"
            )
        if not self.factor >= 1 or self.original_max_position_embeddings < 1:
            raise ValueError(
                "rope scaling needs factor >= 1 and original_max_position_embeddings >= 1, got "
                f"{self.factor} and {self.original_max_position_embeddings}"
            )


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """The shape of a decoder; the defaults are those of a small Qwen3 test model.

    Attributes:
        vocab_size: Rows of the embedding table.
        hidden_size: Width of the residual stream.
        intermediate_size: Width of the feed-forward layers.
        num_layers: Number of layers.
        num_heads: Query heads, a multiple of `num_kv_heads`.
        num_kv_heads: Key and value heads.
        head_dim: Size of a head, even.
        rope_theta: Base of the rotary wavelengths.
        rms_norm_eps: Added to the mean square in RMSNorm.
        tie_word_embeddings: Whether the embedding table is the head too.
        max_position_embeddings: Longest sequence that the model was trained on.
        model_type: The family: "qwen3" norms queries and keys, "qwen2" (also Qwen2.5) has
            biases on q, k and v, "llama" has neither.
        attention_bias: Biases on q, k, v and o (qwen3, llama).
        mlp_bias: Biases on gate, up and down (llama).
        rope_scaling: Scaled rotary positions; None for plain ones.
        sliding_window: How many last tokens a sliding layer sees.
        sliding_layers: For each layer whether it slides; empty means that none does.
        headless: An embedding model, whose hidden states are the result. It has no logits.
        eos_token_ids: Tokens that end a generated text.

    Example:
        >>> config = DecoderConfig(vocab_size=1000, num_layers=2)
        >>> config.qk_norm, config.windows()
        (True, (None, None))
    """

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
    model_type: str = "qwen3"
    attention_bias: bool = False
    mlp_bias: bool = False
    rope_scaling: RopeScaling | None = None
    sliding_window: int = 0
    sliding_layers: tuple[bool, ...] = ()
    headless: bool = False
    eos_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        sizes = {name: getattr(self, name) for name in _SIZE_FIELDS}
        wrong = {name: size for name, size in sizes.items() if not 1 <= size < 2**31}
        if wrong:
            raise ValueError(f"sizes of a decoder must be at least 1, got {wrong}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads={self.num_heads} must be a multiple of "
                f"num_kv_heads={self.num_kv_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"rotary positions need an even head_dim, got {self.head_dim}")
        if not (0 < self.rope_theta < math.inf and 0 <= self.rms_norm_eps < 1):
            raise ValueError(
                f"expected a positive rope_theta and 0 <= rms_norm_eps < 1, got "
                f"{self.rope_theta} and {self.rms_norm_eps}"
            )
        if self.model_type not in MODEL_TYPES:
            raise ValueError(f"model_type {self.model_type!r} is not one of {MODEL_TYPES}")
        if (self.mlp_bias and self.model_type != "llama") or (
            self.attention_bias and self.model_type == "qwen2"
        ):
            raise ValueError(
                f"a {self.model_type} has no attention_bias={self.attention_bias} with "
                f"mlp_bias={self.mlp_bias}: qwen3 and llama may have attention_bias, llama "
                "mlp_bias; qwen2's biases on q, k and v are part of its type"
            )
        if any(self.sliding_layers) and self.sliding_window < 1:
            raise ValueError(
                f"sliding layers need a window of 1 or more, got {self.sliding_window}"
            )
        if len(self.sliding_layers) not in (0, self.num_layers):
            raise ValueError(
                f"sliding_layers has {len(self.sliding_layers)} entries for "
                f"{self.num_layers} layers"
            )
        outside = [token for token in self.eos_token_ids if not 0 <= token < self.vocab_size]
        if outside:
            raise ValueError(
                f"eos_token_ids {outside} are outside the vocabulary of {self.vocab_size}"
            )

    @property
    def qk_norm(self) -> bool:
        """Whether queries and keys are normalised."""
        return self.model_type == "qwen3"

    def has_bias(self, projection: str) -> bool:
        """Return whether a projection ("q", …, "down") adds a bias."""
        if projection in ("gate", "up", "down"):
            return self.mlp_bias
        return self.attention_bias or (self.model_type == "qwen2" and projection != "o")

    def windows(self) -> tuple[int | None, ...]:
        """Return for each layer how many last tokens it sees; None is all."""
        slides = self.sliding_layers or (False,) * self.num_layers
        return tuple(self.sliding_window if s else None for s in slides)


_SIZE_FIELDS = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads"),
    *("num_kv_heads", "head_dim", "max_position_embeddings"),
)


@dataclass(frozen=True, slots=True)
class LoraConfig:
    """The shape of low-rank adapters (Hu et al. 2021).

    Attributes:
        rank: Rank of the adapters; 0 is a model without adapters.
        alpha: Numerator of the scale.
        dropout: Share of the adapters' input that training drops, 0 to below 1.
        targets: Projections that are adapted, of `PROJECTIONS`.
        rslora: Scale by `alpha / sqrt(rank)` (Kalajdzievski 2023) instead of `alpha / rank`.
        layers: Only the upper `layers` layers are adapted, and training costs no backward pass
            below them; None adapts all, as the paper does.

    Example:
        >>> LoraConfig(rank=16, alpha=32).scale
        2.0
        >>> LoraConfig(rank=16, layers=10).adapted_layers(30)
        range(20, 30)
    """

    rank: int = 0
    alpha: float = 32.0
    dropout: float = 0.0
    targets: tuple[str, ...] = PROJECTIONS
    rslora: bool = False
    layers: int | None = None

    def __post_init__(self) -> None:
        unknown = sorted(set(self.targets) - set(PROJECTIONS))
        if unknown or not self.targets:
            raise ValueError(
                f"unknown LoRA targets {unknown or 'none at all'}; choose from {PROJECTIONS}"
            )
        if self.rank < 0:
            raise ValueError(f"rank is {self.rank!r}: expected 0 (no adapters) or more")
        if not math.isfinite(self.alpha):
            raise ValueError(f"alpha is {self.alpha!r}: expected a finite number")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout!r}: expected a share of 0 to below 1")
        if self.layers is not None and self.layers < 1:
            raise ValueError(
                f"lora.layers is {self.layers!r}: expected None (all layers), or how many of "
                "the upper layers are adapted, 1 or more"
            )

    def adapted_layers(self, num_layers: int) -> range:
        """Return the numbers of the layers, from 0, that adapters of this shape lie in.

        Without adapters (rank 0) that is every layer: there is nothing to keep apart.

        Args:
            num_layers: Layers of the decoder.

        Raises:
            ValueError: If the decoder has fewer layers.
        """
        count = self.layers if self.rank and self.layers is not None else num_layers
        if count > num_layers:
            raise ValueError(
                f"lora.layers is {count}, but the model has {num_layers} layers: give at most "
                "so many, or None for all"
            )
        return range(num_layers - count, num_layers)

    @property
    def scale(self) -> float:
        """The factor of the adapters' output; 0 without adapters."""
        if not self.rank:
            return 0.0
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)
