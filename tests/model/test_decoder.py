from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignuser_jax.model import (
    LoraConfig,
    count_parameters,
    init_cache,
    init_decoder,
    merge,
    split,
    unstack,
)
from alignuser_jax.model.attention import attend, attend_causal
from alignuser_jax.model.contract import contract
from tests.model.model_helpers import logits, positions_like


def test_packed_rows_equal_separate_rows(decoder, tokens):
    a, b = tokens[0, :9], tokens[1, :15]
    packed = jnp.concatenate([a, b])[None]
    positions = jnp.concatenate([jnp.arange(9), jnp.arange(15)])[None].astype(jnp.int32)
    segments = jnp.asarray([[1] * 9 + [2] * 15], jnp.int32)
    both = logits(decoder, packed, positions, segment_ids=segments)[0]
    np.testing.assert_allclose(both[:9], logits(decoder, a[None])[0], atol=1e-5)
    np.testing.assert_allclose(both[9:], logits(decoder, b[None])[0], atol=1e-5)
    leaking = logits(decoder, packed, positions)[0]
    assert np.abs(leaking[9:] - both[9:]).max() > 1e-2


@pytest.mark.parametrize("windows", [None, (5, None), (12, 12)])
def test_a_reach_of_the_longest_segment_changes_nothing(config, tokens, windows):
    if windows is not None:
        sliding = {"sliding_window": max(w or 0 for w in windows)}
        config = replace(
            config, sliding_layers=tuple(w is not None for w in windows), **sliding
        )
    decoder = init_decoder(config)
    segments = jnp.broadcast_to(jnp.asarray([1] * 9 + [2] * 15, jnp.int32), tokens.shape)
    whole = logits(decoder, tokens, segment_ids=segments)
    enough = logits(decoder, tokens, segment_ids=segments, reach=15)
    np.testing.assert_allclose(whole, enough, atol=1e-5)
    short = logits(decoder, tokens, segment_ids=segments, reach=3)
    assert np.abs(short[:, 12:] - whole[:, 12:]).max() > 1e-2
    np.testing.assert_allclose(short[:, :3], whole[:, :3], atol=1e-5)


def test_a_segment_and_a_row_do_not_feel_their_neighbours(decoder, tokens):
    segments = jnp.broadcast_to(jnp.asarray([1] * 9 + [2] * 15, jnp.int32), tokens.shape)
    before = logits(decoder, tokens, segment_ids=segments)
    after = logits(decoder, tokens.at[:, :9].set(5).at[2].set(7), segment_ids=segments)
    assert np.array_equal(before[:2, 9:], after[:2, 9:])
    assert not np.array_equal(before[2, 9:], after[2, 9:])
    turned = logits(decoder, tokens[::-1], segment_ids=segments)
    assert np.array_equal(turned[::-1], before)


def test_no_token_sees_a_later_one(decoder, tokens):
    before = logits(decoder, tokens)
    after = logits(decoder, tokens.at[:, 20:].set(3))
    assert np.array_equal(before[:, :20], after[:, :20])
    assert not np.array_equal(before[:, 20:], after[:, 20:])


def test_causal_blocks_equal_one_product():
    random = np.random.default_rng(0)
    shapes = ((2, 300, 4, 8), (2, 2, 300, 8), (2, 2, 300, 8))
    q, k, v = (jnp.asarray(random.normal(size=shape), jnp.float32) for shape in shapes)
    segments = jnp.asarray([[1] * 140 + [2] * 160, [1] * 300])
    same = np.asarray(segments[:, :, None] == segments[:, None])
    mask = np.tril(np.ones((300, 300), bool)) & same
    whole, blocks = (
        jax.jit(attend)(q, k, v, mask),
        jax.jit(attend_causal)(q, k, v, segment_ids=segments),
    )
    np.testing.assert_allclose(whole, blocks, atol=1e-6)
    scores = np.asarray(q[1, :, 3]) @ np.asarray(k[1, 1]).T * 8**-0.5
    weights = np.where(mask[1], np.exp(scores), 0)  # by hand: row 1, head 3 of key head 1
    by_hand = weights / weights.sum(1, keepdims=True) @ np.asarray(v[1, 1])
    np.testing.assert_allclose(whole[1, :, 3], by_hand, atol=1e-6)


@pytest.fixture(scope="module", params=["stacked", "unstacked"])
def cached(request, decoder):
    """`(cache, tokens, positions, valid) -> logits, cache`, jitted, for both layouts."""
    graphdef, lora, base = split(unstack(decoder) if request.param == "unstacked" else decoder)

    @jax.jit
    def step(cache, tokens, positions, valid):
        model = merge(graphdef, lora, base)
        hidden, cache = model(tokens, positions, cache=cache, valid=valid)
        return model.logits(hidden), cache

    return step


def test_cached_equals_uncached_with_ragged_rows(cached, decoder, config, tokens):
    """Chunks of 8, the last one part filled, then single tokens; one row always behind."""
    expected, lengths = logits(decoder, tokens), np.asarray([24, 21, 13])
    cache, done = init_cache(config, 3, 40), np.zeros(3, int)
    for width in (8, 8, 1, 1, 1, 1, 1, 1, 1, 1):
        at = done[:, None] + np.arange(width)
        valid = at < np.minimum(lengths, done.max() + width)[:, None]
        fed = jnp.where(valid, np.take_along_axis(np.asarray(tokens), at % 24, 1), 0)
        got, cache = cached(cache, fed, jnp.asarray(at, jnp.int32), jnp.asarray(valid))
        for row in range(3):
            n = valid[row].sum()
            want = expected[row, done[row] : done[row] + n]
            np.testing.assert_allclose(got[row, :n], want, atol=2e-5)
        done = done + valid.sum(1)
    assert list(done) == list(lengths)
    written = np.abs(np.asarray(cache.k[1])).sum((1, 3)) > 0  # [B, S]
    assert [row.sum() for row in written] == list(lengths)


