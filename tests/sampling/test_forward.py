"""The engine's forward pass is the decoder's, whatever is in the cache beyond."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from alignuser_jax.model import init_cache
from alignuser_jax.sampling.forward import forward


def test_chunks_and_steps_equal_one_pass_without_a_cache(decoder):
    rng = np.random.default_rng(5)  # some seeds have a token that multiplies rounding errors
    rows, length, slots = 3, 100, 192  # blocks of 64: two of three are read
    tokens = rng.integers(0, decoder.config.vocab_size, (rows, length)).astype(np.int32)
    scale = np.array([1, 0, 0.5], np.float32)
    order = np.tile(np.arange(length, dtype=np.int32), (rows, 1))
    expected, _ = jax.jit(lambda t: decoder(t, order, lora_scale=scale))(tokens)
    graph, state = nnx.split(decoder)

    @jax.jit
    def step(state, tokens, start, cache, valid):
        positions = start + jnp.arange(tokens.shape[1], dtype=jnp.int32)
        positions = jnp.tile(positions, (rows, 1))
        model = nnx.merge(graph, state)
        return forward(model, tokens, positions, np.arange(rows), cache, valid, scale)

    cache = jax.tree.map(lambda a: a + 7.0, init_cache(decoder.config, rows, slots))
    for start, stop in [(0, 32), (32, 64), (64, 96), *((t, t + 1) for t in range(96, length))]:
        valid = np.ones((rows, stop - start), bool)
        hidden, cache = step(state, tokens[:, start:stop], np.int32(start), cache, valid)
        np.testing.assert_allclose(hidden, expected[:, start:stop], atol=2e-5)
    before = jax.tree.map(np.asarray, cache)
    _, cache = step(state, tokens[:, :32], np.int32(0), cache, np.zeros((rows, 32), bool))
    jax.tree.map(np.testing.assert_array_equal, cache, before)


def test_a_row_keeps_its_bits_when_a_neighbour_reads_further(decoder):
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, decoder.config.vocab_size, (2, 16)).astype(np.int32)
    graph, state = nnx.split(decoder)
    step = jax.jit(lambda s, *a: forward(nnx.merge(graph, s), *a, jnp.ones(2)))
    cache = jax.tree.map(
        lambda a: jnp.asarray(rng.normal(size=a.shape), a.dtype),
        init_cache(decoder.config, 2, 256),
    )
    results = []
    for neighbour in (0, 60, 200):
        start = np.array([[40], [neighbour]], np.int32)
        positions = start + np.arange(16, dtype=np.int32)
        valid = np.ones((2, 16), bool)
        hidden, _ = step(state, tokens, positions, np.arange(2), cache, valid)
        results.append(np.asarray(hidden[0]))
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])
