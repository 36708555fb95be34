"""Engines on several devices give what one gives; each keeps the conversations it has."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from alignuser_jax.records import Request
from alignuser_jax.sampling import Engine, generate
from alignuser_jax.sampling.replicas import Replicas, make_replicas
from tests.sampling.requests import GEOMETRY, SYSTEM, mixed, result, talk
from tests.xla import simulated

PROGRAM = """
import json, sys
from dataclasses import replace
import jax, numpy as np
from flax import nnx
from alignuser_jax.language import train_sentencepiece
from alignuser_jax.model import DecoderConfig, init_decoder
from alignuser_jax.records import Message, Request
from alignuser_jax.sampling import Engine, EngineConfig, generate, make_replicas

tokenizer = train_sentencepiece(["a film from 1999 is a good comedy"] * 3, 700, sys.argv[1])
shape = dict(vocab_size=704, hidden_size=32, intermediate_size=64, num_layers=1, num_heads=4)
decoder = init_decoder(DecoderConfig(**shape, num_kv_heads=2, head_dim=8), seed=4)
graph, weights = nnx.split(decoder)  # bound to a device, as those that were loaded are
decoder = nnx.merge(graph, jax.device_put(weights, jax.devices()[0]))
geometry = EngineConfig(slots=4, context=128, chunk=16, group=4)
words = "film comedy good from 1999 a is".split()
requests = [
    Request(
        (Message.of("user", " ".join(words[: 1 + n % 7]) + f" {n}"),),
        "test",
        answer=((), (("1", "2", "3"),))[n % 2],
        scored=n % 2 == 1,
        max_tokens=8,
        temperature=0.0,
    )
    for n in range(16)
]
results = {}
for tensor, devices in ((1, 1), (2, 2), (2, 8), (1, 2)):
    config = replace(geometry, tensor=tensor)
    engine = make_replicas(decoder, tokenizer, config, jax.devices()[:devices])
    engine.warm_up()
    compiled = engine.compilations
    completions = generate(engine, requests)
    assert engine.compilations == compiled, "compiled after the warm-up"
    engines = getattr(engine, "engines", [engine])
    held = [engine._device._memory.pages.k[0].addressable_shards for engine in engines]
    results[f"{tensor} of {devices}"] = {
        "texts": [c.text for c in completions],
        "bits": [[c.logprobs, c.choice_probabilities] for c in completions],
        "engines": len(engines),
        "used": sum(engine.stats["rows"] > 0 for engine in engines),
        "heads here": held[0][0].data.shape[1],
        "devices": len({shard.device for shards in held for shard in shards}),
    }
