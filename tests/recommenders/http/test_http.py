"""HTTP recommenders: what is sent, what comes back, and every way in which servers go wrong."""

import socket
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from alignuser_jax.recommenders import (
    HttpConfig,
    Random,
    RecommenderServer,
    RequestRefused,
    check_contract,
    from_http,
    load_recommender,
)
from alignuser_jax.records import (
    Action,
    Interaction,
    Item,
    RecommendationRequest,
    RecommenderUnavailable,
    Slate,
)
from alignuser_jax.world import RecommendationSite, advance, fill
from tests.recommenders.http.hostile_recommender import (
    HISTORIES,
    ITEMS,
    QUICK,
    HostileRecommender,
    request,
)

ROOT = Path(__file__).parents[3]


@pytest.fixture
def served():
    servers = []

    def make(recommender, **more):
        server = RecommenderServer(recommender, **more)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        servers.append(server)
        return server

    yield make
    for server in servers:
        server.shutdown()
        server.server_close()


# --- both ends ---


class Remembers:
    """Gives back what it was asked."""

    name, version, stateful = "remembers", "v1", True

    def recommend(self, requests):
        self.received = list(requests)
        return [Slate(ITEMS[: r.k], tuple(range(r.k)), (0.5,) * r.k) for r in requests]


def test_everything_arrives_at_the_other_end(served):
    theirs = Remembers()
    ours = from_http(served(theirs).url)
    assert (ours.name, ours.version, ours.stateful) == ("remembers", "v1", True)
    requests = [
        RecommendationRequest(
            "ü\n0", (Interaction("i1", 3.5, 9),), (Interaction("i2", 5.0),), 3, 2,
            frozenset({"i1", "i2"}), 1 << 62, "counterfactual",
        ),
        request("u1"),
    ]  # fmt: skip
    slates = ours.recommend(requests)
    assert theirs.received == requests
    assert slates[0] == Slate(ITEMS[:3], (0.0, 1.0, 2.0), (0.5,) * 3)
    assert len(slates[1].item_ids) == 4
    assert ours.recommend([]) == []


def test_contract_over_http(served):
    ours = from_http(served(Random(ITEMS)).url)
    report = check_contract(ours, ITEMS, HISTORIES, rounds=2)
    assert report.passed, str(report)
    assert ours.version == Random(ITEMS).version


def test_batches_are_cut_and_what_came_is_kept(hostile):
    server = hostile(lambda body, number: server.good(body) if number < 5 else None)
    config = HttpConfig(batch=2, retries=1, backoff_seconds=0.01)
    ours = from_http(server.url, config=config)
    requests = [request(f"u{n}") for n in range(5)]
    assert len(ours.recommend(requests)) == 5
    assert [len(body["requests"]) for body in server.bodies] == [2, 2, 1]
    with pytest.raises(RecommenderUnavailable) as caught:
        ours.recommend(requests)
    assert sorted(caught.value.answered) == [0, 1, 2, 3]


def test_the_server_says_what_was_wrong(served):
    import httpx2

    class Breaks:
        def recommend(self, requests):
            raise KeyError("no model")

    url = served(Breaks()).url
    for body, status, said in (
        (b"{", 400, "no JSON"),
        (b"[]", 400, "no JSON object"),
        (b"{}", 400, "no list 'requests'"),
        (b'{"requests": [{}]}', 400, "request 0 is wrong: KeyError 'user_id'"),
        (b'{"requests": [{"user_id": 3, "k": 1}]}', 400, "user_id and exclude are strings"),
        (b'{"requests": [{"user_id": "u", "k": 0}]}', 400, "k (from 1)"),
        (b'{"requests": [{"user_id": "u", "k": 1, "session": [[1]]}]}', 400, "0 is wrong"),
        (b'{"protocol": "x", "requests": []}', 400, "this server speaks"),
        (b"[" * 100_000, 400, "no JSON"),
        (b'{"requests": [{"user_id": "u", "k": 1}]}', 500, "raised KeyError: 'no model'"),
    ):  # fmt: skip
        answer = httpx2.post(url, content=body)
        assert answer.status_code == status and said in answer.json()["error"]
    with pytest.raises(RequestRefused, match="recommend raised KeyError: 'no model'"):
        from_http(url, config=QUICK).recommend([request()])


