from dataclasses import FrozenInstanceError

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alignuser_jax.randomness import stable_key
from alignuser_jax.records import Action, Interaction, Slate
from alignuser_jax.world import SiteConfig, advance, fill

NEXT, BACK, EXIT = Action("next_page"), Action("previous_page"), Action("exit")
ACTIONS = st.one_of(
    st.sampled_from([NEXT, NEXT, BACK, EXIT]),
    st.builds(Action, st.just("click"), st.sampled_from(["1", "4", "9", "x"])),
    st.builds(
        Action,
        st.just("rate"),
        st.sampled_from(["1", "2", "9"]),
        st.integers(0, 6),
    ),
)


def walk(site, recommender, actions, user="u", seed=0):
    """Every state of a visit, complete."""
    states = fill(site, recommender, [site.reset(user, seed)])
    for action in actions:
        states += advance(site, recommender, [(states[-1], action)])
    return states


def test_reset_asks_for_the_first_page(make_site):
    state = make_site().reset("u", 5)
    request = state.needs
    assert (state.kind, state.page, state.text, state.actions) == ("page", 1, "", ())
    assert (request.user_id, request.k, request.page) == ("u", 4, 1)
    assert request.seed == stable_key(5, "u", 1)
    assert request.exclude == {"21", "22"}
    assert [past.item_id for past in request.history] == ["21", "22"]
    assert request.purpose == "browse"


def test_the_first_page(make_site, first):
    state = walk(make_site(), first, [])[-1]
    assert state.slate == ("0", "1", "2", "3")
    assert state.text.splitlines() == [
        "PAGE 1",
        '1. Heat "1995" | rated 3.9 | Comedy',
        "2. a - b - c | Drama, Crime",
        "3. two lines | Comedy",
        "4. <b> | Drama, Crime",
    ]
    tokens = [action.token for action in state.actions]
    clicks = [f"[CLICK_ITEM:{n}]" for n in range(1, 5)]
    assert tokens == ["[NEXT_PAGE]", *clicks, "[EXIT]"]


def test_what_history_ratings_show(make_site, items):
    site = make_site()
    assert site.rating_text("u", "21") == "5.0"
    assert site.rating_text("someone", "21") == "none"
    assert site.rating_text("u", "0") == "3.9"
    hidden = make_site(show_mean_rating=False)
    assert hidden.rating_text("u", "0") == hidden.rating_text("u", "5") == "hidden"
    assert hidden.rating_text("u", "21") == "5.0"
    nan = type(site)(items, {}, {"0": float("nan")}, SiteConfig())
    assert nan.rating_text("u", "0") == "none"


def test_similar_items_come_from_the_history(make_site):
    site = make_site(similar_items=True)
    assert site.item_line("u", 1, "1").endswith(" | Drama, Crime | like Film 21 5")
    assert site.item_line("someone", 1, "1").endswith(" | Drama, Crime")


def test_a_new_page_asks_again_with_the_session_so_far(make_site, first):
    states = walk(make_site(), first, [Action("rate", "2", 4), NEXT])
    (one,), (two,) = first.calls
    assert two.session == (Interaction("1", 4.0),)
    assert one.session == ()
    assert two.exclude == {"21", "22", "0", "1", "2", "3"}
    assert (two.page, two.seed) == (2, stable_key(0, "u", 2))
    assert states[-1].pages == (("0", "1", "2", "3"), ("4", "5", "6", "7"))
    assert "[PREVIOUS_PAGE]" in [action.token for action in states[-1].actions]


def test_pages_already_seen_come_back_without_a_call(make_site, first):
    states = walk(make_site(), first, [NEXT, BACK, NEXT])
    assert len(first.calls) == 2
    assert states[2].text == states[0].text
    assert states[2].slate == states[0].slate
    assert states[3] == states[1]


def test_a_click_shows_details(make_site, first):
    site = make_site(detail_chars=30)
    states = walk(site, first, [Action("click", "2"), NEXT])
    page, detail, after = states
    assert (detail.kind, detail.detail, detail.page) == ("detail", "1", 1)
    block = "DETAILS 2: a - b - c | Genres: Drama, Crime | Description 1. word word word"
    assert detail.text == f"{page.text}\n{block}"
    assert detail.actions == page.actions
    assert (after.kind, after.detail, after.page) == ("page", "", 2)
    assert "DETAILS" not in after.text


def test_a_rating_is_echoed_once(make_site, first):
    states = walk(make_site(), first, [Action("rate", "2", 4), Action("click", "1")])
    rated = states[1]
    assert rated.feedback == "You rated 2: 4/5"
    assert rated.text == f"{states[0].text}\n{rated.feedback}"
    assert rated.session == (Interaction("1", 4.0),)
    assert states[2].feedback == "" and "You rated" not in states[2].text
    assert states[2].session == rated.session


