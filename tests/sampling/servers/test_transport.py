"""Failing servers: what passes is asked again, what does not stops the run, soon, by name."""

import socket
import time

import pytest

from alignuser_jax.records import Message, Request
from alignuser_jax.sampling import ServerError, generate
from tests.hostile_server import completion, failure
from tests.sampling.servers.server_requests import ask, nobody, say

RATE = (("RATING: 1", "RATING: 2", "RATING: 3"),)


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


def test_a_server_that_limits_the_rate_fails_nobody(hostile, connect):
    answered = []

    def reply(body, number):
        now = time.monotonic()
        if sum(now - then < 0.3 for then in answered) >= 3:
            return failure(429, "slow down")
        answered.append(now)
        return completion("x")

    generator = connect(hostile(reply), retries=4, backoff_seconds=0.1)
    done = generate(generator, [say(str(n)) for n in range(30)])
    assert [c.text for c in done] == ["x"] * 30 and generator.stats["retries"] > 4


def test_a_wait_that_is_no_number_is_left_to_the_backoff(hostile, connect):
    bad = failure(429, headers={"Retry-After": "nan"})
    generator = connect(hostile(lambda body, n: completion("x") if n else bad))
    assert generate(generator, [say()])[0].text == "x"


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
    ("options", "settings", "texts"),
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
    options, settings, texts, hostile, connect
):
    server = hostile(**options)
    started = time.monotonic()
    with pytest.raises(ServerError) as error:
        connect(server, **settings)
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
    waiting, other = generator.submit(say("never sent")), generator.submit(say("kept"))
    while not server.bodies:
        time.sleep(0.01)
    generator.cancel(slow)
    generator.cancel(waiting)
    generator.cancel(waiting)  # once more changes nothing
    assert [ticket for ticket, _ in generator.collect()] == [other]
    assert generator.collect() == []
    assert "never sent" not in str(server.bodies)


def test_an_answer_that_was_not_collected_can_be_cancelled(hostile, connect):
    generator = connect(hostile())
    ticket = generator.submit(ask())
    time.sleep(0.3)
    generator.cancel(ticket)
    other = generator.submit(ask())
    assert [ticket for ticket, _ in generator.collect()] == [other]
    assert generator.collect() == []
