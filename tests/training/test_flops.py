"""FLOPs counted against hand counts and published runs; the chips' names and limits."""

import dataclasses
import subprocess
import sys

import pytest

from alignuser_jax.model.config import DecoderConfig
from alignuser_jax.training.flops import (
    CHIPS,
    attention_flops,
    find_chip,
    matmul_flops,
    matmul_parameters,
    train_flops,
)

QWEN3_8B = DecoderConfig(
    vocab_size=151936,
    hidden_size=4096,
    intermediate_size=12288,
    num_layers=36,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    tie_word_embeddings=False,
)
LLAMA3_8B = dataclasses.replace(
    QWEN3_8B, vocab_size=128256, intermediate_size=14336, num_layers=32, model_type="llama"
)


def test_qwen3_8b_is_what_the_design_says():
    """docs/evidence.md: 7.57 G matmul parameters, 30.3 + 3.6 GF per token at T = 4096."""
    assert round(matmul_parameters(QWEN3_8B) / 1e9, 2) == 7.57
    assert round(matmul_flops(QWEN3_8B, "lora") / 1e9, 1) == 30.3
    assert round(attention_flops(QWEN3_8B, 4096) / 1e9, 1) == 3.6
    total = matmul_flops(QWEN3_8B, "lora") + attention_flops(QWEN3_8B, 4096)
    assert train_flops(QWEN3_8B, "lora", 4096) == total


def test_a_published_lora_run_has_the_published_rate():
    """NeMo Automodel, Llama3-8B LoRA at 4096 on one H100: 12,473 tokens/s, 402 TFLOP/s."""
    rate = 12473 * train_flops(LLAMA3_8B, "lora", 4096)
    assert rate == pytest.approx(402e12, rel=0.05)
    assert rate / find_chip("h100").peak_flops == pytest.approx(0.406, rel=0.05)


def test_layers_below_the_adapted_ones_go_forward_only():
    wide = dataclasses.replace(LLAMA3_8B, num_layers=4)
    layer = matmul_parameters(wide) - matmul_parameters(dataclasses.replace(wide, num_layers=3))
    head = wide.vocab_size * wide.hidden_size
    upper = range(3, 4)
    assert matmul_flops(wide, "lora", upper) == 2 * 3 * layer + 4 * (layer + head)
    assert attention_flops(wide, 100, upper) == attention_flops(wide, 100) * (3 * 2 + 6) / 24
    assert matmul_flops(wide, "lora", range(4)) == matmul_flops(wide, "lora")
    both = matmul_flops(wide, "lora", upper) + attention_flops(wide, 100, upper)
    assert train_flops(wide, "lora", 100, upper) == both


def test_hand_count():
    small = DecoderConfig(
        vocab_size=100, hidden_size=16, intermediate_size=32, num_layers=3,
        num_heads=4, num_kv_heads=2, head_dim=8,
    )  # fmt: skip
    q, k, v, o = 16 * 32, 16 * 16, 16 * 16, 32 * 16
    count = 3 * (q + k + v + o + 3 * 16 * 32) + 100 * 16
    assert matmul_parameters(small) == count
    assert matmul_flops(small, "lora") == 4 * count
    assert matmul_flops(small, "full") == 6 * count
    untied = dataclasses.replace(small, tie_word_embeddings=False)
    assert matmul_parameters(untied) == count  # the lookup is no product
    headless = dataclasses.replace(small, headless=True)
    assert matmul_parameters(headless) == count - 100 * 16
    assert attention_flops(small, 64) == 6 * 3 * 64 * 4 * 8
    with pytest.raises(ValueError, match="'half': expected 'lora' or 'full'"):
        matmul_flops(small, "half")


@pytest.mark.parametrize(("length", "window"), [(256, None), (256, 64), (256, 300), (100, 100)])
def test_attention_counts_the_pairs(length, window):
    """All pairs of a causal (windowed) segment, 6 products of 2·heads·head_dim each."""
    config = DecoderConfig(
        vocab_size=8, num_layers=1, num_heads=4, head_dim=8,
        sliding_window=window or 0, sliding_layers=(window is not None,),
    )  # fmt: skip
    pairs = sum(
        1 for i in range(length) for j in range(i + 1) if window is None or i - j < window
    )
    counted = 6 * 2 * 4 * 8 * pairs / length
    assert attention_flops(config, length) == pytest.approx(counted, rel=2 / (window or length))


def test_a_packed_row_is_the_mean_over_its_tokens():
    config = DecoderConfig(vocab_size=8)
    segments = [10, 30, 60]
    apart = sum(n * attention_flops(config, n) for n in segments) / sum(segments)
    mean = sum(n * n for n in segments) / sum(segments)
    assert attention_flops(config, mean) == pytest.approx(apart)


def test_chips_by_name_and_by_device_kind():
    assert find_chip("H100").name == "h100"
    assert find_chip("NVIDIA H200").hbm_bytes == 141 * 10**9
    assert find_chip("TPU v5 lite").name == "v5e"
    assert find_chip("TPU v5").name == "v5p"
    names = [n.lower() for chip in CHIPS for n in (chip.name, *chip.kinds)]
    assert len(names) == len(set(names))
    for unknown in ("h1000", "cpu", "", "TPU v5 litee"):
        with pytest.raises(ValueError, match=r"known are a100-40 \(.*v7x \(TPU7x\): give one"):
            find_chip(unknown)


def test_it_needs_no_jax():
    code = (
        "import sys; from alignuser_jax.training import flops; assert 'jax' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
