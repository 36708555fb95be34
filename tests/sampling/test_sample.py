"""Draws follow the distribution they are asked for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chisquare

from alignuser_jax.sampling.sample import (
    draw,
    draw_alternative,
    key_words,
    nucleus,
    pick,
    uniform,
)

draw, pick = jax.jit(draw), jax.jit(pick)
LOGITS = np.log(np.array([0.05, 0.4, 0.25, 0.2, 0.1], np.float32))


def keys(count, offset=0):
    words = np.stack([key_words(7_000_000_007 * (i + 1 + offset)) for i in range(count)])
    return jax.random.wrap_key_data(jnp.asarray(words))


def counts(temperature, top_p, n=4000):
    rows = jnp.tile(jnp.asarray(LOGITS), (n, 1))
    full = np.full(n, temperature, np.float32), np.full(n, top_p, np.float32)
    return np.bincount(np.asarray(draw(rows, *full, keys(n))), minlength=5)


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_draws_fit_the_tempered_distribution(temperature):
    expected = np.exp(LOGITS.astype(float) / temperature)
    expected /= expected.sum()
    observed = counts(temperature, 1.0)
    assert chisquare(observed, expected * observed.sum()).pvalue > 1e-4


def test_top_p_keeps_the_smallest_sufficient_set():
    mask = nucleus(jnp.asarray(LOGITS)[None], jnp.array([0.6], jnp.float32))
    assert mask[0].tolist() == [False, True, True, False, False]
    observed = counts(1.0, 0.6)
    assert observed[[0, 3, 4]].sum() == 0
    expected = np.array([0.4, 0.25]) / 0.65 * observed.sum()
    assert chisquare(observed[[1, 2]], expected).pvalue > 1e-4


def test_a_row_does_not_depend_on_its_neighbours():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(8, 300)).astype(np.float32)
    temperature = np.array([0, 1, 0.7, 1, 1, 2, 0, 1], np.float32)
    top_p = np.array([1, 1, 0.9, 0.5, 1, 1, 1, 0.99], np.float32)
    row_keys = keys(8)
    together = np.asarray(draw(logits, temperature, top_p, row_keys))
    for i in range(8):
        others = np.roll(np.arange(8), i)
        alone = draw(
            np.where((others == i)[:, None], logits[others], 0),
            np.where(others == i, temperature[others], 0).astype(np.float32),
            np.where(others == i, top_p[others], 1).astype(np.float32),
            row_keys[others],
        )
        assert together[i] == np.asarray(alone)[np.flatnonzero(others == i)[0]]


def test_pick_obeys_edges_and_keeps_end_of_turn_for_them():
    logits = np.zeros((4, 6), np.float32)
    logits[:, 0] = 9.0  # end of turn is by far the likeliest
    logits[:, 5] = 5.0  # not in the tokenizer
    logits[:, 3] = 1.0
    edges = np.array([[-1, -1], [0, -1], [2, 4], [3, 0]], np.int32)
    free = np.array([True, True, False, False])
    allowed = np.array([True] * 5 + [False])
    zero, one = np.zeros(4, np.float32), np.ones(4, np.float32)
    result = pick(logits, edges, free, allowed, np.array([0]), zero, one, keys(4))
    assert result.token.tolist() == [3, 0, 2, 0]
    assert result.edge.tolist() == [-1, 0, 0, 1]
    np.testing.assert_allclose(
        result.logprob, jax.nn.log_softmax(logits)[np.arange(4), [3, 0, 2, 0]], atol=1e-6
    )
    np.testing.assert_allclose(np.exp(result.edge_logprobs[2]), [0.5, 0.5], rtol=1e-6)
    assert np.exp(result.edge_logprobs[3, 1]) == pytest.approx(np.exp(8) / (1 + np.exp(8)))


def test_alternatives_are_drawn_by_inverse_cdf():
    p = np.array([0.2, 0.5, 0.3])
    assert [draw_alternative(p, 1.0, 1.0, u) for u in (0.0, 0.19, 0.21)] == [0, 0, 1]
    assert [draw_alternative(p, 1.0, 1.0, u) for u in (0.69, 0.71, 0.9999)] == [1, 2, 2]
    assert draw_alternative(p, 0.0, 1.0, 0.99) == 1
    assert {draw_alternative(p, 1.0, 0.6, u) for u in np.linspace(0, 0.999, 50)} == {1, 2}
    assert draw_alternative(np.array([1.0, 0.0]), 0.3, 1.0, 0.999) == 0
    drawn = [draw_alternative(p, 1.0, 1.0, uniform(key)) for key in range(3000)]
    assert chisquare(np.bincount(drawn, minlength=3), p * 3000).pvalue > 1e-4
