"""The engine's forward pass is the decoder's, whatever is in the cache beyond."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from alignuser_jax.sampling.engine.forward import (
    TokenBlock,
    cache_dtype,
    finish_last_layer,
    forward,
    forward_prompt,
    forward_strips,
    init_pages,
    pages_to_strips,
    strips_to_pages,
)
from tests.xla import AS_USERS

PAGE = 32


def test_the_cache_has_the_decoders_type_but_on_a_cpu():
    assert cache_dtype(jnp.bfloat16, "gpu") == cache_dtype("bfloat16", "tpu") == jnp.bfloat16
    assert cache_dtype(jnp.bfloat16, "cpu") == cache_dtype(jnp.float32, "gpu") == jnp.float32


def pool_and_tables(decoder, rows, slots, seed=0):
    """A pool and where the pages of `rows` rows of `slots` positions lie in it, shuffled."""
    pages = rows * slots // PAGE
    order = 1 + np.random.default_rng(seed).permutation(pages).astype(np.int32)
    return init_pages(decoder.config, pages, PAGE, decoder.dtype), order.reshape(rows, -1)


def test_chunks_and_steps_equal_one_pass_without_a_cache(decoder):
    rng = np.random.default_rng(5)  # some seeds have a token that multiplies rounding errors
    rows, length, slots = 3, 100, 192  # blocks of 64: two of three are read
    tokens = rng.integers(0, decoder.config.vocab_size, (rows, length)).astype(np.int32)
    adapter = np.array([1, 0, 1], np.int32)
    order = np.tile(np.arange(length, dtype=np.int32), (rows, 1))
    whole = jax.jit(lambda t: decoder(t, order, adapter=adapter), compiler_options=AS_USERS)
    expected = whole(tokens)
    graph, state = nnx.split(decoder)
    cache, table = pool_and_tables(decoder, rows, slots)

    @partial(jax.jit, compiler_options=AS_USERS)
    def step(state, tokens, start, cache, valid):
        positions = start + jnp.arange(tokens.shape[1], dtype=jnp.int32)
        positions = jnp.tile(positions, (rows, 1))
        model = nnx.merge(graph, state)
        return forward(model, TokenBlock(tokens, positions, valid, adapter), table, cache)

    cache = jax.tree.map(lambda a: a + 7.0, cache)
    for start, stop in [(0, 32), (32, 64), (64, 96), *((t, t + 1) for t in range(96, length))]:
        valid = np.ones((rows, stop - start), bool)
        hidden, cache = step(state, tokens[:, start:stop], np.int32(start), cache, valid)
        np.testing.assert_allclose(
            hidden, expected[:, start:stop], atol=2e-5 * np.abs(expected).max()
        )
    before = jax.tree.map(np.asarray, cache)
    _, cache = step(state, tokens[:, :32], np.int32(0), cache, np.zeros((rows, 32), bool))
    jax.tree.map(np.testing.assert_array_equal, cache, before)


def test_a_row_keeps_its_bits_when_a_neighbour_reads_further(decoder):
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, decoder.config.vocab_size, (2, 16)).astype(np.int32)
    graph, state = nnx.split(decoder)
    step = jax.jit(lambda s, *a: forward(nnx.merge(graph, s), *a))
    cache, table = pool_and_tables(decoder, 2, 256)
    cache = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape), a.dtype), cache)
    results = []
    for neighbour in (0, 60, 200):
        start = np.array([[40], [neighbour]], np.int32)
        positions = start + np.arange(16, dtype=np.int32)
        valid = np.ones((2, 16), bool)
        block = TokenBlock(tokens, positions, valid, np.ones(2, np.int32))
        hidden, _ = step(state, block, table, cache)
        results.append(np.asarray(hidden[0]))
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


def test_reading_and_finishing_equal_a_forward_in_any_pages(decoder):
    """What is left out of the last layer is not missed, and pages may come in any order."""
    rng = np.random.default_rng(2)
    tokens = rng.integers(0, decoder.config.vocab_size, (3, 32)).astype(np.int32)
    order = np.tile(np.arange(32, dtype=np.int32), (3, 1))
    valid, adapter = np.arange(32) < np.array([[32], [20], [7]]), np.ones(3, np.int32)
    last = np.array([[31], [19], [6]])
    graph, state = nnx.split(decoder)
    empty, table = pool_and_tables(decoder, 5, 64)
    table = table[[4, 0, 2]]
    block = TokenBlock(tokens, order, valid, adapter)

    @jax.jit
    def whole(state):
        model = nnx.merge(graph, state)
        return forward(model, block, table, empty)

    @jax.jit
    def halves(state):
        model = nnx.merge(graph, state)
        entering, cache = forward_prompt(model, block, table, empty)
        entering = jnp.take_along_axis(entering, last[..., None], axis=1)
        return finish_last_layer(model, entering, last, adapter, table, cache), cache

    (hidden, expected), (ends, cache) = whole(state), halves(state)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), cache, expected)
    np.testing.assert_allclose(
        ends, np.take_along_axis(hidden, last[..., None], axis=1), atol=2e-5
    )
    unused = np.setdiff1d(np.arange(len(cache.k[0])), table[:, 0])
    assert not np.asarray(cache.k[0])[unused].any()
    work = [jax.jit(f).lower(state).compile().cost_analysis()["flops"] for f in (whole, halves)]
    assert work[1] < 0.8 * work[0]  # the compiler does drop it


def test_steps_on_strips_equal_steps_in_pages(decoder):
    rng = np.random.default_rng(6)
    cache, table = pool_and_tables(decoder, 3, 64)
    cache = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape), a.dtype), cache)
    adapter, graph = np.array([1, 0, 1], np.int32), nnx.split(decoder)[0]
    start = np.array([[40], [33], [5]])
    tokens = rng.integers(0, decoder.config.vocab_size, (3, 6)).astype(np.int32)

    @jax.jit
    def steps(state, cache):
        model, strips, hidden = nnx.merge(graph, state), pages_to_strips(cache, table), []
        in_pages, along = cache, []
        for width in (1, 1, 4):
            first = sum(part.shape[1] for part in hidden)
            valid = np.arange(first, first + width) < np.array([[6], [6], [4]])
            positions = start + first + np.arange(width)
            block = TokenBlock(tokens[:, first : first + width], positions, valid, adapter)
            x, strips = forward_strips(model, block, strips)
            y, in_pages = forward(model, block, table, in_pages)
            hidden.append(x)
            along.append(y)
        order = np.arange(6)
        valid = order < np.array([[6], [6], [4]])
        copied = strips_to_pages(cache, strips, table, start + order, valid)
        return jnp.concatenate(hidden, 1), jnp.concatenate(along, 1), copied, in_pages

    x, y, copied, in_pages = steps(nnx.split(decoder)[1], cache)
    valid = np.arange(6) < np.array([[6], [6], [4]])
    np.testing.assert_allclose(x[valid], y[valid], atol=2e-5)
    for a, b, before in zip(*map(jax.tree.leaves, (copied, in_pages, cache)), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
        assert (a != before).sum() == np.prod(a.shape[1:]) / PAGE * 16  # the new tokens' alone
