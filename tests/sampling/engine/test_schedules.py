"""Whatever comes when, joins whom and is cancelled: every request gets its own result, and
nothing stays behind.

The expected result of each request comes from an engine that has nothing else to do; its greedy
tokens are those of the uncached, unbatched reference, but for near-ties, which are counted.
"""

import gc
import resource
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignuser_jax.model import init_decoder
from alignuser_jax.randomness import stable_key
from alignuser_jax.records import Request
from alignuser_jax.sampling import Engine, EngineConfig, generate
from tests.sampling.engine.uncached import Reference
from tests.sampling.requests import ACT, RATE, SCREEN, SYSTEM, WORDS, ask, result, talk

GEOMETRY = EngineConfig(
    slots=3,
    context=128,
    chunk=16,
    group=2,
    chunks=3,
    states=256,
    edges=12,
    prefill=96,
    steps=3,
    pages=18,
)
NEAR_TIE = 1e-4


def sessions():
    """Conversations of which each begins the next, in two adapters."""
    for user in range(3):
        turns = [SYSTEM, f"user {user} likes comedy films from 19{user}0"]
        for step, answer in enumerate((SCREEN, (), ACT)):
            adapter = (None, "base")[user % 2]
            kind = {"answer": answer, "max_tokens": 9 + user, "adapter": adapter}
            yield Request(talk(*turns), "test", temperature=0.0, **kind)
            hot = {"temperature": 1.2, "top_k": 30, "key": stable_key(user, step)}
            yield Request(talk(*turns), "test", **kind, **hot)
            turns += ["a good film", f"page {step} of the list"]


def all_requests():
    """Every kind of request, greedy and drawn, short and long, alone and many samples."""
    yield from sessions()
    for n in range(6):
        yield ask(n, (SCREEN, ACT, WORDS)[n % 3])
        yield ask(n, RATE, scored=True, adapter=(None, "base")[n % 2])
        yield ask(n, (), max_tokens=6 + 3 * n)
        yield ask(n, ACT, reasoning_tokens=3 + n, temperature=1.0)
    yield ask(7, WORDS, scored=True, temperature=1.0)
    yield ask(8, RATE, scored=True, reasoning_tokens=6, temperature=1.0, top_p=0.9)
    yield ask(9, (), max_tokens=7, temperature=1.0, samples=4, min_p=0.01)
    yield ask(10, SCREEN, temperature=1.0, samples=3)
    yield ask(11, (), max_tokens=20, temperature=1.0, stop=("a", "e"))


@pytest.fixture(scope="module", params=[0, 2], ids=["pages", "strips"])
def world(request, decoder, tokenizer):
    """The engine under test, the requests, and what each must give."""
    geometry = replace(GEOMETRY, strips=request.param)
    engine = Engine(decoder, tokenizer, geometry)
    requests, expected = list(all_requests()), []
    for one in requests:
        engine._pool.clear()
        expected += [result(c) for c in generate(engine, [one])]
    assert all(c.finish_reason != "error" for c in expected), [c.error for c in expected]
    assert engine.compilations <= (5 + 2 * len(geometry.strip_pages) if geometry.strips else 6)
    assert set(engine._device._strips) == ({4, 8} if geometry.strips else set())
    return engine, requests, expected


def idle(engine):
    """Nothing of any request is left."""
    left = engine._active, engine._queue, engine._partial, engine._deadlines, engine._leaders
    assert not any(left)
    assert sorted(engine._slots) == list(range(GEOMETRY.slots))
    assert engine._pool.available == GEOMETRY.pages
    assert not any(engine._device.automata._users.values())


def test_greedy_tokens_are_the_references(world, reference):
    """Token for token, but where the reference's two best are closer than 1e-4: below 0.1 %."""
    engine, requests, expected = world
    tokens = near = 0
    for request, completion in zip(requests, expected, strict=True):
        if request.temperature or request.scored or request.reasoning_tokens:
            continue
        adapter = int(request.adapter is None)
        prompt = reference.prompt(request)
        if request.answer:
            want, choices, _ = reference.answer(prompt, request, adapter)
            assert completion.choices == choices
        else:
            want = reference.text(prompt, request.max_tokens, adapter)
        tokens += len(want)
        if completion.tokens != tuple(want):
            pairs = enumerate(zip(completion.tokens, want, strict=False))
            at = next(i for i, (a, b) in pairs if a != b)
            best = np.sort(reference.logprobs(prompt + want[:at], adapter))[-2:]
            assert best[1] - best[0] < NEAR_TIE, f"token {at} of {request}"
            near += 1
    assert tokens > 150 and near <= tokens / 1000


def schedule(seed):
    """Four to 24 steps: half of them submit one of the requests, the others poll or cancel."""
    rng = np.random.default_rng(seed)
    kinds = rng.choice(["submit", "poll", "cancel"], rng.integers(4, 25), p=(0.5, 0.4, 0.1))
    return [(kind, int(rng.integers(1, 1000))) for kind in kinds]