def test_a_key(served, monkeypatch):
    server = served(Random(ITEMS), key="secret")
    monkeypatch.delenv("ALIGNUSER_RECOMMENDER_KEY", raising=False)
    with pytest.raises(
        RecommenderUnavailable, match=r"ALIGNUSER_RECOMMENDER_KEY, which is not"
    ):
        from_http(server.url)
    monkeypatch.setenv("ALIGNUSER_RECOMMENDER_KEY", "secret")
    assert len(from_http(server.url).recommend([request()])) == 1


def test_one_that_keeps_state_is_refused_for_imagined_pages(served):
    site = RecommendationSite({i: Item(i, i) for i in ITEMS}, {}, {})
    ours = from_http(served(Remembers()).url)
    assert ours.stateful
    page = fill(site, ours, [site.reset("u0", 0)])
    with pytest.raises(ValueError, match="keeps state, so it cannot be asked for pages"):
        advance(site, ours, [(page[0], Action("next_page"))], purpose="counterfactual")
    assert not check_contract(ours, ITEMS, HISTORIES, rounds=1).passed


# --- servers that go wrong ---


def test_no_url_and_nobody_there():
    for url in ("localhost:80", "ftp://x", "http://[::"):
        with pytest.raises(ValueError, match="is no URL"):
            from_http(url)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = time.monotonic()
    with pytest.raises(RecommenderUnavailable, match=rf"127.0.0.1:{port}.*does not answer"):
        load_recommender(f"http://127.0.0.1:{port}")
    assert time.monotonic() - started < 5


def test_something_else_answers(hostile):
    with pytest.raises(RecommenderUnavailable, match=r"is it a recommender\? .*cornac\+http"):
        from_http(hostile(about={"protocol": "other"}).url)
    with pytest.raises(RecommenderUnavailable, match="no Cornac server|answers without a uid"):
        from_http(hostile().url, cornac=True)


@pytest.mark.parametrize(
    "bad",
    [
        (503, {}, {"error": "warming up"}),
        (500, {}, b"oops"),
        (429, {"Retry-After": "0"}, b""),
        (200, {}, b"<html>"),
        (200, {"Content-Length": "9999"}, b"{"),
        None,
    ],
    ids=["503", "500", "429", "no JSON", "torn", "hangs up"],
)
def test_what_fails_now_and_then_is_asked_again(hostile, bad):
    def reply(body, number):
        if number < 2:
            return bad
        return server.good(body)

    server = hostile(reply)
    assert from_http(server.url, config=QUICK).recommend([request()])[0].item_ids == ITEMS[1:5]
    assert len(server.bodies) == 3


def test_waits_grow_and_retry_after_is_heard(hostile):
    waits = [{}, {}, {"Retry-After": "0.3"}]
    server = hostile(lambda body, n: (503, waits[n], b"") if n < 3 else server.good(body))
    config = HttpConfig(retries=3, backoff_seconds=0.05)
    from_http(server.url, config=config).recommend([request()])
    first, second, third = (b - a for a, b in zip(server.times, server.times[1:]))  # noqa: B905
    assert first >= 0.037 and second >= 0.075 and third >= 0.3
    server = hostile(lambda body, n: (503, {"Retry-After": "3600"}, b"busy"))
    with pytest.raises(RecommenderUnavailable, match="answers 503: 'busy', once"):
        from_http(server.url, config=config).recommend([request()])


def test_a_slow_server_has_a_deadline(hostile):
    def reply(body, number):
        time.sleep(0.8)
        return server.good(body)

    server = hostile(reply)
    started = time.monotonic()
    with pytest.raises(RecommenderUnavailable, match=r"does not answer .*3 times"):
        from_http(server.url, config=QUICK).recommend([request()])
    assert time.monotonic() - started < 3


