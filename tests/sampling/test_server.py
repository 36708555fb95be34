"""The client of OpenAI-compatible servers against one that misbehaves in every known way."""

import json
import socket
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from hostile_server import HostileServer, completion, failure

from alignuser_jax.agents import Journal, SessionSpec, run_population
from alignuser_jax.language.parsing import REPROMPT
from alignuser_jax.records import Event, Message, Outcome, Request, State
from alignuser_jax.sampling import ServerConfig, ServerError, ServerGenerator, generate
from alignuser_jax.sampling.structured import PROBE, as_lines, constraint, pattern
from alignuser_jax.sampling.transport import TransportConfig

RATE = (("RATING: 1", "RATING: 2", "RATING: 3"),)


@pytest.fixture
def hostile(monkeypatch):
    """Makes servers that are stopped after the test."""
    monkeypatch.setenv("TEST_KEY", "sk-secret")
    made = []

    def make(*arguments, **options):
        made.append(HostileServer(*arguments, **options))
        return made[-1]

    yield make
    for server in made:
        server.stop()


@pytest.fixture
def connect():
    made = []

    def make(*servers, structured="none", model="m", prices=(0.0, 0.0), extra=(), **options):
        urls = tuple(getattr(server, "url", server) for server in servers)
        options = {"backoff_seconds": 0.02, "api_key_env": "TEST_KEY"} | options
        made.append(
            ServerGenerator(
                ServerConfig(
                    model,
                    TransportConfig(urls, **options),
                    structured,
                    adapters={"policy": "m-policy"},
                    extra=dict(extra),
                    prompt_price=prices[0],
                    generated_price=prices[1],
                )
            )
        )
        return made[-1]

    yield make
    for generator in made:
        generator.close()


def ask(text="Rate it.", **options):
    messages = (Message.of("system", "s"), Message.of("user", text))
    return Request(messages, "rate", **({"answer": RATE} | options))


def say(text="Tell me.", **options):
    return ask(text, answer=(), **options)


def nobody() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/v1"


# --- what is sent and what comes back ----------------------------------------------------


def test_a_request_becomes_a_chat_completion_and_its_reply_a_completion(hostile, connect):
    server = hostile(
        lambda body, n: completion("RATING: 2", prompt=100, generated=7, cached=64)
    )
    generator = connect(server, prices=(2.0, 10.0), extra={"top_k": -1})
    first, second = generate(
        generator,
        [
            ask(temperature=0.5, top_p=0.9, key=2**40 + 5, reasoning_tokens=50),
            say(max_tokens=77, adapter="policy"),
        ],
    )
    assert (first.text, first.choices, first.choice_probabilities) == ("RATING: 2", (1,), ())
    assert first.usage == (100, 64, 7)
    assert (second.text, second.choices, second.finish_reason) == ("RATING: 2", (), "stop")
    sent = {body["model"]: body for body in server.bodies}
    rated = sent["m"]
    assert rated["messages"] == [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "Rate it."},
    ]
    assert (rated["temperature"], rated["top_p"], rated["seed"]) == (0.5, 0.9, 5)
    assert rated["top_k"] == -1 and "n" not in rated
    assert 50 + len("RATING: 2") <= rated["max_tokens"] <= 50 + 64
    assert sent["m-policy"]["max_tokens"] == 77
    assert set(server.keys) == {"Bearer sk-secret"}
    stats = generator.stats
    assert (stats["requests"], stats["errors"]) == (2, 0)
    hello = 1  # the model's first word is paid for too
    assert stats["prompt_tokens"] == 200 + 10 * hello
    assert stats["generated_tokens"] == 14 + 3 * hello
    assert stats["cost"] == pytest.approx((210 * 2.0 + 17 * 10.0) / 1e6)
    assert generator.collect() == [] and stats["seconds"] > 0


