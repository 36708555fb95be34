import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alignuser_jax.agents.events import read_events, sort_events, write_events
from alignuser_jax.records import Event

EVENTS = [
    Event(arm, user, session, sequence, "rate", 1, 2, "i1", 4.0, 0.25, 3.5, "text")
    for arm in ("a", "b")
    for user in ("10", "9")
    for session in (0, 1)
    for sequence in range(3)
]


def test_the_table_is_the_same_bytes_for_any_order_and_reads_back(tmp_path):
    shuffled = random.Random(0).sample(EVENTS, len(EVENTS))
    assert shuffled != EVENTS
    first = write_events(EVENTS, tmp_path / "a" / "events.parquet").read_bytes()
    second = write_events(shuffled, tmp_path / "b" / "events.parquet").read_bytes()
    assert first == second
    assert read_events(tmp_path / "a" / "events.parquet") == EVENTS
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["events.parquet"]


def test_an_empty_run_is_a_table_too(tmp_path):
    assert read_events(write_events([], tmp_path / "events.parquet")) == []


def test_a_session_that_ran_twice_is_refused():
    with pytest.raises(ValueError, match=r"the same \(arm, user_id.*'a', '10', 0, 0"):
        sort_events([*EVENTS, EVENTS[0]])


def test_another_table_is_refused(tmp_path):
    pq.write_table(pa.table({"x": [1]}), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="is not an event table"):
        read_events(tmp_path / "x.parquet")