@pytest.mark.parametrize(
    "action",
    [
        BACK,
        Action("click", "5"),
        Action("click", "Heat"),
        Action("rate", "1", 0),
        Action("rate", "1", 6),
        Action("rate", "7", 3),
        Action("search"),
        Action("click", "a\nb"),
    ],
)
def test_an_invalid_action_leaves_the_page_and_says_so(make_site, first, action):
    site = make_site()
    page, after = walk(site, first, [action])
    assert not site.valid_action(page, action)
    (line,) = after.text.removeprefix(page.text + "\n").splitlines()
    assert line == after.feedback and line.startswith("Invalid action: [")
    assert (after.pages, after.session, after.page) == (page.pages, page.session, page.page)
    assert after.actions == page.actions


def test_an_error_line_does_not_pile_up(make_site, first):
    states = walk(make_site(), first, [BACK, BACK])
    assert states[1] == states[2]


def test_exit_and_after(make_site, first):
    states = walk(make_site(), first, [EXIT, NEXT])
    assert states[1].terminal and states[1].text == "SESSION ENDED"
    assert states[1].actions == () and states[1].page == 1
    assert states[2] == states[1]
    assert not make_site().valid_action(states[1], NEXT)


def test_max_pages_is_a_cap(make_site, first):
    states = walk(make_site(max_pages=2), first, [NEXT, NEXT])
    assert [state.kind for state in states] == ["page", "page", "end"]
    assert states[-1].page == 2 and len(first.calls) == 2
    assert EXIT in states[1].actions


def test_a_horizon_fixes_the_length(make_site, first):
    site = make_site(horizon=3, max_pages=1)
    states = walk(site, first, [EXIT, NEXT, NEXT, NEXT])
    assert states[1].feedback == "Invalid action: [EXIT]"
    assert [state.kind for state in states[1:]] == ["page", "page", "page", "end"]
    assert not any(EXIT in state.actions for state in states)
    assert states[-1].page == 3


def test_a_used_up_catalogue_ends_the_visit(make_site, first, items):
    site = make_site(items_per_page=10)
    states = walk(site, first, [NEXT, NEXT, NEXT])
    assert [len(state.slate) for state in states[:3]] == [10, 10, 2]
    assert states[3].terminal and states[3].page == 3
    everything = tuple(Interaction(item, 3.0) for item in items)
    empty = type(site)(items, {"u": everything}, {}, SiteConfig())
    assert empty.reset("u", 0).terminal


@pytest.mark.parametrize(
    ("slate", "message"),
    [
        (("0", "0", "1", "2"), "ids that repeat"),
        (("0", "1", "2", "nope"), "does not have.*nope"),
        (("0", "1", "2", "21"), "excludes.*21"),
        (("0", "1", "2"), "has 3 ids, expected 4"),
        ((), "has 0 ids, expected 4"),
        (("0", "1", "2", "3", "4"), "has 5 ids, expected 4"),
    ],
)
def test_a_bad_slate_is_refused(make_site, slate, message):
    site = make_site()
    with pytest.raises(ValueError, match=message):
        site.resolve(site.reset("u", 0), Slate(slate))


def test_misuse(make_site, first):
    site = make_site()
    open_state = site.reset("u", 0)
    with pytest.raises(RuntimeError, match="answer state.needs"):
        site.step(open_state, NEXT)
    assert not site.valid_action(open_state, NEXT)
    with pytest.raises(ValueError, match="expected a Slate"):
        site.resolve(open_state, "text")
    page = walk(site, first, [])[-1]
    with pytest.raises(ValueError, match="needs no slate"):
        site.resolve(page, Slate(("0", "1", "2", "3")))


@pytest.mark.parametrize(
    "config", [{"items_per_page": 0}, {"max_pages": 0}, {"horizon": 0}, {"summary": "all"}]
)
def test_bad_config(config):
    with pytest.raises(ValueError, match=f"{next(iter(config))} is"):
        SiteConfig(**config)


def test_states_cannot_be_changed(make_site, first):
    state = walk(make_site(), first, [])[-1]
    with pytest.raises(FrozenInstanceError):
        state.page = 2
    assert hash(state) == hash(walk(make_site(), first, [])[-1])


@given(st.lists(ACTIONS, max_size=12), st.sampled_from([None, 2, 4]))
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_a_visit_is_a_pure_function(make_site, first, actions, horizon):
    site = make_site(horizon=horizon, max_pages=3)
    states = walk(site, first, actions)
    assert walk(site, first, actions) == states
    # An old state answers as it did, whatever was done since.
    for state, action, after in zip(states, actions, states[1:], strict=False):
        assert advance(site, first, [(state, action)]) == [after]
    for state in states:
        assert state.needs is None and bool(state.text)
        assert state.terminal == (not state.actions)
        assert state.page <= site.config.last_page
        assert len(state.pages) <= site.config.last_page
        assert all(site.valid_action(state, action) for action in state.actions)
        page_items = [item for slate in state.pages for item in slate]
        assert len(set(page_items)) == len(page_items) and not {"21", "22"} & set(page_items)
        if not state.terminal:
            assert state.text.startswith(f"PAGE {state.page}\n1. ")
            assert state.feedback in state.text
