import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignuser_jax.datasets.sessions import CLICK_TYPES
from alignuser_jax.records import Action
from alignuser_jax.world.shop.actions import (
    TERMINATE,
    ActionError,
    click,
    click_type,
    click_type_map,
    from_json,
    from_token,
    is_typable,
    to_json,
    type_text,
)

NAMES = st.text(
    st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=40
)
TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), max_size=40)


def test_the_tokens_and_the_wire_form():
    pairs = [
        (
            click("nav_bar.cart"),
            "[CLICK:nav_bar.cart]",
            {"type": "click", "name": "nav_bar.cart"},
        ),
        (
            type_text("nav_bar.search_input", "usb [3 ft] | red"),
            "[INPUT:nav_bar.search_input|usb [3 ft] | red]",
            {"type": "input", "name": "nav_bar.search_input", "text": "usb [3 ft] | red"},
        ),
        (TERMINATE, "[TERMINATE]", {"type": "terminate"}),
    ]
    for action, token, wire in pairs:
        assert action.token == token
        assert to_json(action) == wire
        assert from_token(token) == from_json(wire) == action
        assert from_json({"rationale": "because", "action": wire}) == action


@given(NAMES, TEXTS)
def test_tokens_and_json_come_back(name, text):
    assert from_token(click(name).token) == click(name)
    typed = type_text(name.replace("|", "_"), text)
    assert "\n" not in typed.text and "\r" not in typed.text
    assert from_token(typed.token) == typed
    if typed.text.strip():
        stripped = Action("input", typed.target, text=typed.text.strip())
        assert from_json(to_json(typed)) == stripped


@pytest.mark.parametrize(
    "token",
    [
        "",
        "CLICK:a",
        "[CLICK]",
        "[CLICK:]",
        "[INPUT:a]",
        "[INPUT:|a]",
        "[TERMINATE:x]",
        "[EXIT]",
        "[CLICK_ITEM:1]",
    ],
)
def test_other_tokens_are_refused(token):
    with pytest.raises(ActionError, match="is no action"):
        from_token(token)


@pytest.mark.parametrize(
    "value",
    [
        None,
        "click",
        [],
        {},
        {"type": "scroll"},
        {"type": "click"},
        {"type": "click", "name": " "},
        {"type": "click", "name": 3},
        {"type": "input", "name": "a"},
        {"type": "input", "name": "a", "text": ""},
        {"type": ["click"][0], "action": {"type": "x"}},
        {"action": None},
    ],
)
def test_other_json_is_refused(value):
    with pytest.raises(ActionError, match="is no action"):
        from_json(value)


def test_outer_white_space_goes_and_case_stays():
    wire = {"type": "input", "name": " f ", "text": " Red Shoes "}
    assert from_json(wire) == Action("input", "f", text="Red Shoes")


def test_actions_of_a_recommendation_site_have_no_wire_form():
    with pytest.raises(ActionError, match="NEXT_PAGE"):
        to_json(Action("next_page"))


@pytest.mark.parametrize(
    ("text", "good"),
    [("a", True), ("", False), ("  ", False), ("a\tb", False), ("a\x1b[2J", False)]
    + [("x" * 400, True), ("x" * 401, False), (" a ", True), ("\u202e", False)],
)
def test_what_can_be_typed(text, good):
    assert is_typable(text) is good


def test_the_map_is_built_from_data():
    pairs = [("a", "search"), ("a", "search"), ("a", "filter"), ("b", "review"), ("", "filter")]
    pairs += [("c", "filter"), ("c", "nav_bar"), ("d", "scroll"), ("b", "review")]
    types = click_type_map(pairs)
    assert types == {"a": "search", "b": "review", "c": "filter"}
    assert click_type(click("a"), types) == "search"
    assert click_type(click("never seen"), types) == "other"
    assert click_type(TERMINATE, types) == ""
    assert len(CLICK_TYPES) == len(set(CLICK_TYPES)) == 13
