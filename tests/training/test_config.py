"""Settings that cannot be are refused by name."""

import math

import pytest

from alignuser_jax.model import DecoderConfig, LoraConfig
from alignuser_jax.training.config import TrainConfig


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0),
        ("batch_size", -4),
        ("seq_len", 0),
        ("accumulation", 3),
        ("learning_rate", -1e-4),
        ("learning_rate", math.nan),
        ("final_lr_ratio", -0.1),
        ("warmup_ratio", 1.5),
        ("b1", 1.0),
        ("b2", -0.1),
        ("weight_decay", -1.0),
        ("clip_norm", 0.0),
        ("remat", "all"),
        ("attention", "flash"),
        ("eval_batches", 0),
        ("keep_checkpoints", 0),
        ("spike_nats", -1.0),
        ("mix", {"world_model": 0}),
        ("task_weights", {"world_model": -1.0}),
    ],
)
def test_a_training_refuses_nonsense(name, value):
    with pytest.raises(ValueError, match=f"^{name} is "):
        TrainConfig(**{"steps": 1, name: value})


@pytest.mark.parametrize(
    ("name", "value"), [("rank", -1), ("alpha", math.inf), ("dropout", 1.0), ("dropout", -0.5)]
)
def test_an_adapter_refuses_nonsense(name, value):
    with pytest.raises(ValueError, match=f"^{name} is "):
        LoraConfig(**{"rank": 2, name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("vocab_size", 0),
        ("num_layers", -1),
        ("head_dim", 31),
        ("num_kv_heads", 3),
        ("rope_theta", -1.0),
        ("model_type", "gpt"),
        ("eos_token_ids", (64,)),
    ],
)
def test_a_decoder_refuses_nonsense(name, value):
    with pytest.raises(ValueError, match=name):
        DecoderConfig(**{"vocab_size": 64, name: value})
