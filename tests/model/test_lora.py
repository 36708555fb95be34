import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignuser_jax.model import (
    LoraConfig,
    count_parameters,
    init_decoder,
    merge,
    merge_lora,
    split,
    unstack,
)
from tests.model.model_helpers import logits, positions_like, with_random_b


def test_fresh_adapters_change_nothing_and_still_have_a_gradient(config, tokens):
    adapted = init_decoder(config, LoraConfig(rank=2), seed=4)
    plain = init_decoder(config, seed=4)
    assert np.array_equal(logits(adapted, tokens), logits(plain, tokens))
    graphdef, lora, base = split(adapted)

    def loss(lora):
        model = merge(graphdef, lora, base)
        return (model(tokens, positions_like(tokens)) ** 2 * jnp.arange(32)).sum()

    for path, gradient in jax.tree.leaves_with_path(jax.jit(jax.grad(loss))(lora)):
        is_b = "'b'" in jax.tree_util.keystr(path)
        assert (np.abs(gradient).max() > 0) == is_b, path  # A's passes through B = 0


@pytest.mark.parametrize("rslora", [False, True])
def test_merging_equals_the_adapter_on_a_subset_of_targets(config, tokens, rslora):
    lora = LoraConfig(rank=3, alpha=5.0, targets=("q", "o", "down"), rslora=rslora)
    adapted = with_random_b(init_decoder(config, lora, seed=4))
    merged = merge_lora(adapted)
    assert merged.lora.rank == 0 and count_parameters(split(merged)[1]) == 0
    np.testing.assert_allclose(logits(merged, tokens), logits(adapted, tokens), atol=3e-5)
    graphdef, _, _ = split(init_decoder(config))
    assert split(merged)[0] == graphdef  # rank 0 is the plain structure
    c = config
    queries = c.num_heads * c.head_dim
    ins_and_outs = 2 * (c.hidden_size + queries) + c.intermediate_size + c.hidden_size
    assert count_parameters(split(adapted)[1]) == c.num_layers * 3 * ins_and_outs


def test_merging_leaves_the_adapted_decoder_alone(decoder, tokens):
    before = logits(decoder, tokens)
    merge_lora(decoder)
    assert np.array_equal(before, logits(decoder, tokens))


def test_merging_comes_before_unstacking(decoder):
    with pytest.raises(ValueError, match="call it before unstack"):
        merge_lora(unstack(decoder))


def test_scale_is_alpha_over_rank_or_its_root():
    assert LoraConfig(rank=16, alpha=32.0).scale == 2.0
    assert LoraConfig(rank=16, alpha=32.0, rslora=True).scale == 8.0
    assert LoraConfig().scale == 0.0


def test_adapters_switch_off_per_row(decoder, config, tokens):
    base = logits(init_decoder(config, seed=1), tokens)
    on = logits(decoder, tokens)
    assert np.abs(on - base).max() > 1e-2
    np.testing.assert_allclose(logits(decoder, tokens, adapter=0), base, atol=1e-6)
    mixed = logits(decoder, tokens, adapter=jnp.asarray([1, 0, 1]))
    np.testing.assert_allclose(mixed[[0, 2]], on[[0, 2]], atol=1e-6)
    np.testing.assert_allclose(mixed[1], base[1], atol=1e-6)


def test_dropout_needs_a_key_and_is_named_by_it(config, tokens):
    lora = LoraConfig(rank=3, alpha=6.0, dropout=0.5)
    dropping = with_random_b(init_decoder(config, lora, seed=1))
    steady = with_random_b(init_decoder(config, dataclasses.replace(lora, dropout=0.0), seed=1))
    assert np.array_equal(logits(dropping, tokens), logits(steady, tokens))
    one, again, other = (
        logits(dropping, tokens, dropout_key=jax.random.key(i)) for i in (0, 0, 1)
    )
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


def test_wrong_adapters_are_refused():
    with pytest.raises(ValueError, match=r"unknown LoRA targets \['lm_head'\]"):
        LoraConfig(rank=1, targets=("q", "lm_head"))
    with pytest.raises(ValueError, match="rank is -1: expected 0"):
        LoraConfig(rank=-1)
