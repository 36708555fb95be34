from dataclasses import replace

import pytest

from alignuser_jax.agents import (
    AgentUser,
    Journal,
    RecommendationFailed,
    SessionConfig,
    SessionSpec,
    rate_item,
    run_population,
    session,
    write_events,
)
from alignuser_jax.agents.conversation import MESSAGE_TOKENS
from alignuser_jax.agents.session import probabilities
from alignuser_jax.language import prompts
from alignuser_jax.language.parsing import REPROMPT
from alignuser_jax.memory import RecallIndex
from alignuser_jax.records import (
    Completion,
    Interaction,
    Item,
    Persona,
    RecommendationRequest,
    Request,
    Slate,
    stable_key,
)
from alignuser_jax.world import SESSION_ENDED, RecommendationSite, SiteConfig

ITEMS = {f"i{n}": Item(f"i{n}", f"Film {n}", ("Drama",), f"About {n}.") for n in range(40)}
HISTORY = (Interaction("i30", 5.0, 1), Interaction("i31", 2.0, 2), Interaction("gone", 3.0, 3))
USER = AgentUser(Persona("u1", pickiness=2), HISTORY)


def site(**options):
    config = SiteConfig(**{"items_per_page": 3, "horizon": 2} | options)
    return RecommendationSite(ITEMS, {"u1": HISTORY}, {"i1": 4.0}, config)


def slate_of(request):
    start = 3 * (request.page - 1)
    return Slate(tuple(f"i{n}" for n in range(start, start + request.k)))


def completion(request, *choices):
    """A constrained reply; half of the probability on the choice."""
    text = "\n".join(line[c] for line, c in zip(request.answer, choices, strict=True))
    shares = []
    for line, choice in zip(request.answer, choices, strict=True):
        rest = 0.5 / max(len(line) - 1, 1)
        shares.append(tuple(0.5 if c == choice else rest for c in range(len(line))))
    return Completion("because\n" + text, tuple(choices), tuple(shares))


def constant(request, screen=(0, 1, 0), rating=4, act="[NEXT_PAGE]", satisfaction=7):
    """Watch ITEM_1 and ITEM_3, rate 4, go on, 7 of 10."""
    if request.purpose == "screen":
        return completion(request, *screen[: len(request.answer)])
    if request.purpose == "rate":
        return completion(request, rating - 1)
    if request.purpose == "interview":
        return completion(request, satisfaction - 1)
    return completion(request, request.answer[0].index("BEST-ACTION: " + act))


def drive(coroutine, reply=constant, slates=slate_of):
    """Run one coroutine by hand; returns its requests and its outcome."""
    requests, answer = [], None
    while True:
        try:
            question = coroutine.send(answer)
        except StopIteration as end:
            return requests, end.value
        if isinstance(question, RecommendationRequest):
            answer = slates(question)
        else:
            requests.append(question)
            answer = reply(question)


def visit(
    reply=constant, *, world=None, user=USER, number=0, seed=1, arm="a", count=None, **options
):
    config = SessionConfig(**options)
    coroutine = session(
        user, world or site(), config, arm=arm, number=number, seed=seed, count_tokens=count
    )
    return drive(coroutine, reply)


def actions_script(*tokens):
    left = list(tokens)
    return lambda request: constant(
        request, **({"act": left.pop(0)} if request.purpose == "act" else {})
    )


def kinds(outcome):
    return [event.kind for event in outcome.events]


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
    assert text[1].startswith("Occupation: Unknown") and "Film 30" in text[1]
    assert "PAGE 1\n[ITEM_1] <- Film 0" in text[1] and text[1].endswith(prompts.SCREEN)
    assert text[2] == "ITEM_1 [WATCH]\nITEM_2 [SKIP]\nITEM_3 [WATCH]"
    assert text[3] == "Rate ITEM_1."
    assert text[5] == "You rated ITEM_1: 4/5\nRate ITEM_3."
    assert text[7].startswith("You rated ITEM_3: 4/5\nActions: [NEXT_PAGE]")
    assert text[9].startswith("PAGE 2\n")
    assert text[-2].startswith(SESSION_ENDED)


