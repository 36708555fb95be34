import pytest

from alignuser_jax.language import prompts
from alignuser_jax.language.parsing import (
    REPROMPT,
    ReplyError,
    answer_text,
    final_lines,
    parse_alternatives,
    parse_answer,
    parse_tags,
)

SCREEN = prompts.screen_answer(2)
RATE = prompts.rate_answer()


def test_the_papers_sentence():
    assert REPROMPT == "You have one more chance to provide the correct answer."


@pytest.mark.parametrize("text", ["4", "4\n", "  4  ", "WHY: good\n2?\n\n4"])
def test_the_last_line_counts(text):
    assert parse_answer(text, RATE) == (3,)
    assert final_lines(text, RATE) == "4"


def test_several_lines():
    text = "I like 1.\n1 yes\n2 no"
    assert parse_answer(text, SCREEN) == (0, 1)
    assert final_lines(text, SCREEN) == answer_text((0, 1), SCREEN)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "0 lines, expected at least 2"),
        ("1 yes", "1 lines, expected at least 2"),
        ("2 no\n1 yes", "answer line 1 of 2 is '2"),
        ("1 yes\n2 maybe", "answer line 2 of 2.*expected one of: 2"),
        ("1 yes\n2 no\nThat is all.", "answer line 1"),
    ],
)
def test_what_is_not_an_answer(text, message):
    with pytest.raises(ReplyError, match=message):
        parse_answer(text, SCREEN)


@pytest.mark.parametrize("text", ["6", "4/5", "4.", "RATING: 4", "four", "4 stars"])
def test_strictness(text):
    with pytest.raises(ReplyError):
        parse_answer(text, RATE)


def test_tags():
    text = "Here it is.\nWHY: It is slow.\nAnd long.\n LESSON: Avoid: slow ones. "
    assert parse_tags(text, prompts.ITEM_TAGS) == {
        "WHY": "It is slow. And long.",
        "LESSON": "Avoid: slow ones.",
    }
    four = "\n".join(f"{tag}: x" for tag in prompts.TRAJECTORY_TAGS)
    assert list(parse_tags(four, prompts.TRAJECTORY_TAGS)) == list(prompts.TRAJECTORY_TAGS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("WHY: a", r"has the tags \['WHY'\]"),
        ("LESSON: b\nWHY: a", "each once"),
        ("WHY: a\nWHY: b\nLESSON: c", "each once"),
        ("WHY:\nLESSON: c", "there is no text after WHY"),
        ("the WHY: a\nLESSON: c", r"has the tags \['LESSON'\]"),
    ],
)
def test_broken_tags(text, message):
    with pytest.raises(ReplyError, match=message):
        parse_tags(text, prompts.ITEM_TAGS)


def test_alternatives():
    valid = ["[EXIT]", "[NEXT_PAGE]", "[CLICK_ITEM:1]"]
    text = "[NEXT_PAGE]\n[EXIT]\nnonsense\n[NEXT_PAGE]\n [CLICK_ITEM:1] "
    found = parse_alternatives(text, valid, "[EXIT]", 4)
    assert found == ["[NEXT_PAGE]", "[CLICK_ITEM:1]"]
    assert parse_alternatives(text, valid, "[EXIT]", 1) == ["[NEXT_PAGE]"]
    with pytest.raises(ReplyError, match="no line is a valid action"):
        parse_alternatives("[EXIT]\nno", valid, "[EXIT]", 2)
