"""What a visit asks, in which order, and what it leaves behind."""

from dataclasses import replace

import pytest

from alignuser_jax.agents import (
    AgentUser,
    SessionConfig,
    rate_item,
    session,
)
from alignuser_jax.agents.session import probabilities
from alignuser_jax.language import prompts
from alignuser_jax.memory import RecallIndex
from alignuser_jax.randomness import stable_key
from alignuser_jax.records import Completion, Interaction, Persona
from alignuser_jax.world import SESSION_ENDED
from tests.agents.visits import (
    HISTORY,
    ITEMS,
    USER,
    actions_script,
    completion,
    drive,
    kinds,
    site,
    slate_of,
    tokens_of,
    visit,
    words,
)


def test_a_visit_screens_rates_acts_and_is_interviewed():
    requests, outcome = visit(previous_page=False)
    page = ["screen", "rate", "rate", "act"]
    assert [request.purpose for request in requests] == [*page, *page, "interview"]
    assert [r.subject for r in requests if r.purpose == "rate"] == ["i0", "i2", "i3", "i5"]
    shown = ["page"] * 3 + ["screen"] * 3 + ["rate"] * 2 + ["act"]
    assert kinds(outcome) == [*shown, *shown, "exit", "interview"]
    assert [event.sequence for event in outcome.events] == list(range(len(outcome.events)))
    assert {(e.arm, e.user_id, e.session) for e in outcome.events} == {("a", "u1", 0)}
    screens = [e for e in outcome.events if e.kind == "screen" and e.page == 1]
    assert [(e.position, e.item_id, e.value, e.probability) for e in screens] == [
        (1, "i0", 1.0, 0.5),
        (2, "i1", 0.0, 0.5),
        (3, "i2", 1.0, 0.5),
    ]
    rate = next(e for e in outcome.events if e.kind == "rate")
    assert (rate.page, rate.position, rate.value, rate.probability) == (1, 1, 4.0, 0.5)
    assert rate.expected == pytest.approx(0.5 * 4 + 0.125 * (1 + 2 + 3 + 5))
    exit_, interview = outcome.events[-2:]
    assert (exit_.page, exit_.value) == (2, 2.0)
    assert interview.value == 7.0 and interview.expected != 7.0
    assert outcome.state.terminal
    assert [(r.item_id, r.rating) for r in outcome.state.session][0] == ("i0", 4.0)
    assert outcome.extra["failures"] == 0


def test_requests_are_scored_and_limited_as_configured():
    requests, _ = visit(
        reasoning_tokens=30, rate_reasoning_tokens=7, temperature=0.7, top_p=0.8
    )
    wanted = {
        "screen": (False, 0),
        "rate": (True, 7),
        "act": (False, 30),
        "interview": (True, 30),
    }
    assert {r.purpose: (r.scored, r.reasoning_tokens) for r in requests} == wanted
    assert {(r.temperature, r.top_p) for r in requests} == {(0.7, 0.8)}
    screen, rate = requests[:2]
    assert screen.answer == prompts.screen_answer(3)
    assert rate.answer == prompts.rate_answer()


def test_a_conversation_only_grows_and_keeps_no_reasoning():
    requests, outcome = visit()
    for before, after in zip(requests, requests[1:], strict=False):
        assert after.messages[: len(before.messages)] == before.messages
        assert len(after.messages) == len(before.messages) + 2
    roles = [message.role for message in outcome.extra["messages"]]
    assert roles == ["system"] + ["user", "assistant"] * len(requests)
    text = [message.content for message in outcome.extra["messages"]]
    assert not any("because" in content for content in text)
    assert text[1].startswith("You are moderately") and "Film 30" in text[1]
    assert "PAGE 1\n1. Film 0" in text[1] and text[1].endswith(prompts.SCREEN)
    assert text[2] == "1 yes\n2 no\n3 yes"
    assert text[3] == "Rate 1."
    assert text[5] == "Rate 3."
    assert text[7].startswith("Actions: [NEXT_PAGE]")
    assert text[9].startswith("PAGE 2\n")
    assert text[-2].startswith(SESSION_ENDED)


def test_the_only_action_is_taken_without_a_call():
    requests, outcome = visit(previous_page=False, max_clicks=0)
    assert [r.purpose for r in requests].count("act") == 0
    assert [e.text for e in outcome.events if e.kind == "act"] == ["[NEXT_PAGE]"] * 2
    screens = [r for r in requests if r.purpose == "screen"]
    assert screens[1].messages[-1].content.startswith("PAGE 2\n")
    asked, _ = visit(previous_page=False, max_clicks=0, skip_forced=False)
    assert [r.purpose for r in asked].count("act") == 2