def test_the_only_action_is_taken_without_a_call_and_its_feedback_is_not_lost():
    requests, outcome = visit(previous_page=False, max_clicks=0)
    assert [r.purpose for r in requests].count("act") == 0
    assert [e.text for e in outcome.events if e.kind == "act"] == ["[NEXT_PAGE]"] * 2
    screens = [r for r in requests if r.purpose == "screen"]
    assert screens[1].messages[-1].content.startswith("You rated ITEM_3: 4/5\nPAGE 2\n")
    asked, _ = visit(previous_page=False, max_clicks=0, skip_forced=False)
    assert [r.purpose for r in asked].count("act") == 2


def test_without_screening_all_is_watched():
    requests, outcome = visit(screening=False)
    assert [r.purpose for r in requests].count("rate") == 6
    assert "screen" not in kinds(outcome)
    assert "PAGE 1" in requests[0].messages[1].content
    assert requests[0].messages[1].content.endswith("Rate ITEM_1.")


def test_no_interview_where_it_is_not_wanted():
    assert visit(interview=False)[0][-1].purpose == "act"


def test_a_click_shows_details_and_is_offered_max_clicks_times_per_page():
    script = actions_script("[CLICK_ITEM:ITEM_2]", "[NEXT_PAGE]", "[NEXT_PAGE]")
    requests, outcome = visit(script, skip_forced=False)
    first, second, third = [r for r in requests if r.purpose == "act"]
    details = second.messages[-1].content
    assert details.startswith("DETAILS ITEM_2: Film 1") and "PAGE 1" not in details
    assert any("CLICK" in line for line in first.answer[0])
    assert not any("CLICK" in line for line in second.answer[0])
    assert any("CLICK" in line for line in third.answer[0])
    acts = [e.text for e in outcome.events if e.kind == "act"]
    assert acts == ["[CLICK_ITEM:ITEM_2]", "[NEXT_PAGE]", "[NEXT_PAGE]"]


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


# --- replies that cannot be read, and failures ---


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


# --- the context limit ---


def words(text):
    return len(text.split())


def tokens_of(messages):
    return sum(words(m.content) + MESSAGE_TOKENS for m in messages)


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
    limits = {"context_tokens": room + 10, "page_reserve_tokens": 10}
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


def test_rate_item_is_one_scored_question_on_a_page_of_one_item():
    coroutine = rate_item(USER, ITEMS["i1"], site(), SessionConfig(), seed=3, index=2)
    request = next(coroutine)
    assert (request.purpose, request.subject, request.scored) == ("rate", "i1", True)
    assert [m.role for m in request.messages] == ["system", "user"]
    text = request.messages[1].content
    assert "PAGE 1\n[ITEM_1] <- Film 1 -> <- History ratings: 4.00 ->" in text
    assert text.endswith("\nRate ITEM_1.") and "ITEM_2" not in text
    answer = completion(request, 3)
    with pytest.raises(StopIteration) as end:
        coroutine.send(answer)
    assert end.value.value is answer
    key = stable_key(3, "u1", "i1", "rate", 2)
    assert request.key == key
    in_session = visit(screening=False)[0][0]
    assert replace(request, key=0).messages[0] == in_session.messages[0]


# --- many, through the driver ---


class ConstrainedModel:
    """Chooses from key and conversation; answers the newest request first."""

    def __init__(self):
        self.queue = {}
        self.count = 0

    def submit(self, request):
        self.count += 1
        self.queue[self.count] = request
        return self.count

    def collect(self):
        if not self.queue:
            return []
        ticket, request = self.queue.popitem()
        said = tuple(message.content for message in request.messages)
        choices = [
            stable_key(request.key, said, line) % len(alternatives)
            for line, alternatives in enumerate(request.answer)
        ]
        return [(ticket, completion(request, *choices))]

    def cancel(self, ticket):
        self.queue.pop(ticket)


