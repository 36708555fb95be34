"""Decoding on strips: the same tokens, laid out when rows change and not at each call."""

from dataclasses import replace

import numpy as np

from alignuser_jax.sampling import Engine, generate
from tests.sampling.requests import GEOMETRY, ask, mixed


def test_strips_change_no_token(decoder, tokenizer):
    """Lengths change bits, but decoding in pages and on strips say the same."""
    requests = [replace(r, temperature=0.0) for r in mixed()]
    expected = generate(Engine(decoder, tokenizer, GEOMETRY), requests)
    for strips in (1, 2):
        other = Engine(decoder, tokenizer, replace(GEOMETRY, strips=strips))
        for completion, want in zip(generate(other, requests), expected, strict=True):
            assert (completion.tokens, completion.choices) == (want.tokens, want.choices)
            np.testing.assert_allclose(completion.logprobs, want.logprobs, atol=2e-5)
        assert other.config.strip_pages == ((8,), (4, 8))[strips - 1]
        assert set(other._device._strips) == ({8}, {4})[strips - 1]


def test_rows_that_go_on_keep_their_strips(decoder, tokenizer):
    """Strips are filled when the rows of a group change, not at each call."""
    engine = Engine(decoder, tokenizer, replace(GEOMETRY, steps=2, strips=1))
    fills, programs = [], engine._device.programs
    original = programs.fill_strips
    programs.fill_strips = lambda *args: fills.append(len(fills)) or original(*args)
    generate(engine, [ask(n, (), max_tokens=12) for n in range(3)])
    assert len(fills) == 1
    generate(engine, [ask(n, (), max_tokens=6 * (n + 1)) for n in range(3)])
    assert len(fills) == 4  # as each of the shorter ones leaves
