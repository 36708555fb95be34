"""A model that gives no numbers for some prompt harms nobody who comes after it left."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from alignuser_jax.model import DecoderConfig, abstract_decoder
from alignuser_jax.records import Request
from alignuser_jax.sampling import Engine, generate
from tests.sampling.requests import GEOMETRY, SYSTEM, ask, result, talk

SMALL = replace(GEOMETRY, pages=16, steps=4)


@pytest.fixture
def engine(tokenizer):
    """The embedding of "@" is infinite; that token is never drawn."""
    shape = dict(hidden_size=32, intermediate_size=64, num_layers=2, num_heads=4)
    config = DecoderConfig(
        vocab_size=704, **shape, num_kv_heads=2, head_dim=8, tie_word_embeddings=False
    )
    graph, state = nnx.split(abstract_decoder(config))
    rng, poison = np.random.default_rng(3), tokenizer.encode("@")[-1]

    def fill(path, leaf):
        name = jax.tree_util.keystr(path)
        spread = 0.8 if "embedding" in name else 0.2
        values = rng.normal(float("scale" in name), spread, leaf.shape).astype(np.float32)
        if name == "['embedding'].value":
            values[poison] = np.inf
        return jnp.asarray(values)

    return Engine(
        nnx.merge(graph, jax.tree_util.tree_map_with_path(fill, state)), tokenizer, SMALL
    )


@pytest.mark.parametrize("rounds", [1, 2, 4])
def test_what_left_early_spoils_no_pages(engine, rounds):
    engine.warm_up()
    healthy = [ask(n, max_tokens=30) for n in range(1, 9)]
    expected = [result(c) for c in generate(engine, healthy)]
    bad = Request(talk(SYSTEM, "film @ good " * 6), "test", max_tokens=60, temperature=0.0)
    (failed,) = generate(engine, [bad])
    assert "not finite" in failed.error
    generate(engine, healthy[:1])
    compiled = engine.compilations
    tickets = [engine.submit(replace(bad, key=n)) for n in range(3)]
    for _ in range(rounds):
        engine.poll()
    for ticket in tickets:
        engine.cancel(ticket)
    assert [result(c) for c in generate(engine, healthy)] == expected
    assert engine.compilations == compiled
