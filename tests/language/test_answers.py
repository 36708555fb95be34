"""JSON answers: every reply parses to exactly one value per field, and is read back."""

import doctest
import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignuser_jax.language import (
    ReplyError,
    answers,
    integers,
    json_answer,
    json_value,
    parse_answer,
    parse_json,
    prompts,
)
from alignuser_jax.language.parsing import answer_text

FIELDS = {"watch": ["yes", "no"], "rating": range(1, 6)}

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-100, 100),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=6),
)
values = st.lists(scalars, min_size=1, max_size=4, unique_by=json.dumps)
names = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)


def test_the_examples_in_the_docstrings():
    assert doctest.testmod(answers) == (0, 3)


def test_every_reply_is_one_json_object():
    answer = json_answer(FIELDS)
    for picked in itertools.product(*(range(len(line)) for line in answer)):
        text = answer_text(picked, answer)
        value = json.loads(text)
        assert value == json_value(picked, FIELDS) == parse_json(f"Well,\n{text}", FIELDS)
        assert value["watch"] in ("yes", "no") and value["rating"] in range(1, 6)
    assert json.loads(text) == {"watch": "no", "rating": 5}


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(names, values, min_size=1, max_size=4), st.randoms())
def test_whatever_json_can_say(fields, random):
    answer = json_answer(fields)
    assert not any("\n" in text for line in answer for text in line)
    picked = [random.randrange(len(line)) for line in answer]
    value = json_value(picked, fields)
    text = answer_text(picked, answer)
    assert text == json.dumps(value, indent=0, ensure_ascii=False)
    read = parse_json(text, {name: iter(choices) for name, choices in fields.items()})
    assert json.dumps(read) == json.dumps(value) == json.dumps(json.loads(text))


def test_values_that_only_json_tells_apart():
    fields = {"is": [1, "1", True, "true", None, [1, 2], {"a": " "}]}
    for number, value in enumerate(fields["is"]):
        text = answer_text((0, number, 0), json_answer(fields))
        for read in (json_value((0, number, 0), fields), json.loads(text)):
            assert json.dumps(read["is"]) == json.dumps(value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "at least one field"),
        ({"watch": "yes"}, "are one text: give a list"),
        ({"watch": []}, r"\['watch'\] have no values"),
        ({"watch": [1, 1]}, "comes twice"),
        ({"watch": [float("nan")]}, "not JSON compliant"),
    ],
)
def test_fields_that_make_no_answer(fields, message):
    with pytest.raises(ValueError, match=message):
        json_answer(fields)


def test_a_reply_that_is_another_object_is_refused():
    with pytest.raises(ReplyError, match="answer line 3 of 4"):
        parse_json('{\n"watch": "yes",\n"rating": 6\n}', FIELDS)
    with pytest.raises(ValueError, match="2 choices for 2 fields"):
        json_value((0, 1), FIELDS)


def test_integers():
    assert integers(-1, 1) == ("-1", "0", "1")
    assert prompts.interview_answer()[0][9] == "10"
    with pytest.raises(ValueError, match="no integers from 2 to 1"):
        integers(2, 1)


def test_space_and_other_separators_inside_an_alternative_are_its_own():
    answer = (("  a\u2028b", "a\x85b "), ("c",))
    assert parse_answer("so\n a\u2028b\nc", answer) == (0, 0)
    assert parse_answer("a\x85b\r\nc", answer) == (1, 0)
