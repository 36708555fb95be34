"""A small decoder with busy adapters, its configuration and some tokens."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax.numpy as jnp
import numpy as np
import pytest

from alignuser_jax.model import DecoderConfig, LoraConfig, init_decoder
from tests.model.model_helpers import with_random_b


@pytest.fixture(scope="session")
def config() -> DecoderConfig:
    return DecoderConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=10,
        rope_theta=12_345.0,
    )


@pytest.fixture(scope="session")
def decoder(config):
    return with_random_b(init_decoder(config, LoraConfig(rank=3, alpha=6.0), seed=1))


@pytest.fixture(scope="session")
def tokens(config):
    return jnp.asarray(
        np.random.default_rng(0).integers(0, config.vocab_size, (3, 24)), jnp.int32
    )