def test_an_adapter_that_is_not_served_is_refused_by_name(hostile, connect):
    with pytest.raises(ValueError, match="adapter 'mine'.*policy"):
        connect(hostile()).submit(ask(adapter="mine"))


def test_a_reply_cut_by_its_limit_says_so_and_an_empty_one_is_a_failure(hostile, connect):
    texts = {"a": completion("so far", finish="length"), "b": completion("")}
    server = hostile(lambda body, n: texts[body["messages"][-1]["content"]])
    cut, empty = generate(connect(server), [say("a"), say("b")])
    assert (cut.text, cut.finish_reason) == ("so far", "length")
    assert empty.finish_reason == "error" and "empty" in empty.error


@pytest.mark.parametrize("way", ["honoured", "ignored", "refused", "too many"])
def test_samples_however_the_server_takes_n(way, hostile, connect):
    def reply(body, number):
        count = body.get("n", 1)
        if way == "refused" and count > 1:
            return failure(422, "n must be 1")
        if way == "ignored":
            count = 1
        texts = [f"RATING: {1 + body['seed'] % 3}"] * (count + (way == "too many"))
        return completion(*texts, prompt=10, generated=4)

    server = hostile(reply)
    generator = connect(server)
    first, second = generate(generator, [ask(samples=3, key=7), ask(samples=3, key=8)])
    assert len(first.samples) == len(second.samples) == 3
    assert all(len(sample.choices) == 1 for sample in first.samples + second.samples)
    if way in ("honoured", "too many"):
        assert len(server.bodies) == 2 and first.usage.prompt_tokens == 10
    else:
        assert first.usage.prompt_tokens == 30  # what three calls used
        single = [body["seed"] for body in server.bodies if "n" not in body]
        assert len(set(single)) == len(single)  # no sample is another's copy
        before = len(server.bodies)
        generate(generator, [ask(samples=3, key=9)])
        assert len(server.bodies) == before + 3  # the server is not asked for n again


def test_max_completion_tokens_where_the_server_wants_that_name(hostile, connect):
    def picky(body, number=0):
        if "max_tokens" in body:
            return failure(400, "max_tokens is not supported: use max_completion_tokens")
        return completion("RATING: 3")

    server = hostile(picky, hello=picky)
    (done,) = generate(connect(server), [ask()])
    assert done.choices == (2,) and len(server.bodies) == 1
    assert server.bodies[0]["max_completion_tokens"] >= len("RATING: 3")


# --- replies that cannot be read ---------------------------------------------------------


def test_a_wrong_reply_is_asked_for_once_more(hostile, connect):
    replies = ["I like it.", "Very well.\nRATING: 3"]
    server = hostile(lambda body, n: completion(replies[n], prompt=10, generated=2))
    generator = connect(server)
    (done,) = generate(generator, [ask(key=3)])
    assert (done.choices, done.finish_reason, done.usage) == ((2,), "stop", (20, 0, 4))
    first, again = server.bodies
    assert again["messages"] == [
        *first["messages"],
        {"role": "assistant", "content": "I like it."},
        {"role": "user", "content": REPROMPT},
    ]
    assert again["seed"] != first["seed"] and generator.stats["reprompts"] == 1


def test_wrong_twice_is_an_explicit_failure(hostile, connect):
    server = hostile(lambda body, n: completion(f"RATING: {8 + n}"))
    generator = connect(server)
    (done,) = generate(generator, [ask()])
    assert done.finish_reason == "error" and "'RATING: 9', expected one of" in done.error
    assert len(server.bodies) == 2 and generator.stats["errors"] == 1


