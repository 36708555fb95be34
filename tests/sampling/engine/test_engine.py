"""The engine equals the uncached reference and gives each request its own result, always."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from alignuser_jax.model import (
    LoraConfig,
    abstract_decoder,
    init_decoder,
    merge,
    merge_lora,
    named_arrays,
    split,
)
from alignuser_jax.model.files.peft import join_adapters
from alignuser_jax.model.states import with_arrays
from alignuser_jax.randomness import stable_key
from alignuser_jax.records import Request
from alignuser_jax.sampling import Engine, EngineConfig, generate
from alignuser_jax.sampling.engine.automaton import ACCEPT
from tests.model.model_helpers import with_random_b
from tests.sampling.engine.uncached import Reference
from tests.sampling.requests import (
    ACT,
    GEOMETRY,
    RATE,
    SCREEN,
    SYSTEM,
    TEN,
    WORDS,
    ask,
    mixed,
    result,
    talk,
)


@pytest.fixture(scope="module")
def engine(decoder, tokenizer):
    return Engine(decoder, tokenizer, GEOMETRY)


def test_greedy_answers_equal_the_uncached_reference(engine, reference):
    turns = [SYSTEM, "film 1999 from the list because comedy"]
    for step, answer in enumerate((SCREEN, ACT, SCREEN, WORDS)):
        for adapter, number in ((None, 1), ("base", 0)):
            request = Request(
                talk(*turns), "test", answer=answer, temperature=0.0, adapter=adapter
            )
            (completion,) = generate(engine, [request])
            prompt = reference.prompt(request)
            tokens, choices, steps = reference.answer(prompt, request, number)
            assert completion.tokens == tuple(tokens)
            assert completion.choices == choices
            lines = [line[c] for line, c in zip(answer, choices, strict=True)]
            assert completion.text == "\n".join(lines)
            for line, p, nodes in zip(
                answer, completion.choice_probabilities, steps, strict=True
            ):
                if answer is not WORDS:
                    ((_, node),) = nodes.items()
                    np.testing.assert_allclose(sorted(p), sorted(node.values()), atol=2e-5)
                    assert len(p) == len(line)
            expected = [
                reference.logprobs(prompt + tokens[:i], number)[t] for i, t in enumerate(tokens)
            ]
            np.testing.assert_allclose(completion.logprobs, expected, atol=1e-4)
            assert (completion.usage.cached_tokens > 0) == (step > 0)
        turns += [completion.text, f"page {step} with a film from 200{step}"]


def test_greedy_text_equals_the_uncached_reference(engine, reference):
    requests = [ask(n, (), max_tokens=5 + n) for n in range(1, 7)]
    for request, completion in zip(requests, generate(engine, requests), strict=True):
        expected = reference.text(reference.prompt(request), request.max_tokens)
        assert completion.tokens == tuple(expected)
        ended = expected[-1] == engine._tokenizer.eot_id
        assert completion.finish_reason == ("stop" if ended else "length")
        assert completion.text == engine._tokenizer.decode(expected)


@pytest.mark.parametrize("answer", [RATE, TEN, WORDS, (("one way",),)])
@pytest.mark.parametrize("adapter", [None, "base"])
def test_scores_equal_brute_force(engine, reference, answer, adapter):
    requests = [ask(n, answer, scored=True, adapter=adapter) for n in (1, 2, 3)]
    for request, completion in zip(requests, generate(engine, requests), strict=True):
        prompt = reference.prompt(request)
        p = reference.distribution(prompt, request, int(adapter is None))
        np.testing.assert_allclose(completion.choice_probabilities[0], p, atol=2e-5)
        assert sum(completion.choice_probabilities[0]) == pytest.approx(1)
        assert completion.choices == (int(p.argmax()),)
        assert completion.text == answer[0][int(p.argmax())]


def test_results_do_not_depend_on_neighbours_slots_order_or_reuse(engine, decoder, tokenizer):
    requests = mixed()
    together = [result(c) for c in generate(engine, requests)]
    assert all(c.finish_reason != "error" for c in together)
    again = [result(c) for c in generate(engine, requests)]  # whatever is resident now
    backwards = [result(c) for c in generate(engine, requests[::-1])][::-1]
    fresh = Engine(decoder, tokenizer, GEOMETRY)
    fresh._device.programs = engine._device.programs  # compiled already
    alone = []
    for request in requests:
        fresh._pool.clear()
        alone += [result(c) for c in generate(fresh, [request])]
    for name, others in (("again", again), ("backwards", backwards), ("alone", alone)):
        for number, (one, other) in enumerate(zip(together, others, strict=True)):
            assert one == other, f"{name}: request {number}"


def test_a_row_has_equal_bits_alone_and_among_forty(engine):
    """One row leaves most of a group empty, forty fill many groups in every place."""
    few = mixed()[:8]
    alone = []
    for request in few:
        engine._pool.clear()
        alone += [result(c) for c in generate(engine, [request])]
    crowd = [ask(100 + n, (SCREEN, ACT, RATE)[n % 3], temperature=1.0) for n in range(32)]
    engine._pool.clear()
    mingled = [request for n in range(8) for request in (*crowd[4 * n : 4 * n + 4], few[n])]
    together = [result(c) for c in generate(engine, mingled)]
    assert together[4::5] == alone


def test_the_size_of_a_group_changes_no_result_but_rounding(engine, decoder, tokenizer):
    requests = [
        ask(n, answer, temperature=1.0) for n, answer in enumerate((SCREEN, ACT, WORDS))
    ]
    expected = [result(c) for c in generate(engine, requests)]
    for group, chunks in ((1, 0), (3, 0), (3, 1)):
        other = Engine(decoder, tokenizer, replace(GEOMETRY, group=group, chunks=chunks))
        completions = [result(c) for c in generate(other, requests)]
        for one, two in zip(expected, completions, strict=True):
            assert (one.text, one.tokens, one.usage) == (two.text, two.tokens, two.usage)
            np.testing.assert_allclose(one.logprobs, two.logprobs, atol=1e-4)
            for p, q in zip(one.choice_probabilities, two.choice_probabilities, strict=True):
                np.testing.assert_allclose(p, q, atol=2e-5)


LONG = (
    (
        "a good film because the list is for each item of movies",
        "a bad film because of one item",
    ),
    ("RATING: 10", "RATING: 1", "RATING: 2"),
    ("one way",),
    ("BEST-ACTION: [CLICK_ITEM:2]", "BEST-ACTION: [CLICK_ITEM:3]"),
)


@pytest.mark.parametrize("number", range(4))
def test_forced_tokens_cost_few_steps_and_change_nothing(engine, reference, number):
    """Runs of forced tokens longer and shorter than a jump, one drawn token between them."""
    request = ask(number, LONG, temperature=1.3)
    before = engine.stats["decode_steps"]
    (completion,) = generate(engine, [request])
    tokens, prompt = list(completion.tokens), reference.prompt(request)
    lines = reference.paths(request)
    paths = [line[c] for line, c in zip(lines, completion.choices, strict=True)]
    assert tokens == [token for path in paths for token in path]
    assert engine.stats["decode_steps"] - before <= 1 + len(tokens) // 2
    expected = [reference.logprobs(prompt + tokens[:i])[t] for i, t in enumerate(tokens)]
    np.testing.assert_allclose(completion.logprobs, expected, atol=1e-4)
    said, checked = [], 0
    for path, line, p in zip(paths, lines, completion.choice_probabilities, strict=True):
        nodes = branches(line)
        if len(line) > 1 and len(nodes) == 1:
            ((node, allowed),) = nodes.items()
            logprobs = reference.logprobs(prompt + said + list(node))
            q = np.exp([logprobs[path[len(node)]] for path in line])
            assert len(allowed) == len(line) == len(p)
            np.testing.assert_allclose(p, q / q.sum(), atol=2e-5)
            checked += 1
        said += path
    assert checked >= 2


def branches(paths):
    """The prefixes after which a line has a choice, with the tokens to choose from."""
    nodes = {}
    for path in paths:
        for i, token in enumerate(path):
            nodes.setdefault(path[:i], set()).add(token)
    return {node: allowed for node, allowed in nodes.items() if len(allowed) > 1}


def test_a_reply_may_end_at_the_last_position_of_the_context(engine, reference):
    """A jump must not reach back over what the cache holds."""
    room = GEOMETRY.context - sum(max(map(len, paths)) for paths in reference.paths(ask(1)))
    for spare in range(4):
        text, request = "", ask(1)
        while len(reference.prompt(request)) < room - spare:
            text += " a"
            request = replace(ask(1), messages=talk(SYSTEM, text))
        assert len(reference.prompt(request)) == room - spare
        (completion,) = generate(engine, [request])
        tokens, choices, _ = reference.answer(reference.prompt(request), request)
        assert (completion.tokens, completion.choices) == (tuple(tokens), choices)


def test_nothing_that_a_request_chooses_recompiles(engine):
    engine.warm_up()
    compiled = engine.compilations
    assert compiled == 6
    generate(engine, mixed())
    generate(engine, [ask(n, RATE, reasoning_tokens=n, temperature=n / 3) for n in range(1, 6)])
    generate(engine, [ask(2, (), max_tokens=31, top_p=0.3, temperature=1.0)])
    generate(engine, [ask(3, WORDS, scored=True, samples=7)])
    assert engine.compilations == compiled


def test_a_session_prefills_only_what_is_new(engine):
    long = " ".join(f"film {n} from 1999" for n in range(8))
    first = Request(talk(SYSTEM, long), "test", answer=RATE, scored=True, temperature=0.0)
    engine._pool.clear()  # another test may have sent the base with this system prompt
    (reply,) = generate(engine, [first])
    following = replace(first, messages=talk(SYSTEM, long, reply.text, "a film"))
    (completion,) = generate(engine, [following])
    cached, prompt = completion.usage.cached_tokens, completion.usage.prompt_tokens
    assert cached % GEOMETRY.chunk == 0
    assert reply.usage.prompt_tokens - GEOMETRY.chunk <= cached < prompt  # of the reply, too
    assert prompt > reply.usage.prompt_tokens
    (other,) = generate(engine, [replace(following, adapter="base")])
    assert other.usage.cached_tokens == 0  # another adapter's keys and values are not ours


@pytest.mark.parametrize("scored", [False, True])
def test_reasoning_then_a_legal_answer(engine, reference, scored):
    limit = 6
    requests = [
        ask(n, RATE, reasoning_tokens=limit, scored=scored, temperature=1.0) for n in range(12)
    ]
    for request, completion in zip(requests, generate(engine, requests), strict=True):
        *before, line = completion.text.split("\n")
        assert line == RATE[0][completion.choices[0]]
        tokens = list(completion.tokens)
        if not scored:
            path = reference.paths(request)[0][completion.choices[0]]
            assert tuple(tokens[-len(path) :]) == path
            tokens = tokens[: -len(path)]
        assert len(tokens) <= limit + 1 and engine._tokenizer.eot_id not in tokens
        assert engine._tokenizer.decode(tokens) == completion.text[: -len(line)]
        prompt = reference.prompt(request) + tokens
        if scored:
            p = reference.distribution(prompt, request)
        else:
            stem = list(path[: len(path) - 2])  # RATING: and a space, then the digit
            p = np.exp(
                reference.logprobs(prompt + stem)[[q[-2] for q in reference.paths(request)[0]]]
            )
            p /= p.sum()
        np.testing.assert_allclose(completion.choice_probabilities[0], p, atol=2e-5)


nasty = st.text(st.sampled_from("17 [](){}:\"'\\\t_éß电影🎬שלום"), min_size=1, max_size=4)
lines = st.lists(nasty, min_size=1, max_size=4, unique=True).map(tuple)


@settings(max_examples=12, deadline=None)
@given(st.lists(st.lists(lines, min_size=1, max_size=2).map(tuple), min_size=4, max_size=8))
def test_every_reply_is_one_of_what_was_asked_for(engine, answers):
    requests = [
        ask(n, answer, temperature=1.5, reasoning_tokens=4 * (n % 2), scored=len(answer) == 1)
        for n, answer in enumerate(answers)
    ]
    for request, completion in zip(requests, generate(engine, requests), strict=True):
        assert completion.finish_reason == "stop", completion.error
        said = [line[c] for line, c in zip(request.answer, completion.choices, strict=True)]
        assert completion.text.endswith("\n".join(said))
        before = completion.text[: len(completion.text) - len("\n".join(said))]
        assert before == "" or (request.reasoning_tokens and before.endswith("\n"))


def test_adapters_and_prompts_really_differ(engine):
    """What the other tests compare would be worth little if all replies were the same."""
    requests = [ask(n, RATE, scored=True, adapter=a) for n in (1, 2, 3) for a in (None, "base")]
    distributions = [c.choice_probabilities[0] for c in generate(engine, requests)]
    gaps = [
        abs(np.subtract(p, q)).max()
        for i, p in enumerate(distributions)
        for q in distributions[:i]
    ]
    assert min(gaps) > 0.001


def test_samples_are_distinct_draws_that_come_back_together(engine):
    (completion,) = generate(engine, [ask(3, (), max_tokens=8, temperature=1.0, samples=6)])
    assert len(completion.samples) == 6
    assert len({sample.tokens for sample in completion.samples}) > 1
    assert completion.text == completion.samples[0].text
    generated = sum(sample.usage.generated_tokens for sample in completion.samples)
    assert completion.usage.generated_tokens == generated


def test_drawn_choices_follow_the_reported_probabilities(engine):
    for answer, scored, n in ((RATE, True, 400), (ACT, False, 160)):
        requests = [
            ask(4, answer, scored=scored, temperature=1.0, key=stable_key("draw", n))
            for n in range(n)
        ]
        completions = generate(engine, requests)
        (p,) = {c.choice_probabilities[0] for c in completions}
        observed = np.bincount([c.choices[0] for c in completions], minlength=len(p))
        assert chisquare(observed, np.array(p) / sum(p) * len(requests)).pvalue > 1e-4


def test_a_request_that_cannot_run_harms_no_other(engine, reference):
    good = [ask(1), ask(2, RATE, scored=True)]
    expected = [result(c) for c in generate(engine, good)]
    long = Request(talk(SYSTEM, "film " * 200), "test", answer=ACT)
    bad = [
        (long, "do not fit the context of 128"),
        (ask(1, (), max_tokens=128), "do not fit the context of 128"),
        (ask(1, SCREEN, scored=True), "exactly one answer line, got 2"),
        (ask(1, adapter="other"), "adapter 'other'"),
        (ask(1, (tuple("abcdefghijklmn"),)), "at most 14 edges"),
        (Request((), "test"), "no messages"),
        (ask(1, temperature=-1.0), "temperature=-1.0"),
        (ask(1, samples=0), "samples=0"),
        (ask(1, (("twice", "twice"),)), "begin those"),
    ]
    completions = generate(engine, [good[0], *(request for request, _ in bad), good[1]])
    for (_, message), completion in zip(bad, completions[1:-1], strict=True):
        assert completion.finish_reason == "error" and message in completion.error
        assert completion.text == "" and completion.choices == ()
    assert [result(completions[0]), result(completions[-1])] == expected


def test_cancelled_requests_do_not_come_back(engine):
    tickets = [engine.submit(ask(n)) for n in range(6)]
    engine.cancel(tickets[1])
    engine.cancel(tickets[5])
    returned = []
    while batch := engine.collect():
        returned += [ticket for ticket, _ in batch]
    assert sorted(returned) == [tickets[i] for i in (0, 2, 3, 4)]
    assert engine.collect() == []


def test_a_device_failure_keeps_the_queue_and_the_engine_recovers(engine, monkeypatch):
    expected = result(generate(engine, [ask(1)])[0])

    def fail(*_):
        raise RuntimeError("out of memory")

    ticket = engine.submit(ask(1))
    with monkeypatch.context() as patch:
        patch.setattr(engine._device.programs, "decode", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            engine.collect()
    ((returned, completion),) = engine.collect()
    assert returned == ticket and result(completion) == expected


def test_statistics_count_what_was_done(decoder, tokenizer, engine):
    fresh = Engine(decoder, tokenizer, GEOMETRY)
    fresh._device.programs = engine._device.programs
    completions = generate(fresh, [ask(n) for n in range(6)])
    assert fresh.stats["rows"] == 6
    for name in ("prompt_tokens", "generated_tokens", "cached_tokens"):
        assert fresh.stats[name] == sum(getattr(c.usage, name) for c in completions)
    assert fresh.stats["seconds"] >= fresh.stats["decode_seconds"] > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"context": 100}, "EngineConfig.context=100: expected a multiple of chunk=32"),
        ({"slots": 0}, "EngineConfig.slots=0: expected a whole number of at least 1"),
        ({"group": -1}, "EngineConfig.group=-1"),
        ({"chunks": -1}, "EngineConfig.chunks=-1: expected a whole number of at least 0"),
        ({"steps": 2.5}, "EngineConfig.steps=2.5"),
        ({"tensor": True}, "EngineConfig.tensor=True"),
        ({"pages": -1}, "EngineConfig.pages=-1: expected a whole number of at least 0"),
        ({"strips": -1}, "EngineConfig.strips=-1"),
        ({"reuse": "yes"}, "EngineConfig.reuse='yes'"),
    ],
)
def test_a_geometry_that_cannot_be_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        EngineConfig(**change)


def test_padded_tables_point_to_the_accepting_state():
    assert ACCEPT == 0


def test_each_request_takes_the_adapter_that_it_names(decoder, tokenizer):
    """Two adapters and the base in one batch: what each gives alone, nothing recompiled."""
    graphdef, lora, base = split(decoder)
    first = named_arrays(lora)
    rng = np.random.default_rng(5)
    narrow = LoraConfig(rank=1, alpha=3.0, targets=("q", "down"))
    second = {
        name: rng.normal(
            0, 0.5, values[..., :1].shape if name[-1] == "a" else values[:, :1].shape
        )
        for name, values in first.items()
        if name.split(".")[1] in narrow.targets
    }
    both = {"policy": (decoder.lora, first), "rival": (narrow, second)}

    def built(adapters):
        lora, adapter_ranks, arrays = join_adapters(adapters)
        graphdef, low, _ = split(abstract_decoder(decoder.config, lora, adapters=adapter_ranks))
        arrays = {name: jnp.asarray(values, jnp.float32) for name, values in arrays.items()}
        return merge(graphdef, with_arrays(low, arrays), base)

    engine = Engine(built(both), tokenizer, GEOMETRY)
    names = ["policy", "rival", "base", None]
    requests = [
        replace(request, adapter=names[n % 4])
        for n, request in enumerate(mixed() + mixed()[1:])
    ]
    together = generate(engine, requests)
    compiled = engine.compilations
    for name in ("policy", "rival"):
        alone = Engine(built({name: both[name]}), tokenizer, GEOMETRY)
        for request, completion in zip(requests, together, strict=True):
            if request.adapter == name:
                (expected,) = generate(alone, [request])
                assert completion.text == expected.text
                np.testing.assert_allclose(completion.logprobs, expected.logprobs, atol=1e-4)
    request = ask(3, RATE, scored=True)
    answers = generate(engine, [replace(request, adapter=name) for name in names])
    distributions = [completion.choice_probabilities[0] for completion in answers]
    assert (
        distributions[3] == distributions[0]
        and len({distributions[0], distributions[1], distributions[2]}) == 3
    )
    assert engine.compilations == compiled
    (refused,) = generate(engine, [replace(request, adapter="nobody")])
    assert refused.finish_reason == "error" and "['base', 'policy', 'rival']" in refused.error


def test_an_adapter_on_the_upper_layers_is_sampled_with(decoder, tokenizer):
    upper = with_random_b(init_decoder(decoder.config, LoraConfig(rank=2, layers=1), seed=3))
    engine, reference = Engine(upper, tokenizer, GEOMETRY), Reference(upper, tokenizer)
    requests = [ask(2, RATE, scored=True, adapter=name) for name in (None, "base")]
    scored = generate(engine, requests)
    for number, (request, completion) in enumerate(zip(requests, scored, strict=True)):
        p = reference.distribution(reference.prompt(request), request, 1 - number)
        np.testing.assert_allclose(completion.choice_probabilities[0], p, atol=2e-5)
    assert scored[0].choice_probabilities != scored[1].choice_probabilities
    merged = Engine(merge_lora(upper), tokenizer, GEOMETRY)
    (again,) = generate(merged, [replace(requests[0], adapter=None)])
    np.testing.assert_allclose(
        again.choice_probabilities[0], scored[0].choice_probabilities[0], atol=2e-5
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": (tuple(f"RATING: {n}" for n in range(1, 34)),)}, "edges=12"),
        ({"top_k": 2**31}, "whole numbers"),
        ({"max_tokens": 4.5}, "whole numbers"),
        ({"key": -1}, "key=-1"),
        ({"temperature": 1e38}, "temperature"),
        ({"top_p": 1e-45}, "top_p"),
    ],
)
def test_what_no_engine_can_do_is_refused_and_others_are_answered(engine, change, message):
    good = ask(3, RATE, scored=True)
    bad, done = generate(engine, [replace(good, **change), good])
    assert message in bad.error and done.choice_probabilities


def test_free_text_ends_at_any_of_the_models_end_ids(engine, decoder, tokenizer):
    """As generation_config.json lists them; in reasoning they are never written."""
    request = ask(3, (), max_tokens=20)
    (long,) = generate(engine, [request])
    ends = long.tokens[4]
    config = replace(decoder.config, eos_token_ids=(ends, 1))
    graphdef, lora, base = split(abstract_decoder(config, decoder.lora))
    other = Engine(merge(graphdef, *split(decoder)[1:]), tokenizer, GEOMETRY)
    reasoned = ask(3, RATE, reasoning_tokens=20, samples=8, temperature=2.0)
    short, answers = generate(other, [request, reasoned])
    assert short.tokens == long.tokens[: long.tokens.index(ends) + 1]
    assert short.finish_reason == "stop" and long.finish_reason == "length"
    assert all(ends not in sample.tokens for sample in answers.samples)
