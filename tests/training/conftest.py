"""Fixtures of the training tests: the tiny task as shards, its tokenizer, small decoders."""

import pytest
from tiny_task import SOURCE, examples

from alignuser_jax.language.tokenizer import train_sentencepiece
from alignuser_jax.model import DecoderConfig, LoraConfig, init_decoder
from alignuser_jax.training.records_io import write_shards


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
    def make(rank=0, dropout=0.0, tied=True):
        config = DecoderConfig(
            tokenizer.vocab_size, hidden_size=16, intermediate_size=32, num_layers=2,
            num_heads=2, num_kv_heads=1, head_dim=8, tie_word_embeddings=tied,
        )  # fmt: skip
        return init_decoder(config, LoraConfig(rank=rank, alpha=8, dropout=dropout))

    return make
