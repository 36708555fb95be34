"""Draws follow the distribution they are asked for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chisquare

from alignuser_jax.sampling.engine.sample import (
    SamplingParams,
    draw_alternative,
    draw_indices,
    draw_next_token,
    filter_probabilities,
    key_words,
    uniform,
)

draw, next_token = jax.jit(draw_indices), jax.jit(draw_next_token)
LOGITS = np.log(np.array([0.05, 0.4, 0.25, 0.2, 0.1], np.float32))


def keys(count, offset=0):
    words = np.stack([key_words(7_000_000_007 * (i + 1 + offset)) for i in range(count)])
    return jax.random.wrap_key_data(jnp.asarray(words))


def params(n, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    kinds = np.float32, np.int32, np.float32, np.float32
    values = temperature, top_k, top_p, min_p
    return SamplingParams(*(np.full(n, v, kind) for v, kind in zip(values, kinds, strict=True)))


def counts(temperature, top_p=1.0, n=4000, logits=LOGITS, **options):
    rows = jnp.tile(jnp.asarray(logits), (n, 1))
    drawn = draw(rows, params(n, temperature, top_p=top_p, **options), keys(n))
    return np.bincount(np.asarray(drawn), minlength=len(logits))


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_draws_fit_the_tempered_distribution(temperature):
    expected = np.exp(LOGITS.astype(float) / temperature)
    expected /= expected.sum()
    observed = counts(temperature, 1.0)
    assert chisquare(observed, expected * observed.sum()).pvalue > 1e-4


def test_top_p_keeps_the_smallest_sufficient_set():
    filtered = filter_probabilities(jnp.exp(LOGITS)[None], params(1, top_p=0.6))
    assert (filtered[0] > 0).tolist() == [False, True, True, False, False]
    observed = counts(1.0, 0.6)
    assert observed[[0, 3, 4]].sum() == 0
    expected = np.array([0.4, 0.25]) / 0.65 * observed.sum()
    assert chisquare(observed[[1, 2]], expected).pvalue > 1e-4


def test_top_k_and_min_p_leave_out_the_unlikely():
    """In the order in which vLLM and transformers apply them: top-p of what top-k left."""
    assert counts(1.0, top_k=2)[[0, 3, 4]].sum() == 0
    assert counts(1.0, min_p=0.45)[[0, 4]].sum() == 0  # .45 * .4 = .18
    both = counts(1.0, 0.6, top_k=3)  # .4 / .85 < .6, (.4 + .25) / .85 > .6
    assert both[[0, 3, 4]].sum() == 0 and both[[1, 2]].all()
    assert counts(1.0, 0.4, top_k=3)[1] == 4000  # .4 / .85 > .4
    tied = np.log(np.array([0.3, 0.2, 0.2, 0.2, 0.1], np.float32))
    assert (counts(1.0, top_k=2, logits=tied)[:4] > 0).all()


@pytest.mark.parametrize("size", [2, 255, 256, 257, 700])
def test_draws_over_many_entries_fit_and_never_take_what_cannot_be(size):
    """The running sums go by blocks of 256; nothing of weight 0 is ever taken."""
    rng = np.random.default_rng(size)
    p = rng.exponential(size=size) * (rng.random(size) < 0.7)
    p[[0, -1]] = 1.0, 0.0  # the last has no weight
    with np.errstate(divide="ignore"):
        observed = counts(1.0, n=20_000, logits=np.log(p).astype(np.float32))
    assert not observed[p == 0].any()
    some = p > 0
    expected = p[some] / p.sum() * observed.sum()
    assert chisquare(observed[some], expected).pvalue > 1e-4 if some.sum() > 1 else True


def test_a_row_does_not_depend_on_its_neighbours():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(8, 300)).astype(np.float32)
    temperature = np.array([0, 1, 0.7, 1, 1, 2, 0, 1], np.float32)
    top_p = np.array([1, 1, 0.9, 0.5, 1, 1, 1, 0.99], np.float32)
    top_k = np.array([0, 0, 5, 0, 1, 0, 0, 40], np.int32)
    min_p = np.array([0, 0.2, 0, 0, 0, 0.01, 0, 0], np.float32)
    row_keys = keys(8)
    together = np.asarray(
        draw(logits, SamplingParams(temperature, top_k, top_p, min_p), row_keys)
    )
    for i in range(8):
        others = np.roll(np.arange(8), i)
        mine = others == i
        alone = draw(
            np.where(mine[:, None], logits[others], 0),
            SamplingParams(
                np.where(mine, temperature[others], 0).astype(np.float32),
                np.where(mine, top_k[others], 0).astype(np.int32),
                np.where(mine, top_p[others], 1).astype(np.float32),
                np.where(mine, min_p[others], 0).astype(np.float32),
            ),
            row_keys[others],
        )
        assert together[i] == np.asarray(alone)[np.flatnonzero(others == i)[0]]


def test_the_next_token_obeys_edges_and_keeps_end_of_turn_for_them():
    logits = np.zeros((4, 6), np.float32)
    logits[:, 0] = 9.0  # end of turn is by far the likeliest
    logits[:, 5] = 5.0  # not in the tokenizer
    logits[:, 3] = 1.0
    edges = np.array([[-1, -1], [0, -1], [2, 4], [3, 0]], np.int32)
    free = np.array([True, True, False, False])
    allowed = np.array([True] * 5 + [False])
    result = next_token(logits, edges, free, allowed, np.array([0]), params(4, 0.0), keys(4))
    assert result.token.tolist() == [3, 0, 2, 0]
    assert result.edge.tolist() == [-1, 0, 0, 1]
    np.testing.assert_allclose(
        result.logprob, jax.nn.log_softmax(logits)[np.arange(4), [3, 0, 2, 0]], atol=1e-6
    )
    np.testing.assert_allclose(np.exp(result.edge_logprobs[2]), [0.5, 0.5], rtol=1e-6)
    assert np.exp(result.edge_logprobs[3, 1]) == pytest.approx(np.exp(8) / (1 + np.exp(8)))


def test_alternatives_are_drawn_by_inverse_cdf():
    p = np.array([0.2, 0.5, 0.3])
    assert [draw_alternative(p, u) for u in (0.0, 0.19, 0.21)] == [0, 0, 1]
    assert [draw_alternative(p, u) for u in (0.69, 0.71, 0.9999)] == [1, 2, 2]
    assert draw_alternative(p, 0.99, temperature=0.0) == 1
    everywhere = np.linspace(0, 0.999, 50)
    assert {draw_alternative(p, u, top_p=0.6) for u in everywhere} == {1, 2}
    assert {draw_alternative(p, u, top_k=1) for u in everywhere} == {1}
    assert {draw_alternative(p, u, min_p=0.5) for u in everywhere} == {1, 2}
    tied = np.array([0.4, 0.2, 0.2, 0.2])
    assert {draw_alternative(tied, u, top_k=2) for u in everywhere} == {0, 1, 2, 3}  # ties stay
    assert {draw_alternative(tied, u, top_p=0.5) for u in everywhere} == {0, 1, 2, 3}
    assert draw_alternative(np.array([1.0, 0.0]), 0.999, temperature=0.3) == 0
    drawn = [draw_alternative(p, uniform(key)) for key in range(3000)]
    assert chisquare(np.bincount(drawn, minlength=3), p * 3000).pvalue > 1e-4
