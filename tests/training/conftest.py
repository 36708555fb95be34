"""Fixtures of the training tests: the tiny task as shards, its tokenizer, small decoders."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from alignuser_jax.language.tokenizer import train_sentencepiece
from alignuser_jax.model import DecoderConfig, LoraConfig, abstract_decoder
from alignuser_jax.shards import write_shards
from tests.training.tiny_task import SOURCE, examples


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    texts = [m.content for e in examples(20) for m in e.messages]
    return train_sentencepiece(texts, 1000, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    directory = tmp_path_factory.mktemp("shards")
    write_shards(examples(24), directory, manifest=SOURCE, shard_size=10)
    return directory


@pytest.fixture(scope="session")
def validation(tmp_path_factory):
    directory = tmp_path_factory.mktemp("validation")
    write_shards(examples(5, start=100), directory, manifest=SOURCE)
    return directory


@pytest.fixture(scope="session")
def make_decoder(tokenizer):
    """Small random decoders, drawn by NumPy so that nothing needs compiling."""

    def make(rank=0, dropout=0.0, tied=True, layers=2, adapted=None):
        config = DecoderConfig(
            tokenizer.vocab_size, hidden_size=16, intermediate_size=32, num_layers=layers,
            num_heads=2, num_kv_heads=1, head_dim=8, tie_word_embeddings=tied,
        )  # fmt: skip
        lora = LoraConfig(rank=rank, alpha=8, dropout=dropout, layers=adapted)
        graphdef, state = nnx.split(abstract_decoder(config, lora))
        rng = np.random.default_rng(0)

        def draw(path, leaf):
            name = jax.tree_util.keystr(path)
            scale = 0.0 if "'b'" in name else leaf.shape[-2] ** -0.5 if leaf.ndim > 1 else 0.1
            values = rng.normal(size=leaf.shape) * scale + ("scale" in name)
            return jnp.asarray(values, leaf.dtype)

        return nnx.merge(graphdef, jax.tree.map_with_path(draw, state))

    return make