def test_an_agent_does_not_ask_a_third_time(hostile, connect, tmp_path):
    """The session's own second question is for back ends that hand back what they cannot
    read; here it would be a third."""
    from alignuser_jax.agents.session import _read

    def one_question():
        done = yield ask(key=1)
        assert _read(done, RATE)[0] is None and done.finish_reason == "error"
        failed = Event("a", "u", 0, 0, "failure", text=done.error)
        return Outcome((failed,), State("u", 0, "end", 1))

    server = hostile(lambda body, n: completion("no idea"))
    with Journal.open(tmp_path, {}) as journal:
        specs = [SessionSpec("a", "u", 0, one_question)]
        (event,) = run_population(specs, connect(server), {"a": None}, journal)
    assert event.kind == "failure" and len(server.bodies) == 2


# --- failures that pass ------------------------------------------------------------------


def test_429_waits_as_long_as_the_server_says(hostile, connect):
    def reply(body, number):
        return failure(429, headers={"Retry-After": "0.7"}) if not number else completion("x")

    server = hostile(reply)
    generator = connect(server)
    (done,) = generate(generator, [say()])
    assert done.text == "x" and generator.stats["retries"] == 1
    assert server.times[1] - server.times[0] >= 0.7


@pytest.mark.parametrize(
    "bad",
    [
        failure(500),
        failure(503),
        failure(408),
        failure(409),
        (200, {}, b'{"choices": [{"mess'),
        (200, {}, {"object": "chat.completion", "choices": []}),
        (200, {}, {"choices": [{"index": 0}]}),
        (200, {"Content-Type": "text/html"}, b"<html>bad gateway</html>"),
    ],
)
def test_passing_failures_are_asked_again(bad, hostile, connect):
    server = hostile(lambda body, n: bad if n < 2 else completion("x"))
    generator = connect(server)
    (done,) = generate(generator, [say()])
    assert (done.text, generator.stats["retries"]) == ("x", 2)


def test_a_reply_that_comes_too_late_is_asked_for_again(hostile, connect):
    def reply(body, number):
        time.sleep(0 if number else 1.5)
        return completion("x")

    generator = connect(hostile(reply), read_seconds=0.4)
    (done,) = generate(generator, [say()])
    assert done.text == "x" and generator.stats["retries"] == 1


@pytest.mark.parametrize("alone", [True, False])
def test_a_request_that_always_fails_fails_alone(alone, hostile, connect):
    def reply(body, number):
        poison = body["messages"][-1]["content"] == "poison"
        return failure(500, "out of bounds") if poison else completion("x")

    generator = connect(hostile(reply), retries=2)
    others = [] if alone else [say(str(n)) for n in range(6)]
    first, *rest = generate(generator, [say("poison"), *others])
    assert first.finish_reason == "error" and "500: out of bounds, 3 times" in first.error
    assert [done.text for done in rest] == ["x"] * len(others)


def test_a_refused_request_is_its_own_failure_and_is_not_repeated(hostile, connect):
    server = hostile(lambda body, n: failure(400, "the context is too long"))
    (done,) = generate(connect(server), [ask()])
    assert done.finish_reason == "error" and "400: the context is too long" in done.error
    assert len(server.bodies) == 1


# --- failures that stop the run, soon and by name ----------------------------------------


@pytest.mark.parametrize(
    ("options", "given", "texts"),
    [
        ({"models_status": 401}, {}, ["401", "models say no", "$TEST_KEY, which is set"]),
        (
            {"models_status": 401},
            {"api_key_env": "NO_SUCH_KEY"},
            ["$NO_SUCH_KEY, which is not set", "--api_key_env"],
        ),
        ({"hello": lambda body: failure(403, "not yours")}, {}, ["403: not yours"]),
        (
            {"hello": lambda body: failure(404, "no such model")},
            {"model": "other-modle"},
            ["'other-modle'", "did you mean 'other-model'?", "no such model", "--model"],
        ),
        ({"hello": lambda body: failure(400, "pinned to m")}, {}, ["pinned to m", "--model"]),
        ({"hello": lambda body: failure(402, "pay")}, {}, ["402: pay", "Add credit"]),
        (
            {"hello": lambda body: failure(429, "quota", code="insufficient_quota")},
            {},
            ["429: quota", "Add credit"],
        ),
    ],
)
def test_a_server_that_cannot_be_used_is_an_error_at_once(
    options, given, texts, hostile, connect
):
    server = hostile(**options)
    started = time.monotonic()
    with pytest.raises(ServerError) as error:
        connect(server, **given)
    assert time.monotonic() - started < 3
    for text in [server.url, *texts]:
        assert text in str(error.value)
    assert "sk-secret" not in str(error.value)


