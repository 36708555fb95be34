import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignuser_jax.records import Item
from alignuser_jax.text import one_line, shorten
from alignuser_jax.world.site.page import (
    HIDDEN,
    NONE,
    details_line,
    item_line,
    page_text,
    position_of,
    read_item_line,
    summary_of,
    title_of,
)

ITEM = Item("7", "Heat (1995)", ("Action", "Crime"), "A thief and a policeman meet once.")
HOSTILE = st.one_of(st.text(), st.text(alphabet="<->|\n x."), st.text("rated like 1.5|"))


def test_the_line_has_the_fields_of_the_method():
    line = item_line(2, ITEM, "3.9", similar=[("Ronin", 4.0), ("A | b", 2.5)])
    assert line == "2. Heat (1995) | rated 3.9 | Action, Crime | like Ronin 4, A / b 2.5"
    fields = (2, "Heat (1995)", "3.9", "Action, Crime", "Ronin 4, A / b 2.5")
    assert read_item_line(line) == fields


def test_nothing_is_printed_where_there_is_nothing_to_say():
    assert item_line(1, Item("7", "Heat")) == "1. Heat"
    assert item_line(1, Item("7", "Heat"), HIDDEN, similar=[("", 3.0)]) == "1. Heat"
    assert read_item_line("1. Heat") == (1, "Heat", "", "", "")


@pytest.mark.parametrize("line", ["", "Heat", "0. Heat", "1. ", "1. Heat | rated | a | b | c"])
def test_a_line_of_something_else_is_refused(line):
    with pytest.raises(ValueError, match="no item's line"):
        read_item_line(line)


@given(HOSTILE, HOSTILE, st.sampled_from(["3.0", NONE]), st.booleans())
def test_no_title_breaks_a_page(title, summary, rating, similar):
    line = one_line(title)
    assert one_line(line) == line
    assert line.isprintable() and line == line.strip()
    item = Item("7", title, (), summary)
    like = [("Ronin", 4.0)] if similar else []
    whole = item_line(1, item, rating, "description", 80, like)
    assert len(whole.splitlines()) == 1
    fields = read_item_line(whole)
    assert fields.title == title_of(item).replace("|", "/")
    assert fields.rating == rating.replace(NONE, "")
    assert fields.summary == summary_of(item, "description").replace("|", "/")
    assert fields.similar == ("Ronin 4" if similar else "")


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
    assert summary_of(Item("7", "x"), summary) == ""


@given(st.text(alphabet="ab ,"), st.integers(1, 20))
def test_shorten(text, limit):
    short = shorten(text, limit)
    assert len(short) <= limit and text.startswith(short)
    assert short == text or len(text) > limit


def test_page_details_and_positions():
    assert page_text(3, ["a", "b"], "", "note") == "PAGE 3\na\nb\nnote"
    details = details_line(2, ITEM, 100)
    assert details == f"DETAILS 2: Heat (1995) | Genres: Action, Crime | {ITEM.description}"
    assert position_of("4", 4) == 4
    assert [position_of(t, 4) for t in ("5", "0", "", "ITEM_4", "01")] == [None] * 5
