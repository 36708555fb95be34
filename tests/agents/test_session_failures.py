"""Unreadable replies, failing models and missing slates are explicit, and leave no trace."""

import pytest

from alignuser_jax.agents import (
    RecommendationFailed,
    SessionConfig,
    session,
)
from alignuser_jax.language.parsing import REPROMPT
from alignuser_jax.records import (
    Completion,
    Request,
)
from tests.agents.visits import USER, constant, kinds, site, slate_of, visit


def unconstrained(bad, times, text="I like them all!"):
    """Text only, and `times` unreadable replies to each `bad` call."""
    state = {"left": times}

    def reply(request):
        if request.purpose == bad and state["left"]:
            state["left"] -= 1
            return Completion(text)
        return Completion(constant(request).text)

    return reply


@pytest.mark.parametrize("purpose", ["screen", "rate", "act", "interview"])
def test_one_unreadable_reply_is_asked_for_again_and_leaves_no_trace(purpose):
    expected, reference = visit(lambda r: Completion(constant(r).text))
    requests, outcome = visit(unconstrained(purpose, 1))
    assert outcome.events == reference.events
    first = next(n for n, r in enumerate(requests) if r.purpose == purpose)
    again = requests[first + 1]
    assert [m.content for m in again.messages[-2:]] == ["I like them all!", REPROMPT]
    assert again.messages[:-2] == requests[first].messages
    assert again.answer == requests[first].answer and again.key != requests[first].key
    assert [r for n, r in enumerate(requests) if n != first + 1] == expected


def test_where_the_back_end_cannot_tell_the_choice_has_all_probability():
    _, outcome = visit(lambda r: Completion(constant(r).text))
    rate = next(e for e in outcome.events if e.kind == "rate")
    assert (rate.value, rate.probability, rate.expected) == (4.0, 1.0, 4.0)
    screens = [e.probability for e in outcome.events if e.kind == "screen"]
    assert screens[:3] == [1.0, 0.0, 1.0]


@pytest.mark.parametrize(
    "reply", [Completion("?"), Completion("", finish_reason="error", error="away")]
)
def test_failures_have_an_event_and_a_default(reply):
    def fails(purpose):
        return visit(lambda r: reply if r.purpose == purpose else constant(r))

    for purpose in ("screen", "rate", "act", "interview"):
        requests, outcome = fails(purpose)
        failures = [e for e in outcome.events if e.kind == "failure"]
        assert failures and all(e.text.startswith(f"{purpose}: ") for e in failures)
        assert outcome.extra["failures"] == len(failures)
        if reply.error:
            assert failures[0].text == f"{purpose}: away"
            assert REPROMPT not in str(requests)
        assert outcome.state.terminal  # the visit went on to its end
        roles = [m.role for m in outcome.extra["messages"]]
        assert roles == ["system"] + ["user", "assistant"] * (len(roles) // 2)

    outcome = fails("screen")[1]
    assert not {"screen", "rate"} & set(kinds(outcome)) and kinds(outcome).count("page") == 6
    outcome = fails("rate")[1]
    assert "rate" not in kinds(outcome) and kinds(outcome).count("failure") == 4
    assert not any("Rate " in m.content for m in outcome.extra["messages"][1:])
    outcome = fails("act")[1]
    assert [e.text for e in outcome.events if e.kind == "act"] == ["[NEXT_PAGE]"] * 2
    assert "interview" not in kinds(fails("interview")[1])


def test_choices_that_do_not_fit_count_as_unreadable():
    bad = Completion("", choices=(9,))
    requests, outcome = visit(lambda r: bad if r.purpose == "rate" else constant(r))
    failure = next(e for e in outcome.events if e.kind == "failure")
    assert failure.text == "rate: choices (9,) do not fit [5] alternatives"
    assert failure.item_id == "i0"


def test_fail_fast_ends_the_visit_at_an_error():
    error = Completion("", finish_reason="error", error="away")
    _, outcome = visit(lambda r: error if r.purpose == "act" else constant(r), fail_fast=True)
    assert kinds(outcome)[-1] == "failure" and kinds(outcome).count("failure") == 1
    assert "rate" in kinds(outcome) and "exit" not in kinds(outcome)


def test_a_missing_slate_ends_the_visit_but_keeps_what_was_seen():
    coroutine = session(USER, site(), SessionConfig(), arm="a", number=0, seed=1)
    answer = None
    with pytest.raises(StopIteration) as end:
        while True:
            question = coroutine.send(answer)
            if isinstance(question, Request):
                answer = constant(question)
            elif question.page == 1:
                answer = slate_of(question)
            else:
                coroutine.throw(RecommendationFailed("recommender of arm 'a' is away"))
    events = end.value.value.events
    assert (events[-1].kind, events[-1].text) == ("failure", "recommender of arm 'a' is away")
    assert sum(e.kind == "page" for e in events) == 3