def test_nobody_there_is_an_error_at_once(connect):
    url = nobody()
    started = time.monotonic()
    with pytest.raises(ServerError, match=f"(?s){url}.*Start the server"):
        connect(url)
    assert time.monotonic() - started < 3


def test_a_server_that_accepts_and_says_nothing_is_an_error_at_once(connect):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(ServerError, match="no answer from"):
            connect(f"http://127.0.0.1:{silent.getsockname()[1]}/v1", connect_seconds=0.5)


def test_a_server_without_the_models_route_is_tolerated(hostile, connect):
    (done,) = generate(connect(hostile(models_status=404)), [ask()])
    assert done.choices == (1,)


def test_a_key_that_is_revoked_stops_the_run(hostile, connect):
    server = hostile(lambda body, n: completion("x") if n < 1 else failure(401, "revoked"))
    generator = connect(server)
    assert generate(generator, [say()])[0].text == "x"
    for n in range(4):
        generator.submit(say(str(n)))
    with pytest.raises(ServerError, match="401: revoked"):
        generator.collect()
    with pytest.raises(ServerError, match="401: revoked"):
        generator.submit(say())


def test_a_server_that_stays_broken_stops_the_run_after_what_was_answered(hostile, connect):
    def reply(body, number):
        return completion("x") if number < 5 else failure(500, "worker died")

    generator = connect(hostile(reply), retries=3, concurrency=4)
    tickets = [generator.submit(say(str(n))) for n in range(20)]
    done = []
    started = time.monotonic()
    with pytest.raises(ServerError, match="worker died.*run the same command"):
        while batch := generator.collect():
            done += batch
    assert time.monotonic() - started < 5
    assert len(done) == 5 and {ticket for ticket, _ in done} < set(tickets)
    assert all(completion.text == "x" for _, completion in done)


def test_a_server_that_goes_away_stops_the_run_within_its_patience(hostile, connect):
    server = hostile(lambda body, n: completion("x"))
    generator = connect(server, retries=3)
    generate(generator, [say()])
    server.stop()
    for n in range(8):
        generator.submit(say(str(n)))
    started = time.monotonic()
    with pytest.raises(ServerError, match=f"no answer from {server.url} after 3 retries"):
        while generator.collect():
            pass
    assert time.monotonic() - started < 5


def test_a_server_that_comes_back_in_time_goes_on(hostile, connect):
    server = hostile(lambda body, n: completion("x"))
    generator = connect(server, retries=8, backoff_seconds=0.1)
    server.stop()
    for n in range(4):
        generator.submit(say(str(n)))
    time.sleep(0.5)
    server.start(server.port)
    done = []
    while batch := generator.collect():
        done += batch
    assert len(done) == 4 and generator.stats["errors"] == 0
    assert generator.stats["retries"] >= 1


def test_a_wait_that_is_too_long_is_a_failure(hostile, connect):
    server = hostile(lambda body, n: failure(429, "tomorrow", headers={"Retry-After": "86400"}))
    generator = connect(server)
    generator.submit(say())
    generator.submit(say("another"))
    started = time.monotonic()
    with pytest.raises(ServerError, match="tomorrow"):
        generator.collect()
    assert time.monotonic() - started < 3


# --- many calls, many URLs ---------------------------------------------------------------


