import struct
from dataclasses import replace

import numpy as np
import pytest

from alignuser_jax.durable.answers import decode_answer, encode_answer, field_hashes
from alignuser_jax.durable.journal import Journal, QuestionId
from alignuser_jax.durable.whole import JournalError
from alignuser_jax.records import (
    Completion,
    Message,
    RecommendationRequest,
    Request,
    Slate,
    Usage,
)

MANIFEST = {"seed": 1, "engine": {"slots": 4, "chunk": 32}, "dataset": "abc"}
ASKED = QuestionId("a", "u1", 0, 0)
QUESTION = Request((Message.of("user", "hello"),), "rate", answer=(("x", "y"),), key=7)
ANSWERS = [
    Completion(
        "y",
        (1,),
        ((0.1, 0.9),),
        (3, 4),
        (-0.5, -0.25),
        usage=Usage(5, 4, 3),
        samples=(Completion("x", (0,)),),
    ),
    Completion("", finish_reason="error", error="the server is away"),
    Slate(("i1", "i2"), scores=(0.3, 0.1)),
    "the next page",
]


def fill(folder, answers=ANSWERS, **options):
    with Journal.open(folder, MANIFEST, **options) as journal:
        for number, answer in enumerate(answers):
            journal.append(QuestionId("a", "u1", 0, number), QUESTION, answer)
            journal.flush()


def only_segment(folder):
    (path,) = folder.glob("segment-*.bin")
    return path


def record_ends(data):
    ends, at = [], 0
    while at < len(data):
        at += 12 + struct.unpack_from("<I", data, at)[0]
        ends.append(at)
    return ends


@pytest.mark.parametrize("answer", ANSWERS)
def test_answers_come_back_equal(answer, tmp_path):
    assert decode_answer(encode_answer(answer)) == answer
    fill(tmp_path, [answer])
    with Journal.open(tmp_path, MANIFEST) as journal:
        assert journal.recovered == 1
        assert journal.recorded(ASKED, QUESTION) == answer
        assert journal.recorded(ASKED, QUESTION) is None  # each answer is handed out once


def test_numpy_numbers_are_recorded_as_plain_ones_and_returned_as_recorded(tmp_path):
    with Journal.open(tmp_path, MANIFEST) as journal:
        answer = Completion("x", (np.int64(1),), ((np.float32(0.1), np.float32(0.9)),))
        returned = journal.append(ASKED, QUESTION, answer)
    assert type(returned.choice_probabilities[0][0]) is float
    with Journal.open(tmp_path, MANIFEST) as journal:
        assert journal.recorded(ASKED, QUESTION) == returned


def test_unknown_values_are_refused_by_name(tmp_path):
    with Journal.open(tmp_path, MANIFEST) as journal, pytest.raises(TypeError, match="object"):
        journal.append(ASKED, QUESTION, Completion("x", (object(),)))


def test_cut_anywhere_keeps_every_whole_record(tmp_path):
    fill(tmp_path / "full")
    whole = only_segment(tmp_path / "full").read_bytes()
    ends = record_ends(whole)
    assert len(ends) == len(ANSWERS)
    near = {end + step for end in (0, *ends) for step in (-1, 0, 1, 5, 12, 13)}
    for cut in sorted(near & set(range(len(whole) + 1))):
        folder = tmp_path / f"cut{cut}"
        folder.mkdir()
        (folder / "manifest.json").write_bytes(
            (tmp_path / "full" / "manifest.json").read_bytes()
        )
        (folder / "segment-00000.bin").write_bytes(whole[:cut])
        kept = sum(end <= cut for end in ends)
        with Journal.open(folder, MANIFEST) as journal:
            assert journal.recovered == kept
            assert journal.dropped_bytes == cut - ([0, *ends][kept])
            journal.append(QuestionId("a", "u1", 0, kept), QUESTION, "again")
        with Journal.open(folder, MANIFEST) as journal:
            assert journal.recorded(QuestionId("a", "u1", 0, kept), QUESTION) == "again"