print(json.dumps(results))
"""


@pytest.mark.slow
def test_weights_over_two_devices_and_replicas_over_eight(tmp_path):
    env = os.environ | simulated(8)
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads(done.stdout.splitlines()[-1])
    alone, spread, both, copies = (results[k] for k in ("1 of 1", "2 of 2", "2 of 8", "1 of 2"))
    assert [r["engines"] for r in (alone, spread, both, copies)] == [1, 1, 4, 2]
    assert [r["devices"] for r in (alone, spread, both, copies)] == [1, 2, 8, 2]
    assert [r["heads here"] for r in (alone, spread, both, copies)] == [2, 1, 1, 2]
    assert both["used"] == 4 and copies["used"] == 2
    assert both["bits"] == spread["bits"] and copies["bits"] == alone["bits"]
    assert spread["texts"] == alone["texts"]


@pytest.fixture
def two(decoder, tokenizer):
    engines = [Engine(decoder, tokenizer, GEOMETRY) for _ in range(2)]
    engines[1]._device.programs = engines[0]._device.programs
    replicas = Replicas(engines)
    yield replicas
    replicas.close()


def test_replicas_answer_as_one_engine_and_conversations_stay(two, decoder, tokenizer):
    one = Engine(decoder, tokenizer, GEOMETRY)
    one._device.programs = two.engines[0]._device.programs
    expected = [result(c) for c in generate(one, mixed())]
    assert [result(c) for c in generate(two, mixed())] == expected
    assert all(engine.stats["rows"] for engine in two.engines)
    turns = [SYSTEM, "film 1999 from the list because comedy " * 2]
    homes = []
    for _ in range(3):
        ticket = two.submit(Request(talk(*turns), "test", max_tokens=4))
        homes.append(two._engine_of[ticket])
        ((_, completion),) = two.collect()
        turns += [completion.text, "another page"]
    assert len(set(homes)) == 1 and completion.usage.cached_tokens > 0
    assert two.report()["rows"] == sum(engine.report()["rows"] for engine in two.engines)


def test_questions_about_one_user_go_to_one_engine(two):
    personas = {name: f"user {name} " + "likes a film " * 45 for name in "abcd"}
    homes = {name: set() for name in personas}
    for item in ("one", "two", "three"):
        for name, persona in personas.items():
            ticket = two.submit(Request(talk(SYSTEM, f"{persona} {item}"), "test"))
            homes[name].add(two._engine_of[ticket])
    assert all(len(engines) == 1 for engines in homes.values())
    assert sorted(sum(map(list, homes.values()), [])) == [0, 0, 1, 1]


def test_cancelled_and_failing(two, monkeypatch):
    tickets = [two.submit(request) for request in mixed()]
    two.cancel(tickets[2])
    two.cancel(tickets[2])
    returned = []
    while batch := two.collect():
        returned += [ticket for ticket, _ in batch]
    assert sorted(returned) == sorted(set(tickets) - {tickets[2]})

    def fail(*_):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(two.engines[0]._device.programs, "prefill", fail)
        two.submit(mixed()[0])
        with pytest.raises(RuntimeError, match="out of memory"):
            two.collect()


def test_an_exception_loses_no_answer(two, monkeypatch):
    expected = {n: result(c) for n, c in enumerate(generate(two, mixed()))}
    poll, failures = two.engines[0].poll, iter([RuntimeError("out of memory")])

    def fails_once():
        for failure in failures:
            raise failure
        return poll()

    monkeypatch.setattr(two.engines[0], "poll", fails_once)
    tickets = {two.submit(request): n for n, request in enumerate(mixed())}
    results, raised = {}, 0
    while len(results) < len(tickets):
        try:
            results |= {tickets[ticket]: result(c) for ticket, c in two.collect()}
        except RuntimeError:
            raised += 1
    assert raised == 1 and results == expected
    two.submit(mixed()[0])
    two.close()
    with pytest.raises(RuntimeError, match="closed before 1 requests"):
        two.collect()


def test_a_row_whose_automaton_could_not_be_installed_comes_again(decoder, tokenizer):
    engine = Engine(decoder, tokenizer, GEOMETRY)
    (request,) = [r for r in mixed() if r.answer][:1]
    (expected,) = generate(engine, [request])
    automata = engine._device.automata
    acquire, failures = automata.acquire, iter([RuntimeError("out of memory")])

    def fails_once(automaton):
        for failure in failures:
            raise failure
        return acquire(automaton)

    automata.acquire = fails_once
    engine.submit(request)
    with pytest.raises(RuntimeError, match="out of memory"):
        engine.collect()
    ((_, completion),) = engine.collect()
    assert result(completion) == result(expected)


def test_devices_must_divide(decoder, tokenizer):
    with pytest.raises(ValueError, match="tensor=3 does not divide the 1 local"):
        make_replicas(decoder, tokenizer, replace(GEOMETRY, tensor=3))


CLAIMING = """
from alignuser_jax.runs.policy import claim_devices
from alignuser_jax.sampling import EngineConfig
claim_devices(EngineConfig(cpu_engines=2))
import jax
assert len(jax.local_devices()) == 2, jax.local_devices()
claim_devices(EngineConfig(cpu_engines=3))  # too late: JAX has started
assert len(jax.local_devices()) == 2, jax.local_devices()
"""


def test_a_cpu_shows_as_many_devices_as_engines_are_wanted():
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", CLAIMING]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
