"""What a model answered comes back without it, whole or not at all."""

from dataclasses import replace

import pytest

from alignuser_jax.durable.answers import pack
from alignuser_jax.durable.frames import framed
from alignuser_jax.durable.whole import JournalError
from alignuser_jax.records import Completion, Message, Request, Usage
from alignuser_jax.sampling import (
    NotRecorded,
    Recording,
    Replay,
    ScriptedGenerator,
    generate,
)

ABOUT = {"policy": "p", "engine": {"slots": 4, "adapters": []}}
RATE = (("RATING: 1", "RATING: 2"),)
REQUESTS = [
    Request((Message.of("user", f"page {n}"),), "rate", subject=f"i{n}", answer=RATE, key=n)
    for n in range(6)
]
SAMPLED = replace(REQUESTS[0], samples=2, key=100)


def model(failing=()):
    def reply(request):
        if request.key in failing:
            raise OSError("the server is away")
        choice = request.key % 2
        return Completion(
            RATE[0][choice],
            (choice,),
            ((0.25, 0.75),),
            (1, 2),
            (-0.5, -0.1),
            usage=Usage(9, 8, 2),
        )

    return ScriptedGenerator(reply, max_batch=2)


def record(path, requests, generator=None, about=ABOUT):
    recording = Recording(generator or model(), path, about)
    try:
        return generate(recording, requests), recording
    finally:
        recording.close()


def test_a_replay_gives_what_was_recorded(tmp_path):
    requests = [*REQUESTS, SAMPLED]
    answers, _ = record(tmp_path / "log", requests)
    assert answers == generate(model(), requests)
    replay = Replay(tmp_path / "log")
    assert replay.about == ABOUT
    assert generate(replay, requests[::-1]) == answers[::-1]
    assert generate(replay, [SAMPLED, SAMPLED]) == [answers[-1]] * 2  # as often as asked
    assert replay.collect() == []


def test_what_is_recorded_is_not_asked_again(tmp_path):
    record(tmp_path / "log", REQUESTS[:4])
    size = (tmp_path / "log").stat().st_size
    inner = model()
    answers, recording = record(tmp_path / "log", REQUESTS, inner)
    assert [request.key for request in inner.requests] == [4, 5] and recording.reused == 4
    assert answers == generate(model(), REQUESTS)
    assert (tmp_path / "log").stat().st_size > size
    assert generate(Replay(tmp_path / "log"), REQUESTS) == answers


def test_failures_are_replayed_but_asked_again_where_there_is_a_model(tmp_path):
    answers, _ = record(tmp_path / "log", REQUESTS, model(failing={3}))
    assert answers[3].error == "OSError: the server is away"
    assert generate(Replay(tmp_path / "log"), REQUESTS) == answers
    inner = model()
    answers, _ = record(tmp_path / "log", REQUESTS, inner)
    assert [request.key for request in inner.requests] == [3]
    assert (
        generate(Replay(tmp_path / "log"), REQUESTS) == answers == generate(model(), REQUESTS)
    )


def test_cut_anywhere_it_keeps_every_whole_record_and_goes_on(tmp_path):
    path = tmp_path / "log"
    record(path, [])
    ends = [path.stat().st_size]
    for request in REQUESTS[:3]:
        record(path, [request])
        ends.append(path.stat().st_size)
    whole = path.read_bytes()
    for cut in {e + d for e in ends for d in (-1, 0, 1, 13)} - {ends[-1] + 1, ends[-1] + 13}:
        path.write_bytes(whole[:cut])
        answers_left = sum(end <= cut for end in ends) - 1
        if answers_left < 0:
            with pytest.raises(JournalError, match="cut before its first record"):
                Replay(path)
        inner = model()
        answers, _ = record(path, REQUESTS[:3], inner)
        assert len(inner.requests) == 3 - max(answers_left, 0), cut
        assert generate(Replay(path), REQUESTS[:3]) == answers


def test_damage_before_the_end_is_refused_and_left_as_it_is(tmp_path):
    path = tmp_path / "log"
    record(path, REQUESTS)
    data = bytearray(path.read_bytes())
    data[30] ^= 1
    path.write_bytes(data)
    for attempt in (lambda: Replay(path), lambda: Recording(model(), path, ABOUT)):
        with pytest.raises(JournalError, match="damaged at byte 0"):
            attempt()
    assert path.read_bytes() == data


def test_a_request_that_is_not_recorded_names_what_differs(tmp_path):
    record(tmp_path / "log", REQUESTS)
    replay = Replay(tmp_path / "log")
    with pytest.raises(NotRecorded, match="'rate' request about 'i2'.*differs in temperature."):
        replay.submit(replace(REQUESTS[2], temperature=0.5))
    other = replace(REQUESTS[2], messages=(Message.of("user", "another page"),), key=77)
    with pytest.raises(NotRecorded, match="differs in key, messages. A replay needs"):
        replay.submit(other)
    assert replay.collect() == []
    record(tmp_path / "none", [])
    with pytest.raises(NotRecorded, match="it holds no answers"):
        Replay(tmp_path / "none").submit(other)


def test_another_back_end_is_refused_by_what_differs(tmp_path):
    record(tmp_path / "log", REQUESTS)
    other = {**ABOUT, "engine": {"slots": 8, "adapters": []}}
    with pytest.raises(JournalError, match="engine.slots was 4, now 8"):
        Recording(model(), tmp_path / "log", other)
    with pytest.raises(FileNotFoundError, match="--record="):
        Replay(tmp_path / "nowhere")
    (tmp_path / "log").write_bytes(b"")
    with pytest.raises(JournalError, match="empty"):
        Replay(tmp_path / "log")


def test_one_writer_at_a_time(tmp_path):
    recording = Recording(model(), tmp_path / "log", ABOUT)
    with pytest.raises(JournalError, match="another process"):
        Recording(model(), tmp_path / "log", ABOUT)
    recording.close()
    Recording(model(), tmp_path / "log", ABOUT).close()


def test_a_cancelled_request_is_neither_given_nor_kept(tmp_path):
    record(tmp_path / "log", REQUESTS[:1])
    recording = Recording(model(), tmp_path / "log", ABOUT)
    recorded, new, other = (recording.submit(request) for request in REQUESTS[:3])
    recording.cancel(recorded)
    recording.cancel(new)
    assert [ticket for ticket, _ in recording.collect()] == [other]
    assert recording.collect() == []
    recording.close()
    with pytest.raises(NotRecorded):
        Replay(tmp_path / "log").submit(REQUESTS[1])


def test_a_failure_takes_no_answers_place(tmp_path):
    replies = [Completion("fine"), Completion("", finish_reason="error", error="no")]
    inner = ScriptedGenerator(lambda request: replies.pop(0))
    answers, _ = record(tmp_path / "log", [REQUESTS[0]] * 2, inner)
    assert sorted(a.finish_reason for a in answers) == ["error", "stop"]
    assert generate(Replay(tmp_path / "log"), REQUESTS[:1])[0].text == "fine"


@pytest.mark.parametrize("record", [{"a": 1}, "text", 3, [], ["other", 1, {}]])
def test_another_programs_records_are_refused(tmp_path, record):
    (tmp_path / "log").write_bytes(framed(pack(record)))
    with pytest.raises(JournalError, match="is no recording of version 1"):
        Replay(tmp_path / "log")