def test_zeros_after_a_power_cut_are_dropped(tmp_path):
    fill(tmp_path)
    with only_segment(tmp_path).open("ab") as file:
        file.write(bytes(100))
    with Journal.open(tmp_path, MANIFEST) as journal:
        assert (journal.recovered, journal.dropped_bytes) == (len(ANSWERS), 100)


@pytest.mark.parametrize("offset", [0, 5, 20])  # length, its checksum, payload of record 1
def test_damage_before_the_end_stops_and_changes_nothing(tmp_path, offset):
    fill(tmp_path)
    path = only_segment(tmp_path)
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)
    with pytest.raises(JournalError, match="damaged at byte 0"):
        Journal.open(tmp_path, MANIFEST)
    assert path.read_bytes() == data


def test_the_differing_field_of_a_question_is_named(tmp_path):
    fill(tmp_path, ANSWERS[:1])
    with Journal.open(tmp_path, MANIFEST) as journal:
        with pytest.raises(JournalError, match=r"user 'u1' in arm 'a'.*: messages differ"):
            journal.recorded(ASKED, replace(QUESTION, messages=(Message.of("user", "hi"),)))
        with pytest.raises(JournalError, match=": key, temperature differ"):
            journal.recorded(ASKED, replace(QUESTION, key=8, temperature=0.5))
        with pytest.raises(JournalError, match="type"):
            journal.recorded(ASKED, RecommendationRequest("u1", ()))


def test_hashes_do_not_depend_on_the_order_of_a_set():
    ids = [f"i{n}" for n in range(50)]
    forwards, backwards = (
        RecommendationRequest("u", (), exclude=frozenset(order)) for order in (ids, ids[::-1])
    )
    assert field_hashes(forwards) == field_hashes(backwards)
    assert field_hashes(forwards) != field_hashes(replace(forwards, exclude=frozenset()))


def test_another_run_is_refused_by_the_field_that_differs(tmp_path):
    fill(tmp_path)
    other = MANIFEST | {"engine": {"slots": 8, "chunk": 32}, "policy": "p"}
    with pytest.raises(JournalError) as error:
        Journal.open(tmp_path, other)
    assert "engine.slots was 4, now 8" in str(error.value)
    assert "policy was '(absent)', now 'p'" in str(error.value)
    assert "seed" not in str(error.value)


def test_segments_without_a_manifest_are_refused(tmp_path):
    fill(tmp_path)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(JournalError, match="no manifest"):
        Journal.open(tmp_path, MANIFEST)


def test_one_writer_at_a_time(tmp_path):
    with (
        Journal.open(tmp_path, MANIFEST),
        pytest.raises(JournalError, match="another process"),
    ):
        Journal.open(tmp_path, MANIFEST)
    Journal.open(tmp_path, MANIFEST).close()


def test_large_journals_are_cut_into_segments(tmp_path):
    fill(tmp_path, segment_bytes=1)
    assert len(list(tmp_path.glob("segment-*.bin"))) == len(ANSWERS)
    with Journal.open(tmp_path, MANIFEST) as journal:
        assert journal.recovered == len(ANSWERS)


def test_a_second_answer_to_one_question_is_damage(tmp_path):
    with Journal.open(tmp_path, MANIFEST) as journal:
        journal.append(ASKED, QUESTION, "one")
        journal.append(ASKED, QUESTION, "two")
    with pytest.raises(JournalError, match="second answer"):
        Journal.open(tmp_path, MANIFEST)


def test_fields_that_came_later_count_only_where_they_are_set():
    """Journals and recordings from before these fields were added are still read."""
    plain = Request((), "reflect")
    assert "reply_start" not in field_hashes(plain) and "min_p" in field_hashes(plain)
    started = field_hashes(replace(plain, reply_start="WHY: I", no_repeat=3))
    assert started.keys() - field_hashes(plain).keys() == {"reply_start", "no_repeat"}
