"""The synthetic sessions have the lengths that are asked for, and grow as conversations do."""

from dataclasses import replace

import numpy as np
import pytest

from alignuser_jax.language import render
from alignuser_jax.records import Completion, Message, Usage
from alignuser_jax.sampling import Engine, EngineConfig, ScriptedGenerator
from alignuser_jax.sampling.workload import (
    NumberedWords,
    SessionShape,
    WorkloadResult,
    run_sessions,
    text_of,
    time_parts,
)

SHAPE = SessionShape(
    sessions=5,
    pages=6,
    persona_tokens=30,
    shared_tokens=10,
    page_tokens=12,
    reply_tokens=4,
    samples=2,
)
WORDS = NumberedWords(300)


def answering():
    reply = Completion("w9 w10 w11 w12", usage=Usage(50, 20, 4))
    return ScriptedGenerator(lambda request: reply, max_batch=3)


def length(request):
    return len(render(WORDS, request.messages, generation=True))


def test_numbered_words_come_back_as_they_were():
    text = text_of(WORDS, 40, np.random.default_rng(0))
    assert len(WORDS.encode(text)) == WORDS.count(text) == 40
    assert WORDS.decode(WORDS.encode(text)) == text
    tokens = render(WORDS, [Message.of("user", text)], generation=True).tokens.tolist()
    assert tokens == [
        WORDS.role_ids["user"],
        *WORDS.encode(text),
        1,
        WORDS.role_ids["assistant"],
    ]
    with pytest.raises(ValueError, match="vocab_size=8"):
        NumberedWords(8)


def test_texts_of_a_real_vocabulary_are_about_as_long_as_asked(tokenizer):
    text = text_of(tokenizer, 100, np.random.default_rng(0))
    assert abs(tokenizer.count(text) - 100) <= 5
    assert text_of(tokenizer, 0, np.random.default_rng(0)) == ""


def test_every_session_grows_by_reply_and_page():
    generator = answering()
    done = run_sessions(generator, WORDS, SHAPE)
    sessions = {}
    for request in generator.requests:
        own = request.messages[1].content  # the first user turn is the session's own
        sessions.setdefault(own, []).append(request)
    assert len(sessions) == done.sessions == SHAPE.sessions
    expected = sorted(SHAPE.pages_of(n) for n in range(SHAPE.sessions))
    assert sorted(map(len, sessions.values())) == expected
    assert done.pages == sum(expected) == len(generator.requests)
    for requests in sessions.values():
        markers = 5  # two for each message, one where the reply begins
        assert length(requests[0]) == 30 + 12 + markers
        for before, after in zip(requests, requests[1:], strict=False):
            assert after.messages[: len(before.messages)] == before.messages
            assert after.messages[-2].content == "w9 w10 w11 w12"
            assert length(after) - length(before) == SHAPE.step_tokens + 4
    assert len({r.messages[0] for r in generator.requests}) == 1
    assert len({r.key for r in generator.requests}) == len(generator.requests)
    assert max(map(length, generator.requests)) + SHAPE.reply_tokens <= SHAPE.context
    assert done.usage == Usage(100 * done.pages, 40 * done.pages, 8 * done.pages)
    assert done.rates["prompt tokens saved"] == pytest.approx(0.4)


def test_reused_tokens_are_not_read():
    """229 tokens a second were shown where 129 were read and 100 found in the cache."""
    done = WorkloadResult(sessions=2, pages=4, seconds=10.0, usage=Usage(2290, 1000, 50))
    assert done.read_tokens == 1290
    assert done.rates == {
        "sessions/s": 0.2,
        "pages/s": 0.4,
        "prompt tokens read/s": 129.0,
        "prompt tokens reused/s": 100.0,
        "generated tokens/s": 5.0,
        "prompt tokens saved": pytest.approx(1000 / 2290),
    }


def test_the_number_of_pages_varies_around_what_is_asked():
    pages = [replace(SHAPE, seed=seed).pages_of(n) for seed in range(20) for n in range(50)]
    assert set(pages) == {4, 5, 6, 7, 8} and abs(np.mean(pages) - 6) < 0.2
    assert {replace(SHAPE, pages=1).pages_of(n) for n in range(50)} == {1}


def test_a_name_makes_other_sessions():
    first, second, again = answering(), answering(), answering()
    run_sessions(first, WORDS, SHAPE, name=1)
    run_sessions(second, WORDS, SHAPE, name=2)
    run_sessions(again, WORDS, SHAPE, name=1)
    assert first.requests == again.requests
    texts = [{r.messages[1].content for r in run.requests} for run in (first, second)]
    assert not texts[0] & texts[1]
    assert first.requests[0].messages[0] == second.requests[0].messages[0]


def test_a_request_that_fails_is_an_error_with_its_reason():
    broken = ScriptedGenerator(lambda request: 1 / 0)
    with pytest.raises(RuntimeError, match="session 0: ZeroDivisionError"):
        run_sessions(broken, WORDS, SHAPE)
    with pytest.raises(ValueError, match="shared_tokens=30"):
        replace(SHAPE, shared_tokens=30)
    with pytest.raises(ValueError, match="pages=0: expected at least 1"):
        replace(SHAPE, pages=0)


def test_seconds_of_the_host_are_the_rest():
    parts = time_parts({"decode_seconds": 1.0}, {"decode_seconds": 3.0}, 5.0)
    assert parts == {"prefill": 0.0, "score": 0.0, "decode": 2.0, "host": 3.0}


def test_an_engine_saves_what_sessions_repeat(decoder, tokenizer):
    sizes = {"slots": 10, "chunk": 16, "context": -(-SHAPE.context // 16) * 16, "group": 4}
    engine = Engine(decoder, tokenizer, EngineConfig(**sizes))
    done = run_sessions(engine, tokenizer, SHAPE)
    assert done.usage.cached_tokens > 0.3 * done.usage.prompt_tokens
    assert done.usage.generated_tokens <= done.pages * SHAPE.samples * SHAPE.reply_tokens
    assert done.usage.prompt_tokens == engine.stats["prompt_tokens"]
    assert done.read_tokens == engine.report()["read_tokens"] > 0
