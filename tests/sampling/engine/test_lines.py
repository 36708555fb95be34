"""Replies of tagged lines: a start that is prefilled, a limit per line, no run twice."""

import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignuser_jax.sampling import Engine, EngineConfig, generate
from alignuser_jax.sampling.engine.automaton import ACCEPT, compile_lines
from alignuser_jax.sampling.engine.decode import would_repeat
from tests.sampling.requests import GEOMETRY, ask, mixed, result

TAGS = ("WHY:", "LESSON:")
LINES = {"lines": TAGS, "line_tokens": 9, "temperature": 1.5}


@pytest.fixture(scope="module")
def engine(decoder, tokenizer):
    return Engine(decoder, tokenizer, GEOMETRY)


def runs(tokens, n):
    return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))


def test_every_reply_has_its_lines_within_their_limits(engine, tokenizer):
    requests = [ask(n, (), **LINES, reply_start="WHY: a" if n % 2 else "") for n in range(24)]
    ends = set()
    for done in generate(engine, requests):
        assert re.fullmatch(r"WHY:[^\n]+\n+LESSON:[^\n]+", done.text), done.text
        assert done.finish_reason == "stop"
        assert len(done.tokens) <= 2 * 9 + sum(len(tokenizer.encode(tag)) for tag in TAGS) + 1
        ends.add(done.tokens[-1])
    assert len(ends) > 1, "lines end by themselves, by the end of turn, and at the limit"


def test_a_started_reply_goes_on_from_its_start(engine, reference):
    """The start counts as a part of the reply, and the model reads it as one."""
    request = ask(3, (), max_tokens=8, reply_start="because the")
    (done,) = generate(engine, [request])
    assert done.text.startswith("because the") and len(done.text) > len("because the")
    prompt = [*reference.prompt(request), *reference.tokenizer.encode("because the")]
    assert done.usage.prompt_tokens == len(prompt)
    best = int(np.argmax(reference.logprobs(prompt)[: reference.tokenizer.vocab_size]))
    assert done.tokens[0] == best or best in reference.tokenizer.special_ids


def test_no_run_of_tokens_comes_twice(engine, tokenizer):
    options = {"max_tokens": 60, "temperature": 0.0}
    plain = [ask(n, (), **options) for n in range(6)]
    assert any(max(runs(d.tokens, 3).values()) > 1 for d in generate(engine, plain)), "it does"
    for n in (1, 2, 3):
        start = "because the film"
        for temperature in (0.0, 0.7):
            options = {"max_tokens": 40, "temperature": temperature, "no_repeat": n}
            requests = [ask(k, (), **options, reply_start=start) for k in range(6)]
            for done in generate(engine, requests):
                tokens = [*tokenizer.encode(start), *done.tokens]
                assert max(runs(tokens, n).values()) == 1
                assert len(done.tokens) > 8, "more than one decode call"


def test_no_run_comes_out_of_a_text_that_is_to_be_avoided(engine, tokenizer):
    options = {"max_tokens": 24, "temperature": 0.0, "no_repeat": 2}
    plain = generate(engine, [ask(n, (), **options) for n in range(6)])
    texts = tuple(done.text for done in plain)
    others = generate(
        engine, [ask(n, (), **options, no_repeat_of=(texts[n],)) for n in range(6)]
    )
    for done, other in zip(plain, others, strict=True):
        avoided = runs(tokenizer.encode(f" {done.text.strip()}"), 2)
        assert not avoided.keys() & runs(other.tokens, 2).keys()
        assert set(other.tokens) & set(done.tokens), "single tokens may come again"
    # a run over the end of one text and the beginning of the next is none
    (done,) = generate(engine, [ask(0, (), **options, no_repeat_of=texts)])
    assert done.finish_reason != "error" and done.tokens != others[0].tokens


