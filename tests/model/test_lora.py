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
from alignuser_jax.model.decoder import Execution
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


# --- adapters on the upper layers only ----------------------------------------------------


def upper_and_all(config, layers, num_layers=5):
    """A decoder with busy adapters on the upper layers, and one with adapters on all that
    computes the same, since those of its lower layers are 0."""
    config = dataclasses.replace(config, num_layers=num_layers)
    lora = LoraConfig(rank=3, alpha=6.0, layers=layers)
    upper = with_random_b(init_decoder(config, lora, seed=4))
    whole = init_decoder(config, dataclasses.replace(lora, layers=None), seed=4)
    graphdef, low, base = split(whole)
    zeros = jax.tree.map(
        lambda wide, some: jnp.zeros_like(wide).at[-layers:].set(some), low, split(upper)[1]
    )
    return upper, merge(graphdef, zeros, base)


@pytest.mark.parametrize("layers", [1, 2, 5])
def test_upper_layers_compute_what_zeros_below_do(config, tokens, layers):
    upper, whole = upper_and_all(config, layers)
    expected = logits(whole, tokens)
    np.testing.assert_allclose(logits(upper, tokens), expected, atol=1e-5)
    assert count_parameters(split(upper)[1]) * 5 == count_parameters(split(whole)[1]) * layers
    assert count_parameters(split(upper)[2]) == count_parameters(split(whole)[2])
    for remat in ("dots", "full"):
        again = logits(upper, tokens, execution=Execution(remat=remat, unroll=2))
        np.testing.assert_allclose(again, expected, atol=1e-5)
    with_list = unstack(upper)
    assert len(list(with_list.blocks())) == 5 and with_list.lower is None
    np.testing.assert_allclose(logits(with_list, tokens), expected, atol=1e-5)
    merged = merge_lora(upper)
    assert split(merged)[0] == split(init_decoder(merged.config))[0]
    np.testing.assert_allclose(logits(merged, tokens), expected, atol=3e-5)


def test_upper_layers_slide_as_the_whole_model_does(config, tokens):
    slides = (True, False, True, False, True)
    config = dataclasses.replace(config, num_layers=5, sliding_window=3, sliding_layers=slides)
    upper, whole = upper_and_all(config, 2)
    expected = logits(whole, tokens)
    np.testing.assert_allclose(logits(upper, tokens), expected, atol=1e-5)


def gradient(decoder, tokens, remat="none"):
    """The jitted gradient of a loss in the adapters."""
    graphdef, _, base = split(decoder)

    def loss(lora):
        model = merge(graphdef, lora, base)
        execution = Execution(remat=remat, unroll=model.config.num_layers)
        hidden = model(tokens, positions_like(tokens), execution=execution)
        return (hidden**2 * jnp.arange(32)).sum()

    return jax.jit(jax.grad(loss))


def test_the_gradient_of_upper_layers_is_that_of_the_whole_model(config, tokens):
    upper, whole = upper_and_all(config, 2)
    some = gradient(upper, tokens)(split(upper)[1])
    every = gradient(whole, tokens)(split(whole)[1])
    for a, b in zip(jax.tree.leaves(some), jax.tree.leaves(every), strict=True):
        np.testing.assert_allclose(a, b[-2:], rtol=1e-3, atol=1e-5 * np.abs(b).max())


@pytest.mark.parametrize("remat", ["none", "full"])
def test_the_backward_pass_stops_below_the_adapted_layers(config, tokens, remat):
    """FLOPs that the compiler counts, with every layer unrolled since it counts a loop once."""

    def flops(layers, num_layers=4):
        shape = dataclasses.replace(config, num_layers=num_layers, vocab_size=16)
        decoder = init_decoder(shape, LoraConfig(rank=1, layers=layers))
        some = jnp.minimum(tokens, 15)
        lowered = gradient(decoder, some, remat).lower(split(decoder)[1])
        return lowered.compile().cost_analysis()["flops"]

    every, upper = flops(None), flops(2)
    both_ways = every - flops(None, 3)  # of one layer
    forward = upper - flops(2, 3)  # of one more layer that is not adapted
    assert forward < 0.45 * both_ways
    assert every - upper == pytest.approx(2 * (both_ways - forward), rel=0.02)


def test_more_adapted_layers_than_there_are_is_refused(config):
    with pytest.raises(ValueError, match="lora.layers is 3, but the model has 2 layers"):
        init_decoder(config, LoraConfig(rank=1, layers=3))
    for wrong in (0, -2):
        with pytest.raises(ValueError, match=f"lora.layers is {wrong}: expected None"):
            LoraConfig(rank=1, layers=wrong)
    assert init_decoder(config, LoraConfig(rank=0, layers=3)).lower is None  # no adapters
