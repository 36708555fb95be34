"""A tiny random decoder and its tokenizer."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from alignuser_jax.language import train_sentencepiece
from alignuser_jax.model import DecoderConfig, LoraConfig, abstract_decoder
from alignuser_jax.sampling import ServerConfig, ServerGenerator
from alignuser_jax.sampling.servers.transport import TransportConfig
from tests.hostile_server import HostileServer
from tests.sampling.engine.uncached import Reference

TEXT = """You browse a list of movies. Answer with one line for each item.
1 [WATCH] 2 [SKIP] 3 4 RATING: 1 2 3 4 5 6 7 8 9 10
BEST-ACTION: [NEXT_PAGE] [EXIT] because the film is a good comedy from 1999"""


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    return train_sentencepiece([TEXT] * 2, 700, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def decoder(tokenizer):
    assert tokenizer.vocab_size < 704
    config = DecoderConfig(
        vocab_size=704,  # wider than the tokenizer, whatever the prompts add to that
        hidden_size=32,
        intermediate_size=64,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        tie_word_embeddings=True,
    )
    graph, state = nnx.split(abstract_decoder(config, LoraConfig(rank=2)))
    rng = np.random.default_rng(3)

    def fill(path, leaf):
        name = jax.tree_util.keystr(path)
        spread = 0.8 if "embedding" in name else 0.2  # opinions strong enough to differ
        values = rng.normal(float("scale" in name), spread, leaf.shape)
        return jnp.asarray(values.astype(leaf.dtype))

    return nnx.merge(graph, jax.tree_util.tree_map_with_path(fill, state))


@pytest.fixture(scope="session")
def reference(decoder, tokenizer):
    return Reference(decoder, tokenizer)


@pytest.fixture
def hostile(monkeypatch):
    """Makes servers that are stopped after the test."""
    monkeypatch.setenv("TEST_KEY", "sk-secret")
    servers = []

    def make(*arguments, **options):
        servers.append(HostileServer(*arguments, **options))
        return servers[-1]

    yield make
    for server in servers:
        server.stop()


@pytest.fixture
def connect():
    generators = []

    def make(*servers, structured="none", model="m", prices=(0.0, 0.0), extra=(), **options):
        urls = tuple(getattr(server, "url", server) for server in servers)
        options = {"backoff_seconds": 0.02, "api_key_env": "TEST_KEY"} | options
        generators.append(
            ServerGenerator(
                ServerConfig(
                    model,
                    TransportConfig(urls, **options),
                    structured,
                    adapters={"policy": "m-policy"},
                    extra=dict(extra),
                    prompt_price=prices[0],
                    generated_price=prices[1],
                )
            )
        )
        return generators[-1]

    yield make
    for generator in generators:
        generator.close()