def test_rows_with_rules_change_no_other_row(engine, decoder, tokenizer):
    alone = [result(done) for done in generate(engine, mixed())]
    ruled = [ask(40 + n, (), **LINES, no_repeat=3) for n in range(5)]
    together = [result(done) for done in generate(engine, [*ruled, *mixed()])]
    assert together[5:] == alone
    assert together[:5] == [result(done) for done in generate(engine, ruled)]


def test_would_repeat_against_plain_python():
    rng = np.random.default_rng(0)
    check = jax.jit(would_repeat)
    for n in range(9):
        tokens = rng.integers(0, 3, (16, 24)).astype(np.int32)
        length = rng.integers(9, 24, 16).astype(np.int32)
        tokens[3, :5] = -1
        marked = np.asarray(check(jnp.array(tokens), jnp.array(length), jnp.full(16, n)))
        for row, size, marks in zip(tokens.tolist(), length.tolist(), marked, strict=True):
            found = {token for token, mark in zip(row, marks, strict=True) if mark}
            row = [token for token in row[:size] if token >= 0]
            last = tuple(row[len(row) - n + 1 :]) if n > 1 else ()
            banned = {t for t in range(3) if n and (*last, t) in runs(row, n)}
            assert found == banned


def test_the_automaton_of_lines():
    lines = compile_lines([(5, 6), (7,)], 4, (1,), [0], states=16, edges=2)
    assert lines.token[lines.start].tolist() == [5, -1] and not lines.free[lines.start]
    inside = compile_lines([(5, 6), (7,)], 4, (1,), [0], started=True, states=16, edges=2)
    state, taken = inside.start, 0
    while inside.free[state]:
        state, taken = int(inside.onward[state, 0]), taken + 1
    assert taken == 4 and inside.token[state].tolist() == [1, -1], "then a newline is forced"
    state = int(inside.next[state, 0])
    assert inside.token[state].tolist() == [7, -1]
    state = int(inside.next[state, 0])
    for _ in range(4):
        assert inside.onward[state, 1] == ACCEPT
        state = int(inside.onward[state, 0])
    assert state == ACCEPT
    with pytest.raises(ValueError, match="states"):
        compile_lines([(5, 6), (7,)], 40, (1,), [0], states=16, edges=2)
    with pytest.raises(ValueError, match="at least one line"):
        compile_lines([], 4, (1,), [0])


LONG_TEXT = {"no_repeat": 3, "no_repeat_of": ("a film of 1999 " * 200,)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lines": TAGS}, "line_tokens=0"),
        ({"line_tokens": 4}, "or neither"),
        ({"lines": ("WHY:", " "), "line_tokens": 4}, "begins with some text"),
        ({**LINES, "reply_start": "LESSON: I"}, "expected the beginning of the first line"),
        ({**LINES, "reply_start": "WHY: I\n"}, "expected the beginning of the first line"),
        ({"no_repeat": 9}, "at most 8"),
        ({"no_repeat_of": ("a film",)}, "no_repeat is 0"),
        ({**LINES, **LONG_TEXT}, "at most 512 tokens in all"),
        ({"no_repeat": 3, "max_tokens": 600}, "do not fit"),
        ({**LINES, "line_tokens": 200}, "states"),
    ],
)
def test_rules_that_cannot_be_followed_are_refused_by_name(engine, options, message):
    (done,) = generate(engine, [ask(1, (), **options)])
    assert done.finish_reason == "error" and re.search(message, done.error), done.error


def test_rules_do_not_go_with_an_answer(engine):
    for options in ({"reply_start": "so"}, {"no_repeat": 3}, LINES):
        (done,) = generate(engine, [ask(1, **options)])
        assert "has an answer of its own" in done.error


def test_a_long_reply_without_repeats_needs_room_for_it(decoder, tokenizer):
    engine = Engine(decoder, tokenizer, EngineConfig(slots=1, context=768, chunk=16))
    (done,) = generate(engine, [ask(1, (), no_repeat=3, max_tokens=600)])
    assert "at most 512 tokens in all" in done.error