def follow(world, steps):
    """One schedule on an engine that has seen all before it."""
    engine, requests, expected = world
    compiled, waiting, got = engine.compilations, {}, 0
    for what, number in steps:
        if what == "submit":
            waiting[engine.submit(requests[number % len(requests)])] = number % len(requests)
        elif what == "cancel" and waiting:
            ticket = list(waiting)[number % len(waiting)]
            engine.cancel(ticket)
            del waiting[ticket]
        for ready in [engine.poll() for _ in range(1 + number % 4)] if what == "poll" else []:
            for ticket, completion in ready:
                assert result(completion) == expected[waiting.pop(ticket)]
                got += 1
    while batch := engine.collect():
        for ticket, completion in batch:
            assert result(completion) == expected[waiting.pop(ticket)]
            got += 1
    assert not waiting and engine.compilations == compiled
    while engine._active:  # cancelled rows whose pages others had waited for
        engine._round()
    idle(engine)
    return got


@pytest.mark.parametrize("schedules", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_any_schedule_gives_the_answers_of_requests_alone(world, schedules):
    evicted, got = world[0]._pool.evicted, 0

    @settings(max_examples=schedules, deadline=None, database=None)
    @given(st.integers(0, 2**32))
    def every(seed):
        nonlocal got
        got += follow(world, schedule(seed))

    every()
    assert got > 3 * schedules and world[0]._pool.evicted - evicted > schedules


@pytest.mark.slow
def test_a_soak_leaks_nothing(world):
    """Slots full for thousands of requests, some cancelled: memory stays where it was."""
    engine, requests, expected = world
    rng, sizes = np.random.default_rng(0), []
    for _ in range(6):
        waiting = {}
        for _ in range(600):
            while len(waiting) < 3 * GEOMETRY.slots:
                number = int(rng.integers(len(requests)))
                waiting[engine.submit(requests[number])] = number
            if rng.random() < 0.1:
                ticket = list(waiting)[int(rng.integers(len(waiting)))]
                engine.cancel(ticket)
                del waiting[ticket]
            for ticket, completion in engine.poll():
                assert result(completion) == expected[waiting.pop(ticket)]
        for ticket in waiting:
            engine.cancel(ticket)
        gc.collect()
        sizes.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    idle(engine)
    assert sizes[-1] - sizes[1] < 16, f"MiB after each 600 rounds: {sizes}"


def test_a_timeout_harms_no_other(world, monkeypatch):
    engine, requests, expected = world
    clock = [100.0]
    monkeypatch.setattr("alignuser_jax.sampling.engine.engine.time.monotonic", lambda: clock[0])
    late = replace(requests[0], max_tokens=60, answer=(), timeout_seconds=5.0)
    tickets = [engine.submit(late), *(engine.submit(r) for r in requests[1:6])]
    got = dict(engine.poll())
    clock[0] = 105.5
    while batch := engine.collect():
        got |= dict(batch)
    assert got[tickets[0]].finish_reason == "error"
    assert "TimeoutError: not done 5.0 s after it was submitted" in got[tickets[0]].error
    assert [result(got[t]) for t in tickets[1:]] == expected[1:6]
    idle(engine)
    (quick,) = generate(engine, [replace(requests[0], timeout_seconds=5.0)])
    assert result(quick) == expected[0]


def test_a_model_without_numbers_is_an_error_of_that_request(world, monkeypatch):
    """Its pages are not kept: they would spoil whoever is given them next."""
    engine, requests, expected = world
    inner, spoilt = engine._device.decode, []

    def decode(replies):
        decoded, steps = inner(replies)
        for slot, row, *_ in replies:
            if row.ticket in spoilt:
                decoded[slot] = decoded[slot]._replace(
                    logprob=decoded[slot].logprob * np.float32("nan")
                )
        return decoded, steps

    monkeypatch.setattr(engine._device, "decode", decode)
    tickets = [engine.submit(request) for request in requests[:6]]
    spoilt.append(tickets[1])
    got = {}
    while batch := engine.collect():
        got |= dict(batch)
    assert "not finite" in got.pop(tickets[1]).error
    assert [result(got[t]) for t in tickets if t in got] == [expected[0], *expected[2:6]]
    idle(engine)


def test_stop_strings_end_free_text_where_they_appear(world):
    engine, requests, _ = world
    (whole,) = generate(engine, [ask(3, (), max_tokens=30)])
    assert len(whole.text) > 12
    stop = whole.text[7:9]
    (cut,) = generate(engine, [ask(3, (), max_tokens=30, stop=("never said", stop))])
    at = whole.text.index(stop)
    assert cut.text == whole.text[:at] and cut.finish_reason == "stop"
    assert cut.tokens == whole.tokens[: len(cut.tokens)]
    said = engine._tokenizer.decode(cut.tokens)
    assert stop in said and stop not in engine._tokenizer.decode(cut.tokens[:-1])
    (refused,) = generate(engine, [ask(3, ACT, stop=("x",))])
    assert "stop strings" in refused.error


def test_a_long_prompt_stalls_nobody(world):
    """A reply under way goes on while another's prompt is read."""
    engine, *_ = world
    engine._pool.clear()
    first = engine.submit(ask(1, (), max_tokens=9))
    while not any(work.length for work in engine._active.values()):
        engine.poll()
    filler = "film " * 30
    long = engine.submit(Request(talk(SYSTEM, filler), "test", max_tokens=8, temperature=0.0))
    order = []
    while batch := engine.collect():
        order += [ticket for ticket, _ in batch]
    assert order == [first, long]


def test_samples_read_their_prompt_once(world):
    engine, *_ = world
    for reuse in (True, False):
        engine._pool.clear()
        before = engine.stats["cached_tokens"], engine.stats["prompt_tokens"]
        read = engine.stats["read_tokens"]
        (done,) = generate(engine, [ask(2, (), max_tokens=3, temperature=1.0, samples=3)])
        cached = engine.stats["cached_tokens"] - before[0]
        prompt = engine.stats["prompt_tokens"] - before[1]
        assert prompt == 3 * done.samples[0].usage.prompt_tokens
        assert cached == prompt * 2 / 3
        assert engine.stats["read_tokens"] - read == prompt / 3
        if reuse:  # the whole pages of the next one lie ready too
            (again,) = generate(engine, [ask(2, (), max_tokens=3, temperature=1.0)])
            assert 0 < again.usage.cached_tokens < again.usage.prompt_tokens


def test_reuse_can_be_turned_off(world, decoder, tokenizer):
    engine, requests, expected = world
    without = Engine(decoder, tokenizer, replace(engine.config, reuse=False))
    without._device.programs = engine._device.programs
    chosen = [0, 1, 5, len(requests) - 3]
    completions = generate(without, [requests[n] for n in chosen])
    assert [result(c) for c in completions] == [expected[n] for n in chosen]
    assert without.stats["cached_tokens"] == 0 == without.report()["hit_rate"]


def test_bf16_stays_within_a_bound_of_the_uncached_pass(decoder, tokenizer):
    """Teacher-forced on what the bf16 engine wrote, its log-probabilities are within 0.05 of
    those of an uncached f32 pass, 0.01 on average. (Of ordinary weights: the other tests' are
    drawn to differ strongly, and some of their tokens multiply any rounding.)"""
    weights = init_decoder(decoder.config, seed=1)
    exact = Reference(weights, tokenizer)
    half = init_decoder(decoder.config, seed=1, dtype=jnp.bfloat16)
    engine = Engine(half, tokenizer, GEOMETRY)
    pages = engine._device._allocated().pages
    if jax.default_backend() == "cpu":  # where a write into bf16 pages converts all of them
        assert {a.dtype for a in jax.tree.leaves(pages)} == {jnp.dtype(jnp.float32)}
    assert engine.cache_bytes == sum(a.nbytes for a in jax.tree.leaves(pages))
    requests = [ask(n, (), max_tokens=12, temperature=1.0) for n in range(12)]
    gaps = []
    for request, completion in zip(requests, generate(engine, requests), strict=True):
        prompt, tokens = exact.prompt(request), list(completion.tokens)
        for i, (token, said) in enumerate(zip(tokens, completion.logprobs, strict=True)):
            gaps.append(abs(exact.logprobs(prompt + tokens[:i], 0)[token] - said))
    assert len(gaps) > 100 and max(gaps) > 0
    assert max(gaps) < 0.05 and np.mean(gaps) < 0.01, (max(gaps), np.mean(gaps))


def test_first_tokens_are_drawn_from_the_models_distribution(world, reference):
    """Of 3,000 samples; the test rejects a right engine once in 10,000 times."""
    from scipy.stats import chisquare

    engine, *_ = world
    request = ask(5, (), max_tokens=1, temperature=1.0, samples=3000)
    p = np.exp(reference.logprobs(reference.prompt(request)))
    p[engine._tokenizer.vocab_size :] = 0
    p[list(engine._tokenizer.special_ids - {engine._tokenizer.eot_id})] = 0
    p /= p.sum()
    (done,) = generate(engine, [request])
    observed = np.bincount([s.tokens[0] for s in done.samples], minlength=len(p))
    assert not observed[p == 0].any()
    often = p * 3000 >= 5
    rest = ~often
    observed = np.r_[observed[often], observed[rest].sum()]
    assert chisquare(observed, np.r_[p[often], p[rest].sum()] * 3000).pvalue > 1e-4