def test_tokens_that_are_invalid_or_beyond_the_cache_are_not_written(cached, config, tokens):
    cache = init_cache(config, 3, 40)
    _, cache = cached(
        cache, tokens[:, :8], positions_like(tokens[:, :8]), jnp.ones((3, 8), bool)
    )
    valid = jnp.asarray([[True] * 8, [False] * 8, [True] * 8])
    _, after = cached(cache, tokens[:, :8], positions_like(tokens[:, :8], 36), valid)
    for old, new in zip(jax.tree.leaves(cache), jax.tree.leaves(after), strict=True):
        assert np.array_equal(old[1], new[1])
        assert np.array_equal(old[:, :, :36], new[:, :, :36])
        assert np.abs(new[0, :, 36:]).min() > 0


@pytest.mark.parametrize("width", [1, 8])
def test_a_cached_row_is_bit_identical_among_other_neighbours(cached, config, tokens, width):
    """Other content and other lengths in the other rows, and another row index."""

    def run(rows, starts):
        cache = init_cache(config, 4, 48)
        first = rows[:, :16]
        valid = jnp.arange(16) < jnp.asarray(starts)[:, None]
        _, cache = cached(cache, first, positions_like(first), valid)
        at = jnp.asarray(starts, jnp.int32)[:, None] + jnp.arange(width, dtype=jnp.int32)
        return np.asarray(cached(cache, rows[:, :width], at, jnp.ones((4, width), bool))[0])

    mine, a, b = tokens
    alone = run(jnp.stack([mine, a, b, a]), [8, 8, 8, 8])[0]
    assert np.array_equal(alone, run(jnp.stack([mine, b, a, b]), [8, 16, 3, 0])[0])
    assert np.array_equal(alone, run(jnp.stack([a, b, b, mine]), [16, 1, 16, 8])[3])


def test_remat_and_unroll_change_no_gradient(decoder, tokens):
    graphdef, lora, base = split(decoder)

    @partial(jax.jit, static_argnums=(1, 2))
    def gradient(lora, remat, unroll):
        def loss(lora):
            hidden, _ = merge(graphdef, lora, base)(
                tokens, positions_like(tokens), remat=remat, unroll=unroll
            )
            return (hidden**2 * jnp.arange(32)).mean()

        return jax.tree.leaves(jax.grad(loss)(lora))

    plain = gradient(lora, "none", 1)
    assert all(np.abs(a).max() > 0 for a in plain)
    for other in (gradient(lora, "dots", 2), gradient(lora, "full", 1)):
        for a, b in zip(plain, other, strict=True):
            assert np.abs(a - b).max() <= 1e-5 * np.abs(a).max()
    # What is not kept is computed again: of "dots" no product.
    products = {
        remat: str(jax.make_jaxpr(gradient, (1, 2))(lora, remat, 1)).count("dot_general[")
        for remat in ("none", "dots", "full")
    }
    assert products["none"] == products["dots"] < products["full"] - 9, products


def test_unstacked_layers_compute_the_same(decoder, tokens):
    graphdef, lora, base = split(decoder)
    again = unstack(decoder)
    assert count_parameters(again) == count_parameters(decoder)
    np.testing.assert_allclose(logits(again, tokens), logits(decoder, tokens), atol=1e-5)
    assert split(decoder)[0] == graphdef  # the original is untouched


def test_contract_accumulates_bf16_in_f32_and_differentiates():
    x = jnp.full((1, 1, 4096), 1.0, jnp.bfloat16)
    w = jnp.full((4096, 1), 1.0 / 256, jnp.bfloat16)
    assert contract("btd,df->btf", x, w).item() == 16.0
    dx, dw = jax.grad(lambda x, w: contract("btd,df->btf", x, w, jnp.float32).sum(), (0, 1))(
        x, w
    )
    assert dx.dtype == dw.dtype == jnp.bfloat16
    assert dx.shape == x.shape and dw.shape == w.shape
    assert float(dx[0, 0, 0]) == 1 / 256 and float(dw[0, 0]) == 1.0


def test_bf16_stays_near_f32(config, tokens):
    exact = logits(init_decoder(config, seed=2), tokens)
    rough = logits(init_decoder(config, seed=2, dtype=jnp.bfloat16), tokens)
    assert rough.dtype == np.float32
    assert 0 < np.abs(exact - rough).max() < 0.1


def test_a_seed_names_the_weights(config):
    same, again, other = (init_decoder(config, LoraConfig(rank=2), seed) for seed in (0, 0, 5))
    a, b = (jax.tree.leaves(split(d)[1:]) for d in (same, again))
    assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
    assert not np.array_equal(same.embedding[...], other.embedding[...])
    q = np.asarray(same.layers.q.kernel[...])
    assert not np.array_equal(q[0], q[1])  # layers differ
    assert abs(q.std() * config.hidden_size**0.5 - 1) < 0.1
    assert np.abs(same.layers.q.a[...]).max() <= config.hidden_size**-0.5


def test_wrong_calls_say_what_is_wrong(decoder, config, tokens):
    positions, cache = positions_like(tokens), init_cache(config, 3, 32)
    with pytest.raises(
        ValueError, match="segment_ids, lengths and reach are for calls without a cache"
    ):
        decoder(tokens, positions, segment_ids=tokens, cache=cache)
    with pytest.raises(ValueError, match="valid for calls with"):
        decoder(tokens, positions, valid=tokens > 0)
    with pytest.raises(ValueError, match="remat='all'"):
        decoder(tokens, positions, remat="all")