def test_without_screening_all_is_watched():
    requests, outcome = visit(screening=False)
    assert [r.purpose for r in requests].count("rate") == 6
    assert "screen" not in kinds(outcome)
    assert "PAGE 1" in requests[0].messages[1].content
    assert requests[0].messages[1].content.endswith("Rate 1.")


@pytest.mark.parametrize(
    "given, noted",
    [(None, [0.0] * 3), ((0.5, 0.25, 0.125), [0.5, 0.25, 0.125]), ((1.0,), [0.0] * 3)],
)
def test_page_events_carry_the_propensities_of_their_slate(given, noted):
    coroutine = session(USER, site(), SessionConfig(), arm="a", number=0, seed=1)
    _, outcome = drive(coroutine, slates=lambda r: replace(slate_of(r), propensities=given))
    pages = [event for event in outcome.events if event.kind == "page"]
    assert [event.probability for event in pages] == noted * (len(pages) // 3)


def test_no_interview_where_it_is_not_wanted():
    assert visit(interview=False)[0][-1].purpose == "act"


def test_a_click_shows_details_and_is_offered_max_clicks_times_per_page():
    script = actions_script("[CLICK_ITEM:2]", "[NEXT_PAGE]", "[NEXT_PAGE]")
    requests, outcome = visit(script, skip_forced=False)
    first, second, third = [r for r in requests if r.purpose == "act"]
    details = second.messages[-1].content
    assert details.startswith("DETAILS 2: Film 1") and "PAGE 1" not in details
    assert any("CLICK" in line for line in first.answer[0])
    assert not any("CLICK" in line for line in second.answer[0])
    assert any("CLICK" in line for line in third.answer[0])
    acts = [e.text for e in outcome.events if e.kind == "act"]
    assert acts == ["[CLICK_ITEM:2]", "[NEXT_PAGE]", "[NEXT_PAGE]"]


def test_a_previous_page_is_shown_again_but_not_rated_again():
    script = actions_script("[NEXT_PAGE]", "[PREVIOUS_PAGE]", "[NEXT_PAGE]", "[NEXT_PAGE]")
    requests, outcome = visit(script)
    purposes = [r.purpose for r in requests]
    assert purposes[8:] == ["act", "act", "interview"]  # page 1 again, page 2 again
    assert requests[8].messages[-1].content.startswith("PAGE 1\n")
    assert sum(e.kind == "page" for e in outcome.events) == 6
    assert len({request.key for request in requests}) == len(requests)


def test_exit_and_the_limit_on_actions_end_a_visit():
    world = site(horizon=None, max_pages=20)
    _, outcome = visit(actions_script("[NEXT_PAGE]", "[EXIT]"), world=world)
    assert [e.value for e in outcome.events if e.kind == "exit"] == [2.0]
    _, outcome = visit(world=world, max_actions=4)
    assert [e.value for e in outcome.events if e.kind == "exit"] == [4.0]
    assert kinds(outcome)[-1] == "interview" and not outcome.state.terminal


def test_arms_share_their_keys_and_everything_else_has_its_own():
    def keys(**options):
        return [request.key for request in visit(**options)[0]]

    assert keys(arm="a") == keys(arm="b")
    sets = [set(keys()), set(keys(seed=2)), set(keys(number=1))]
    sets.append(set(keys(user=AgentUser(Persona("u2")))))
    assert len(set.union(*sets)) == sum(map(len, sets))
    assert keys()[0] == stable_key(1, "u1", 0, 0, "screen", 0)
    assert keys()[2] == stable_key(1, "u1", 0, 0, "rate", 3)
    assert keys()[3] == stable_key(1, "u1", 0, 0, "act", 0)
    assert keys()[4] == stable_key(1, "u1", 0, 1, "screen", 0)


def test_the_persona_can_be_left_out():
    with_persona, without = visit()[0][0], visit(persona=False)[0][0]
    assert "picky" in with_persona.messages[1].content
    assert "picky" not in without.messages[1].content
    assert "Film 30" in without.messages[1].content


def test_memory_and_session_reach_the_next_request():
    seen = []

    def slates(request):
        seen.append(request)
        return slate_of(request)

    _, outcome = drive(
        session(USER, site(), SessionConfig(), arm="a", number=0, seed=1), slates=slates
    )
    assert [len(request.session) for request in seen] == [0, 2]
    memory = outcome.extra["memory"]
    assert [page.titles for page in memory.pages] == [
        ("Film 0", "Film 1", "Film 2"),
        ("Film 3", "Film 4", "Film 5"),
    ]
    assert [rated.page for rated in memory.ratings] == [0, 0, 1, 1, 2, 2]


def test_past_the_context_limit_a_page_starts_anew_with_what_is_remembered():
    world = site(horizon=6)
    limits = {"context_tokens": 420, "page_reserve_tokens": 120}
    requests, outcome = visit(world=world, count=words, **limits)
    unlimited, reference = visit(world=world)
    assert outcome.extra["restarts"] >= 1 and reference.extra["restarts"] == 0
    assert max(tokens_of(r.messages) for r in unlimited) > 420
    assert max(tokens_of(r.messages) for r in requests) <= 420
    starts = [r for r in requests if len(r.messages) == 2]
    assert len(starts) == 1 + outcome.extra["restarts"]
    assert all(r.purpose == "screen" for r in starts)
    page = starts[1].messages[1].content
    assert "Film 30" in page and "Film 0" in page  # the history and this session's ratings
    assert outcome.events == reference.events  # only what is told differs
    again, _ = visit(world=world, count=words, **limits)
    assert again == requests


def test_history_is_shortened_before_a_page_is_given_up():
    user = AgentUser(Persona("u1"), tuple(Interaction(f"i{n}", 3.0) for n in range(20, 40)))
    room = tokens_of(visit(user=user, history_items=5)[0][0].messages)
    limits = {"context_tokens": room + 20, "page_reserve_tokens": 10}
    requests, _ = visit(user=user, count=words, **limits)
    text = requests[0].messages[1].content
    assert "Film 39" in text and "Film 35;" in text and "Film 34;" not in text
    with pytest.raises(ValueError, match="raise context_tokens"):
        visit(user=user, count=words, context_tokens=60, page_reserve_tokens=10)


@pytest.mark.parametrize("wrong", [{"max_actions": 0}, {"max_clicks": -1}])
def test_impossible_settings_are_refused(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"{name} is"):
        SessionConfig(**wrong)


# --- one item by itself ---


def test_rate_item_is_one_scored_question_without_a_page():
    coroutine = rate_item(USER, "i1", site(), SessionConfig(), seed=3, index=2)
    request = next(coroutine)
    assert (request.purpose, request.subject, request.scored) == ("rate", "i1", True)
    assert [m.role for m in request.messages] == ["system", "user"]
    text = request.messages[1].content
    assert "\n1. Film 1 | rated 4.0 | Drama\n" in text
    assert text.endswith("\nRate 1.") and "PAGE" not in text
    answer = completion(request, 3)
    with pytest.raises(StopIteration) as end:
        coroutine.send(answer)
    assert end.value.value is answer
    key = stable_key(3, "u1", "i1", "rate", 2)
    assert request.key == key
    in_session = visit(screening=False)[0][0]
    assert replace(request, key=0).messages[0] == in_session.messages[0]


def test_recall_stands_before_a_screening_and_a_rating():
    index = RecallIndex(ITEMS, {"i0": 3, "i1": 9})
    user = replace(USER, recollection=index.of_user(HISTORY))
    requests, outcome = visit(user=user, recall=True)
    text = [message.content for message in outcome.extra["messages"]]
    assert text[0].endswith(prompts.RECALL)
    levels = [("9", "9"), ("9", "9"), ("9", "0")]  # all of one genre; i0 and i1 were rated
    lines = [f"{n}: match {m} popularity {p}" for n, (m, p) in enumerate(levels, 1)]
    assert text[1].endswith("\n".join([" | Drama", *lines, prompts.SCREEN]))
    assert text[3] == "Rate 1: similar items 5"  # (5 + 2) / 2
    everything, _ = visit(user=user, recall=True, screening=False)
    asked = [r.messages[-1].content for r in everything if r.subject == "i1"]
    assert asked[0].endswith("Rate 2: others 7, similar items 5")
    hidden, _ = visit(
        user=user, recall=True, screening=False, world=site(show_mean_rating=False)
    )
    asked = [r.messages[-1].content for r in hidden if r.subject == "i1"]
    assert asked[0].endswith("Rate 2: similar items 5")
    without, _ = visit(user=user)
    assert not any(" popularity " in m.content for r in without for m in r.messages)


def test_a_distribution_that_the_back_end_cannot_tell_lies_on_the_choice():
    told = Completion("x", choices=(1, 2), choice_probabilities=((0.25, 0.75), ()))
    assert probabilities(told, 0, 1) == (0.25, 0.75)
    assert probabilities(told, 1, 2) == (0.0, 0.0, 1.0)  # tokens branch more than once
    assert probabilities(Completion("x", choices=(1,)), 0, 1) == (0.0, 1.0)