def test_no_more_calls_at_once_than_allowed(hostile, connect):
    def reply(body, number):
        time.sleep(0.03)
        return completion("x")

    server = hostile(reply)
    done = generate(connect(server, concurrency=3), [say(str(n)) for n in range(20)])
    assert [d.text for d in done] == ["x"] * 20
    assert server.most == 3


def test_calls_spread_and_a_conversation_stays_where_its_prefix_is(hostile, connect):
    def reply(body, number):
        time.sleep(0.01)
        return completion("x")

    servers = [hostile(reply), hostile(reply)]
    generator = connect(*servers, concurrency=64)
    for turn in range(3):
        requests = []
        for user in range(24):
            first = (Message.of("system", "s"), Message.of("user", f"user {user}"))
            said = (Message.of("assistant", "x"), Message.of("user", "go on")) * turn
            requests.append(Request(first + said, "act", key=turn))
        generate(generator, requests[turn:] + requests[:turn])
    homes = [{b["messages"][1]["content"] for b in server.bodies} for server in servers]
    assert not homes[0] & homes[1] and len(homes[0] | homes[1]) == 24
    assert min(len(home) for home in homes) >= 4


def test_a_full_home_gives_to_the_other(hostile, connect):
    def reply(body, number):
        time.sleep(0.05)
        return completion("x")

    servers = [hostile(reply), hostile(reply)]
    generate(connect(*servers, concurrency=2), [say("the same", key=n) for n in range(12)])
    assert min(len(server.bodies) for server in servers) >= 4


def test_one_of_two_dies_and_the_other_answers_everything(hostile, connect):
    def reply(body, number):
        time.sleep(0.02)
        return completion("x")

    servers = [hostile(reply), hostile(reply)]
    generator = connect(*servers, concurrency=4, retries=2, backoff_seconds=0.05)
    tickets = {generator.submit(say(str(n))) for n in range(60)}
    done = dict(generator.collect())
    servers[0].stop()
    while batch := generator.collect():
        done.update(batch)
    assert done.keys() == tickets
    assert {completion.text for completion in done.values()} == {"x"}
    assert generator.stats["errors"] == 0


def test_one_of_two_that_is_not_there_at_the_start_is_left_out(hostile, connect):
    server = hostile(lambda body, n: completion("x"))
    done = generate(connect(nobody(), server, retries=2), [say(str(n)) for n in range(10)])
    assert [d.text for d in done] == ["x"] * 10


def test_a_cancelled_request_never_comes_back(hostile, connect):
    def reply(body, number):
        time.sleep(0.2 if "slow" in body["messages"][-1]["content"] else 0)
        return completion("x")

    server = hostile(reply)
    generator = connect(server, concurrency=1)
    slow = generator.submit(say("slow"))
    waiting, kept = generator.submit(say("never sent")), generator.submit(say("kept"))
    while not server.bodies:
        time.sleep(0.01)
    generator.cancel(slow)
    generator.cancel(waiting)
    generator.cancel(waiting)  # once more changes nothing
    assert [ticket for ticket, _ in generator.collect()] == [kept]
    assert generator.collect() == []
    assert "never sent" not in str(server.bodies)


def test_an_answer_that_was_not_collected_can_be_cancelled(hostile, connect):
    generator = connect(hostile())
    ticket = generator.submit(ask())
    time.sleep(0.3)
    generator.cancel(ticket)
    kept = generator.submit(ask())
    assert [ticket for ticket, _ in generator.collect()] == [kept]
    assert generator.collect() == []


# --- structured answers ------------------------------------------------------------------

TWO = (("[ITEM_1] (a) watch", "[ITEM_1] (a) skip"), ("[ITEM_2] b|c watch", "[ITEM_2] b|c skip"))


