"""The client of OpenAI-compatible servers against one that misbehaves in every known way."""

import json
import re
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from alignuser_jax.agents import SessionSpec, run_population
from alignuser_jax.durable.journal import Journal
from alignuser_jax.language.parsing import REPROMPT, read_choices
from alignuser_jax.records import Event, Outcome, State
from alignuser_jax.sampling import ServerConfig, generate
from alignuser_jax.sampling.servers.structured import PROBE, as_lines, constraint, pattern
from alignuser_jax.sampling.servers.transport import TransportConfig
from tests.hostile_server import completion, failure
from tests.sampling.servers.server_requests import ask, say

RATE = (("RATING: 1", "RATING: 2", "RATING: 3"),)


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


def test_an_answer_that_was_cut_is_none(hostile, connect):
    cut = completion("I like it.\nRATING: 1", finish="length")
    server = hostile(lambda body, n: completion("RATING: 2") if n else cut)
    assert generate(connect(server), [ask()])[0].choices == (1,)
    (done,) = generate(connect(hostile(lambda body, n: cut)), [ask()])
    assert done.finish_reason == "error" and "was cut (length)" in done.error


@pytest.mark.parametrize(("content", "text"), [("a\ud800b", "a?b"), ([{"text": "x"}], "")])
def test_odd_contents_are_texts_or_failures(content, text, hostile, connect):
    (done,) = generate(connect(hostile(lambda body, n: completion(content))), [say()])
    assert done.text == text and (done.finish_reason == "error") == (not text)


def test_a_refused_request_leaves_the_others_their_samples(hostile, connect):
    def reply(body, number):
        long = body["messages"][-1]["content"] == "long"
        return failure(400, "too long") if long else completion(*["x"] * body.get("n", 1))

    server = hostile(reply)
    generator = connect(server)
    (bad,) = generate(generator, [say("long", samples=4)])
    assert bad.finish_reason == "error"
    before = len(server.bodies)
    (good,) = generate(generator, [say("short", samples=4)])
    assert len(good.samples) == 4 and len(server.bodies) == before + 1


def test_a_refused_sample_leaves_the_others_of_its_request(hostile, connect):
    def reply(body, number):
        if body.get("n"):
            return failure(400, "one choice only")
        return failure(422, "not this one") if number % 2 else completion("x")

    (done,) = generate(connect(hostile(reply)), [say(samples=4)])
    assert sorted(s.finish_reason for s in done.samples) == ["error", "error", "stop", "stop"]


def test_usage_that_is_no_numbers_counts_nothing(hostile, connect):
    def reply(body, number):
        status, headers, whole = completion("x")
        usage = {"prompt_tokens": "12", "completion_tokens": -3, "total_tokens": []}
        return status, headers, whole | {"usage": usage}

    (done,) = generate(connect(hostile(reply)), [say()])
    assert (done.text, done.usage) == ("x", (0, 0, 0))


def test_stops_and_cuts_are_sent_and_the_reply_is_cut_here_too(hostile, connect):
    server = hostile(lambda body, n: completion("one STOP two"))
    stops = ("STOP", "1", "2", "3", "4")
    (done,) = generate(connect(server), [say(stop=stops, top_k=7, min_p=0.1)])
    assert (done.text, done.finish_reason) == ("one ", "stop")
    (body,) = server.bodies
    assert body["stop"] == list(stops[:4]) and (body["top_k"], body["min_p"]) == (7, 0.1)


def test_a_request_that_takes_too_long_is_an_error_and_harms_no_other(hostile, connect):
    def reply(body, number):
        time.sleep(2 if body["messages"][-1]["content"] == "slow" else 0)
        return completion("x")

    generator = connect(hostile(reply))
    started = time.monotonic()
    slow, other = generate(generator, [say("slow", timeout_seconds=0.3), say("quick")])
    assert time.monotonic() - started < 1.5
    assert slow.finish_reason == "error" and "not done 0.3 s after" in slow.error
    assert other.text == "x"


def test_wrong_twice_is_an_explicit_failure(hostile, connect):
    server = hostile(lambda body, n: completion(f"RATING: {8 + n}"))
    generator = connect(server)
    (done,) = generate(generator, [ask()])
    assert done.finish_reason == "error" and "'RATING: 9', expected one of" in done.error
    assert len(server.bodies) == 2 and generator.stats["errors"] == 1


