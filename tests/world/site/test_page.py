import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignuser_jax.records import Item
from alignuser_jax.text import one_line, shorten
from alignuser_jax.world.site.page import (
    details_line,
    item_line,
    page_text,
    position_of,
    summary_of,
    title_of,
)

ITEM = Item("7", "Heat (1995)", ("Action", "Crime"), "A thief and a policeman meet once.")
HOSTILE = st.one_of(st.text(), st.text(alphabet="<->\n x"))


def test_the_line_of_the_method():
    assert item_line(2, ITEM, "3.87") == (
        "[ITEM_2] <- Heat (1995) -> <- History ratings: 3.87 -> "
        "<- Summary: Action, Crime -> <- Similar items: ->"
    )
    similar = item_line(1, ITEM, similar=[("Ronin", 4.0), ("A -> b", 2.5)])
    assert similar.endswith("<- Similar items: **Ronin (4/5)**, **A - b (2.5/5)** ->")


@given(HOSTILE)
def test_no_title_breaks_a_page(text):
    line = one_line(text)
    assert one_line(line) == line
    assert "->" not in line and "<-" not in line
    assert line.isprintable() and line == line.strip()
    whole = item_line(1, Item("7", text, (text,), text), "3.00", "both", 80, [(text, 4.0)])
    assert len(whole.splitlines()) == 1
    assert whole.count(" -> <- ") == 3 and whole.endswith("->")


def test_what_survives():
    assert one_line('"Amélie" <i> & 千') == '"Amélie" <i> & 千'
    assert title_of(Item("7", " \n")) == "7"


@pytest.mark.parametrize(
    ("summary", "text"),
    [
        ("genres", "Action, Crime"),
        ("description", "A thief and a"),
        ("both", "Action, Crime. A thief and a"),
    ],
)
def test_summaries(summary, text):
    assert summary_of(ITEM, summary, 17) == text
    assert summary_of(Item("7", "x"), summary) == "none"


@given(st.text(alphabet="ab ,"), st.integers(1, 20))
def test_shorten(text, limit):
    short = shorten(text, limit)
    assert len(short) <= limit and text.startswith(short)
    assert short == text or len(text) > limit


def test_page_details_and_positions():
    assert page_text(3, ["a", "b"], "", "note") == "PAGE 3\na\nb\nnote"
    details = details_line(2, ITEM, 100)
    assert (
        details == f"DETAILS ITEM_2: Heat (1995) | Genres: Action, Crime | {ITEM.description}"
    )
    assert position_of("ITEM_4", 4) == 4
    assert [position_of(t, 4) for t in ("ITEM_5", "ITEM_0", "", "4", "ITEM_01")] == [None] * 5