def knows(mode):
    """A server that keeps to constraints sent in one way and refuses unknown fields."""
    fields = {
        "vllm": "structured_outputs",
        "guided": "guided_choice",
        "sglang": "regex",
        "json_schema": "response_format",
    }

    def reply(body, number=0):
        for other, name in fields.items():
            if other != mode and (name in body or "guided_regex" in body and other == "guided"):
                return failure(422, f"unknown field {name}")
        if mode == "json_schema" and "response_format" in body:
            schema = body["response_format"]["json_schema"]["schema"]["properties"]
            return completion(json.dumps({name: v["enum"][-1] for name, v in schema.items()}))
        if any(name in body for name in (fields.get(mode), "guided_regex")):
            asked = PROBE if body["messages"][-1]["content"] == "Say hello." else TWO
            return completion("\n".join(line[-1] for line in asked))
        return completion("Hello!")

    return reply


@pytest.mark.parametrize("mode", ["vllm", "guided", "sglang", "json_schema", "none"])
def test_auto_finds_how_the_server_constrains(mode, hostile, connect):
    server = hostile(knows(mode), hello=knows(mode))
    generator = connect(server, structured="auto")
    assert generator.mode == mode and generator.about["structured"] == mode
    (done,) = generate(generator, [ask(answer=TWO)])
    if mode == "none":
        assert done.finish_reason == "error" and len(server.bodies) == 2
    else:
        assert done.choices == (1, 1) and len(server.bodies) == 1
        assert done.text == "[ITEM_1] (a) skip\n[ITEM_2] b|c skip"


def test_auto_is_not_deceived_by_a_server_that_ignores_what_it_does_not_know(hostile, connect):
    server = hostile(hello=lambda body: completion("Hello!"))
    assert connect(server, structured="auto").mode == "none"


def test_reasoning_is_not_constrained(hostile, connect):
    server = hostile(lambda body, n: completion("Let me see.\nRATING: 3"))
    generator = connect(server, structured="vllm")
    (done,) = generate(generator, [ask(reasoning_tokens=20)])
    assert done.choices == (2,) and "structured_outputs" not in server.bodies[0]
    generate(generator, [ask()])
    assert server.bodies[1]["structured_outputs"] == {"choice": list(RATE[0])}


def test_constraints_hold_exactly_the_answers():
    import itertools
    import re

    answers = ["\n".join(lines) for lines in itertools.product(*TWO)]
    for answer in answers:
        assert re.fullmatch(pattern(TWO), answer)
        assert not re.fullmatch(pattern(TWO), answer + "\n")
        assert not re.fullmatch(pattern(TWO), answer.replace("(a)", "a"))
    sent = constraint("vllm", TWO)["extra_body"]["structured_outputs"]
    assert (
        sent
        == {"regex": pattern(TWO)}
        == {"regex": constraint("sglang", TWO)["extra_body"]["regex"]}
    )
    schema = constraint("json_schema", TWO)["response_format"]["json_schema"]
    assert schema["strict"] and schema["schema"]["additionalProperties"] is False
    with pytest.raises(ValueError, match="no object of the answer lines"):
        as_lines("json_schema", '{"line_1": "x"}', TWO)


# --- the rest ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"urls": ()}, "no server URL"),
        ({"urls": ("localhost:8000",)}, "'localhost:8000' is no URL"),
        ({"urls": ("http://a/v1", "http://a/v1")}, "not different"),
        ({"concurrency": 0}, "concurrency is 0"),
        ({"retries": -1}, "retries is -1"),
    ],
)
def test_settings_that_cannot_be_are_refused(change, text):
    config = TransportConfig(("http://a/v1",))
    with pytest.raises(ValueError, match=text):
        replace(config, **change)
    with pytest.raises(ValueError, match="structured is 'xml'"):
        ServerConfig("m", config, structured="xml")
    with pytest.raises(ValueError, match="no model"):
        ServerConfig("", config)


def test_the_room_imports_neither_jax_nor_the_client():
    code = (
        "import sys, alignuser_jax.sampling, alignuser_jax.sampling.server\n"
        "assert not {'jax', 'openai'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
