from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignuser_jax.memory import EpisodicMemory
from alignuser_jax.records import Interaction

TITLES = {"1": "Heat (1995)", "2": "a -> b;\nc", "3": "Ronin (1998)", "4": "Antz"}
HISTORY = (
    Interaction("1", 5.0),
    Interaction("2", 2.0),
    Interaction("3", 5.0),
    Interaction("4", 3.5),
)


def test_summary_by_score():
    memory = EpisodicMemory.of(HISTORY, TITLES)
    assert memory.summary().splitlines() == [
        "Liked (5): Heat (1995); Ronin (1998)",
        "Neutral (3.5): Antz",
        "Disliked (2): a - b, c",
    ]
    assert memory.summary(2) == "Liked (5): Ronin (1998)\nNeutral (3.5): Antz"
    assert memory.summary(0) == EpisodicMemory().summary() == "None yet."


def test_the_papers_sentences():
    assert EpisodicMemory.of(HISTORY, TITLES).sentences(3).splitlines() == [
        "I disliked a - b; c based on my review score of 2.",
        "I liked Ronin (1998) based on my review score of 5.",
        "I felt neutral about Antz based on my review score of 3.5.",
    ]
    assert EpisodicMemory().sentences() == "None yet."


@pytest.mark.parametrize(
    ("score", "word"),
    [(5, "Liked"), (4, "Liked"), (3.9, "Neutral"), (3, "Neutral"), (2, "Disliked")],
)
def test_thresholds(score, word):
    assert EpisodicMemory().with_rating("x", score).summary() == f"{word} ({score:g}): x"


def test_the_session():
    memory = EpisodicMemory.of(HISTORY, TITLES)
    assert memory.session_summary() == ""
    memory = memory.with_rating("Babe", 4, 1).with_page(1, ["Babe", "Casino"])
    memory = memory.with_page(2, ["x\ny"])
    assert memory.session_summary().splitlines() == [
        "Page 1: watched Babe 4/5; skipped Casino.",
        "Page 2: watched nothing; skipped x y.",
    ]
    assert memory.summary(1) == "Liked (4): Babe"


def test_a_memory_is_a_value():
    before = EpisodicMemory.of(HISTORY, TITLES)
    text = before.summary()
    before.with_rating("Babe", 4, 1).with_page(1, ["Babe"])
    assert before.summary() == text and before.pages == ()
    assert before == EpisodicMemory.of(HISTORY, TITLES)
    with pytest.raises(FrozenInstanceError):
        before.pages = ()


def test_an_item_without_a_title():
    with pytest.raises(KeyError, match="9"):
        EpisodicMemory.of([Interaction("9", 3.0)], TITLES)


@given(st.lists(st.tuples(st.text(), st.sampled_from([1.0, 2.0, 3.0, 4.0, 5.0])), min_size=1))
def test_one_line_per_score_whatever_the_titles(rated):
    memory = EpisodicMemory()
    for title, score in rated:
        memory = memory.with_rating(title, score)
    lines = memory.summary(len(rated)).splitlines()
    assert len(lines) == len({score for _, score in rated})
