"""Model FLOPs per token, and the peak FLOP/s of chips: what MFU means here.

Counted is what the model needs, by rule, however a program computes it. Not counted are work
that rematerialisation repeats, the norms, and the adapters themselves (under 1 % at rank 16);
the head is counted for every token, though the loss skips positions without weight. No jax is
imported here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from alignuser_jax.model.config import DecoderConfig

Trainable = Literal["lora", "full"]
"""What a training updates: the adapter, or every weight."""


def matmul_parameters(config: DecoderConfig) -> int:
    """Return how many weights every token is multiplied by: projections of the layers and head.

    The embedding is only looked up, so it counts only if it is the head too.
    """
    c = config
    attention = 2 * (c.num_heads + c.num_kv_heads) * c.head_dim * c.hidden_size  # q, o; k, v
    layer = attention + 3 * c.hidden_size * c.intermediate_size
    return c.num_layers * layer + (0 if c.headless else c.vocab_size * c.hidden_size)


def matmul_flops(
    config: DecoderConfig, trainable: Trainable, adapted: range | None = None
) -> int:
    """Return FLOPs per token of the weights, forward and backward.

    A weight costs 2 (multiply, add) in each product that it is part of: the forward pass, the
    gradient of the input, and in full training the gradient of the weight. So it is 4N for
    LoRA and 6N for full training (Kaplan et al. 2020, section 2.1), with N of
    `matmul_parameters`; 2 for weights of layers that the backward pass does not reach.

    Args:
        config: The decoder.
        trainable: What is trained.
        adapted: The layers with adapters (`LoraConfig.adapted_layers`); None is all.
    """
    if trainable not in ("lora", "full"):
        raise ValueError(f"trainable is {trainable!r}: expected 'lora' or 'full'")
    layer = matmul_parameters(replace(config, num_layers=1, sliding_layers=()))
    layer -= 0 if config.headless else config.vocab_size * config.hidden_size
    below = 2 * layer * (adapted.start if adapted else 0)
    return (4 if trainable == "lora" else 6) * matmul_parameters(config) - below


def attention_flops(
    config: DecoderConfig, length: float, adapted: range | None = None
) -> float:
    """Return FLOPs per token of causal attention's scores and sums, forward and backward.

    A pair of query and key costs, per layer, 2·heads·head_dim in each of six products: forward
    q·k and p·v, backward the gradients of q, k, p and v. Those are activations, so LoRA saves
    none. A causal query sees (length + 1) / 2 keys on average, taken as length / 2, which gives
    6·layers·length·heads·head_dim. A sliding window w < length leaves w - w²/(2·length) keys.

    Args:
        config: The decoder.
        length: Tokens of a segment. In packed rows that is the mean over tokens, not over
            segments: sum(n²) / sum(n) for segments of n tokens. The row length is an upper
            bound.
        adapted: The layers with adapters; those below are computed forward only (2 of the 6
            products). None is all.
    """
    products = 0.0
    for layer, window in enumerate(config.windows()):
        keys = length / 2
        if window is not None and window < length:
            keys = window - window**2 / (2 * length)
        products += keys * (2 if adapted and layer < adapted.start else 6)
    return 2 * products * config.num_heads * config.head_dim


def train_flops(
    config: DecoderConfig, trainable: Trainable, length: float, adapted: range | None = None
) -> float:
    """Return the model FLOPs of one trained token.

    `length` is as in `attention_flops`, `adapted` as in `matmul_flops`.
    """
    weights = matmul_flops(config, trainable, adapted)
    return weights + attention_flops(config, length, adapted)


@dataclass(frozen=True)
class Chip:
    """One `jax.Device`, by the vendor's data sheet.

    Attributes:
        name: Our short name.
        peak_flops: Dense bf16 FLOP/s; None where no data sheet says it (a CPU).
        hbm_bytes: Bytes of its memory.
        kinds: Values of `jax.Device.device_kind`.
    """

    name: str
    peak_flops: float | None
    hbm_bytes: int
    kinds: tuple[str, ...]


_GB, _GIB, _TERA = 10**9, 2**30, 1e12

# NVIDIA's data sheets give bf16 with 2:4 sparsity from Hopper on, which is twice the dense rate
# used here, and memory in GB. A driver reports a little more than 10^9 bytes for each; what is
# beyond is left as room for the driver itself.
# Google's pages give chips. A `jax.Device` is a chip, but on TPU7x, whose two chiplets are two
# devices (docs.cloud.google.com/tpu/docs/tpu7x), half of one.
CHIPS = (
    # NVIDIA A100 Tensor Core GPU data sheet (2021): 312 TFLOPS
    Chip(
        "a100-40",
        312 * _TERA,
        40 * _GB,
        ("NVIDIA A100-SXM4-40GB", "NVIDIA A100-PCIE-40GB"),
    ),
    Chip(
        "a100-80",
        312 * _TERA,
        80 * _GB,
        ("NVIDIA A100-SXM4-80GB", "NVIDIA A100 80GB PCIe"),
    ),
    # NVIDIA H100 Tensor Core GPU data sheet: SXM 1,979, PCIe 1,513, NVL 1,671 TFLOPS, sparse
    Chip("h100", 989.5 * _TERA, 80 * _GB, ("NVIDIA H100 80GB HBM3",)),
    Chip("h100-pcie", 756.5 * _TERA, 80 * _GB, ("NVIDIA H100 PCIe",)),
    Chip("h100-nvl", 835.5 * _TERA, 94 * _GB, ("NVIDIA H100 NVL",)),
    # NVIDIA H200 Tensor Core GPU data sheet: SXM 1,979 TFLOPS, sparse
    Chip("h200", 989.5 * _TERA, 141 * _GB, ("NVIDIA H200",)),
    # NVIDIA DGX B200 and HGX B200 data sheets: 36 PFLOPS sparse and 1,440 GB for 8
    Chip("b200", 2250 * _TERA, 180 * _GB, ("NVIDIA B200",)),
    # docs.cloud.google.com/tpu/docs: v4, v5e, v5p, v6e, tpu7x
    Chip("v4", 275 * _TERA, 32 * _GIB, ("TPU v4",)),
    Chip("v5e", 197 * _TERA, 16 * _GIB, ("TPU v5 lite", "TPU v5e")),
    Chip("v5p", 459 * _TERA, 95 * _GIB, ("TPU v5", "TPU v5p")),
    Chip("v6e", 918 * _TERA, 32 * _GIB, ("TPU v6 lite", "TPU v6e")),
    Chip("v7x", 2307 / 2 * _TERA, 192 * _GIB // 2, ("TPU7x",)),
)


def find_chip(name: str) -> Chip:
    """Return the chip of a name ("h100") or of a `jax.Device.device_kind` ("NVIDIA H200").

    Raises:
        ValueError: If the chip is not in `CHIPS`: a guessed peak would be a wrong MFU.
    """
    for chip in CHIPS:
        if name.lower() in (chip.name, *(kind.lower() for kind in chip.kinds)):
            return chip
    known = ", ".join(f"{chip.name} ({' or '.join(chip.kinds)})" for chip in CHIPS)
    raise ValueError(
        f"no peak is known for a chip called {name!r}; known are {known}: give one of these, "
        "or add yours to CHIPS in alignuser_jax/training/flops.py"
    )