def test_an_agent_does_not_ask_a_third_time(hostile, connect, tmp_path):
    """The session's own second question is for back ends that hand back what they cannot
    read; here it would be a third."""

    def one_question():
        done = yield ask(key=1)
        assert read_choices(done, RATE)[0] is None and done.finish_reason == "error"
        failed = Event("a", "u", 0, 0, "failure", text=done.error)
        return Outcome((failed,), State("u", 0, "end", 1))

    server = hostile(lambda body, n: completion("no idea"))
    with Journal.open(tmp_path, {}) as journal:
        specs = [SessionSpec("a", "u", 0, one_question)]
        (event,) = run_population(specs, connect(server), {"a": None}, journal)
    assert event.kind == "failure" and len(server.bodies) == 2


# --- structured answers ------------------------------------------------------------------

TWO = (("[1] (a) watch", "[1] (a) skip"), ("[2] b|c watch", "[2] b|c skip"))


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
            answer = PROBE if body["messages"][-1]["content"] == "Say hello." else TWO
            return completion("\n".join(line[-1] for line in answer))
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
        assert done.text == "[1] (a) skip\n[2] b|c skip"


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
    alike = (("yes", "no"), ("yes", "no"))
    assert as_lines("json_schema", '{"line_2": "no", "line_1": "yes"}', alike) == "yes\nno"


# --- the rest ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"urls": ()}, "no server URL"),
        ({"urls": ("localhost:8000",)}, "'localhost:8000' is no URL"),
        ({"urls": ("http://a/v1", "http://a/v1")}, "not different"),
        ({"concurrency": 0}, "concurrency is 0"),
        ({"concurrency": 1.5}, "concurrency is 1.5"),
        ({"retries": -1}, "retries is -1"),
        ({"connect_seconds": 0}, "connect_seconds is 0"),
        ({"read_seconds": float("nan")}, "read_seconds is nan"),
        ({"backoff_seconds": -0.5}, "backoff_seconds is -0.5"),
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
    with pytest.raises(ValueError, match="prompt_price is -1"):
        ServerConfig("m", config, prompt_price=-1)


def test_a_request_that_makes_no_sense_is_an_error_of_that_request(hostile, connect):
    server = hostile(lambda body, number: completion("fine"))
    bad, good = generate(connect(server), [say(temperature=-1.0), say()])
    assert "temperature=-1.0" in bad.error and good.text == "fine"
    assert len(server.bodies) == 1


def test_the_room_imports_neither_jax_nor_the_client():
    code = (
        "import sys, alignuser_jax.sampling, alignuser_jax.sampling.servers.server\n"
        "assert not {'jax', 'openai'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- replies that begin with a given text, and replies of tagged lines --------------------

TAGGED = {"lines": ("WHY:", "LESSON:"), "line_tokens": 10, "reply_start": "WHY: I"}


@pytest.mark.parametrize("mode", ["vllm", "guided", "sglang"])
def test_a_started_reply_is_sent_where_servers_go_on_with_it(hostile, connect, mode):
    server = hostile(lambda body, n: completion(" like it.\nLESSON: Watch more."))
    (done,) = generate(connect(server, structured=mode), [say(**TAGGED)])
    assert done.text == "WHY: I like it.\nLESSON: Watch more."
    (body,) = server.bodies[-1:]
    assert body["messages"][-1] == {"role": "assistant", "content": "WHY: I"}
    assert (body["continue_final_message"], body["add_generation_prompt"]) == (True, False)
    regex = r"[^\n]{1,60}\nLESSON:[^\n]{1,60}"
    names = {"guided": "guided_regex", "sglang": "regex"}
    sent = body["structured_outputs"]["regex"] if mode == "vllm" else body[names[mode]]
    assert sent == regex and re.fullmatch(sent, " like it.\nLESSON: Watch more.")
    assert body["max_tokens"] == 2 * 10 + len("WHY:") + len("LESSON:") + 2


@pytest.mark.parametrize("mode", ["none", "json_schema"])
def test_other_servers_are_asked_in_words_to_begin_with_it(hostile, connect, mode):
    server = hostile(lambda body, n: completion("WHY: I like it.\nLESSON: More."))
    (done,) = generate(connect(server, structured=mode), [say(**TAGGED)])
    assert done.text == "WHY: I like it.\nLESSON: More."
    (body,) = server.bodies[-1:]
    assert body["messages"][-1]["content"] == "Tell me.\nBegin your reply with: WHY: I"
    assert "continue_final_message" not in body and "response_format" not in body