@pytest.mark.parametrize(
    ("begin", "drip"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b" "),
        (b"HTTP/1.1 200 OK\r\n", b"X-More: 1\r\n"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;", b"more"),
    ],
    ids=["body", "headers", "100 Continue", "chunk extension"],
)
def test_a_dripping_server_too(begin, drip):
    """A little now and again is no answer, however often it comes."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        about = b'{"protocol": "alignuser-recommend/1"}'
        head = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
        connection, _ = listener.accept()
        connection.recv(65536)
        connection.sendall(head % len(about) + about)
        connection.close()
        connection, _ = listener.accept()
        connection.recv(65536)
        connection.sendall(begin)
        try:
            while True:
                connection.sendall(drip)
                time.sleep(0.05)
        except OSError:
            return

    threading.Thread(target=serve, daemon=True).start()
    config = HttpConfig(timeout_seconds=0.4, retries=0)
    ours = from_http(f"http://127.0.0.1:{listener.getsockname()[1]}", config=config)
    started = time.monotonic()
    with pytest.raises(RecommenderUnavailable, match="no whole answer in 0.4 s"):
        ours.recommend([request()])
    assert time.monotonic() - started < 2
    listener.close()


def test_a_server_that_is_starting_is_waited_for_and_its_dates_are_heard(hostile):
    class Starting(HostileRecommender):
        def get(self, path):
            self.times.append(time.monotonic())
            soon = format_datetime(datetime.now(UTC) + timedelta(seconds=1.9), usegmt=True)
            starting = 503, {"Retry-After": soon}, {"error": "loading the model"}
            return super().get(path) if len(self.times) > 1 else starting

    server = hostile(kind=Starting)
    assert from_http(server.url, config=QUICK).version == "7"
    first, second = server.times
    assert second - first > 0.5  # dates have whole seconds


@pytest.mark.parametrize(
    "about", [{"name": "a\x1b[2J"}, {"version": ["7"]}, {"name": "n" * 999}]
)
def test_names_that_no_table_could_show_are_refused(hostile, about):
    with pytest.raises(
        RecommenderUnavailable, match="expected printable|at most 200"
    ) as caught:
        from_http(hostile(about=about).url, config=QUICK)
    assert str(caught.value).isprintable()


LIES = {
    "no list 'slates'": lambda good: {"slates": None},
    "1 slates for 2 requests": lambda good: {"slates": good["slates"][:1]},
    "of user 'u1' was given for user 'u0'": lambda good: {"slates": good["slates"][::-1]},
    "no list item_ids": lambda good: {"slates": [{"user_id": "u0"}] * 2},
    "ids are strings": lambda good: {"slates": [{"user_id": "u0", "item_ids": [1]}] * 2},
    "are no finite numbers": lambda good: {
        "slates": [{"user_id": "u0", "item_ids": ["a"], "scores": [float("nan")]}] * 2
    },
    "for 1 items": lambda good: {
        "slates": [{"user_id": "u0", "item_ids": ["a"], "scores": [1, 2]}] * 2
    },
    "was version '7' at the start and is '8' now": lambda good: {"version": "8"},
}  # fmt: skip


@pytest.mark.parametrize("said", LIES)
def test_lies_stop_the_run_by_name(hostile, said):
    def reply(body, number):
        good = server.good(body)[2]
        return server.good(body, **LIES[said](good))

    server = hostile(reply)
    with pytest.raises(RecommenderUnavailable) as caught:
        from_http(server.url, config=QUICK).recommend([request("u0"), request("u1")])
    assert said in str(caught.value) and server.url in str(caught.value)
    assert "run the same command" in str(caught.value)


@pytest.mark.parametrize(
    ("status", "said"),
    [(301, "Check the URL"), (403, "ALIGNUSER_RECOMMENDER_KEY"), (404, "Check the URL")],
)
def test_what_asking_again_does_not_mend(hostile, status, said):
    server = hostile(lambda body, number: (status, {"Location": "/x"}, {"error": "no"}))
    with pytest.raises(RecommenderUnavailable, match=f"answers {status}: 'no'.*{said}"):
        from_http(server.url, config=QUICK).recommend([request()])
    assert len(server.bodies) == 1


def test_a_refused_request_is_one_requests_matter_until_there_are_too_many(hostile):
    server = hostile(lambda body, number: (422, {}, {"error": "what is that"}))
    ours = from_http(server.url, config=QUICK)
    for _ in range(7):
        with pytest.raises(RequestRefused, match="answers 422: 'what is that'"):
            ours.recommend([request()])
    with pytest.raises(RecommenderUnavailable, match="8 calls in a row were refused"):
        ours.recommend([request()])
