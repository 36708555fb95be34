from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignuser_jax.model import (
    LoraConfig,
    count_parameters,
    init_decoder,
    merge,
    split,
    unstack,
)
from alignuser_jax.model.attention import RowLayout, attend, attend_causal
from alignuser_jax.model.contract import contract
from alignuser_jax.model.decoder import Execution
from tests.model.model_helpers import logits, positions_like


def test_packed_rows_equal_separate_rows(decoder, tokens):
    a, b = tokens[0, :9], tokens[1, :15]
    packed = jnp.concatenate([a, b])[None]
    positions = jnp.concatenate([jnp.arange(9), jnp.arange(15)])[None].astype(jnp.int32)
    segments = jnp.asarray([[1] * 9 + [2] * 15], jnp.int32)
    both = logits(decoder, packed, positions, layout=RowLayout(segments))[0]
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
    whole = logits(decoder, tokens, layout=RowLayout(segments))
    enough = logits(decoder, tokens, layout=RowLayout(segments), execution=Execution(reach=15))
    np.testing.assert_allclose(whole, enough, atol=1e-5)
    short = logits(decoder, tokens, layout=RowLayout(segments), execution=Execution(reach=3))
    assert np.abs(short[:, 12:] - whole[:, 12:]).max() > 1e-2
    np.testing.assert_allclose(short[:, :3], whole[:, :3], atol=1e-5)


def test_a_segment_and_a_row_do_not_feel_their_neighbours(decoder, tokens):
    segments = jnp.broadcast_to(jnp.asarray([1] * 9 + [2] * 15, jnp.int32), tokens.shape)
    before = logits(decoder, tokens, layout=RowLayout(segments))
    after = logits(decoder, tokens.at[:, :9].set(5).at[2].set(7), layout=RowLayout(segments))
    assert np.array_equal(before[:2, 9:], after[:2, 9:])
    assert not np.array_equal(before[2, 9:], after[2, 9:])
    turned = logits(decoder, tokens[::-1], layout=RowLayout(segments))
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
        jax.jit(attend_causal)(q, k, v, RowLayout(segments)),
    )
    np.testing.assert_allclose(whole, blocks, atol=1e-6)
    scores = np.asarray(q[1, :, 3]) @ np.asarray(k[1, 1]).T * 8**-0.5
    weights = np.where(mask[1], np.exp(scores), 0)  # by hand: row 1, head 3 of key head 1
    by_hand = weights / weights.sum(1, keepdims=True) @ np.asarray(v[1, 1])
    np.testing.assert_allclose(whole[1, :, 3], by_hand, atol=1e-6)


def test_a_list_of_layers_computes_what_the_stack_does(decoder, tokens):
    stacked, listed = logits(decoder, tokens), logits(unstack(decoder), tokens)
    np.testing.assert_allclose(stacked, listed, atol=1e-5)


def test_remat_and_unroll_change_no_gradient(decoder, tokens):
    graphdef, lora, base = split(decoder)

    @partial(jax.jit, static_argnums=(1, 2))
    def gradient(lora, remat, unroll):
        def loss(lora):
            execution = Execution(remat=remat, unroll=unroll)
            decoder = merge(graphdef, lora, base)
            hidden = decoder(tokens, positions_like(tokens), execution=execution)
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


def test_wrong_calls_say_what_is_wrong(decoder, tokens):
    with pytest.raises(ValueError, match="remat='all'"):
        Execution(remat="all")
    with pytest.raises(ValueError, match=r"segment_ids have shape \(2, 24\)"):
        logits(decoder, tokens, layout=RowLayout(tokens[:2]))
    with pytest.raises(ValueError, match="expected 0 .the base. to 1"):
        decoder(tokens, positions_like(tokens), adapter=2)