class Shelf:
    """Different slates per arm, from the request alone."""

    def __init__(self, shift):
        self.shift = shift

    def recommend(self, requests):
        return [self.slate(request) for request in requests]

    def slate(self, request):
        free = [i for i in ITEMS if i not in request.exclude]
        start = (self.shift * request.page + len(request.session)) % (len(free) - request.k)
        return Slate(tuple(free[start : start + request.k]))


def simulate(folder, order=1, concurrency=4):
    world = site(horizon=None, max_pages=4)
    config = SessionConfig(context_tokens=400, page_reserve_tokens=150)
    users = [AgentUser(Persona(f"u{n}"), HISTORY) for n in range(3)]

    def spec(arm, user):
        return SessionSpec(
            arm,
            user.user_id,
            0,
            lambda: session(user, world, config, arm=arm, number=0, seed=5, count_tokens=words),
        )

    specs = [spec(arm, user) for user in users for arm in ("a", "b")][::order]
    recommenders = {"a": Shelf(1), "b": Shelf(5)}
    with Journal.open(folder, {"seed": 5}) as journal:
        events = run_population(
            specs,
            ConstrainedModel(),
            recommenders,
            journal,
            concurrency=concurrency,
            catalogue=ITEMS,
        )
        recovered = journal.recovered
    return write_events(events, folder / "events.parquet").read_bytes(), events, recovered


def test_sessions_killed_anywhere_or_shuffled_give_the_same_table(tmp_path):
    expected, events, _ = simulate(tmp_path / "reference")
    assert {e.kind for e in events} == {"page", "screen", "rate", "act", "exit", "interview"}
    assert simulate(tmp_path / "shuffled", order=-1, concurrency=2)[0] == expected
    data = (tmp_path / "reference" / "segment-00000.bin").read_bytes()
    manifest = (tmp_path / "reference" / "manifest.json").read_bytes()
    for number, cut in enumerate(range(0, len(data), len(data) // 12)):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "manifest.json").write_bytes(manifest)
        (folder / "segment-00000.bin").write_bytes(data[:cut])
        resumed, _, recovered = simulate(folder, order=1 - 2 * (number % 2))
        assert resumed == expected
        assert recovered > 0 or cut < 2000


def test_recall_stands_before_a_screening_and_a_rating():
    index = RecallIndex(ITEMS, {"i0": 3, "i1": 9})
    user = replace(USER, recollection=index.of_user(HISTORY))
    requests, outcome = visit(user=user, recall=True)
    text = [message.content for message in outcome.extra["messages"]]
    assert text[0].endswith(prompts.RECALL)
    levels = [("9", "9"), ("9", "9"), ("9", "0")]  # all of one genre; i0 and i1 were rated
    lines = [f"ITEM_{n}: match {m}, popularity {p}" for n, (m, p) in enumerate(levels, 1)]
    assert text[1].endswith("\n".join([" ->", *lines, prompts.SCREEN]))
    assert text[3] == "ITEM_1: others none, similar items 5\nRate ITEM_1."  # (5 + 2) / 2
    everything, _ = visit(user=user, recall=True, screening=False)
    asked = [r.messages[-1].content for r in everything if r.subject == "i1"]
    assert asked[0].endswith("ITEM_2: others 7, similar items 5\nRate ITEM_2.")
    hidden, _ = visit(
        user=user, recall=True, screening=False, world=site(show_mean_rating=False)
    )
    asked = [r.messages[-1].content for r in hidden if r.subject == "i1"]
    assert asked[0].endswith("ITEM_2: others hidden, similar items 5\nRate ITEM_2.")
    without, _ = visit(user=user)
    assert not any(", popularity " in m.content for r in without for m in r.messages)


def test_a_distribution_that_the_back_end_cannot_tell_lies_on_the_choice():
    told = Completion("x", choices=(1, 2), choice_probabilities=((0.25, 0.75), ()))
    assert probabilities(told, 0, 1) == (0.25, 0.75)
    assert probabilities(told, 1, 2) == (0.0, 0.0, 1.0)  # tokens branch more than once
    assert probabilities(Completion("x", choices=(1,)), 0, 1) == (0.0, 1.0)
