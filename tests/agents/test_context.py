"""The limit of the context holds for every request and its longest reply, and for training."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from alignuser_jax.agents import AgentUser, SessionConfig, session
from alignuser_jax.agents.conversation import ContextTooSmall
from alignuser_jax.alignment.examples import Call, conversation_examples
from alignuser_jax.language.counting import TokenCounter
from alignuser_jax.language.parsing import REPROMPT
from alignuser_jax.language.render import render
from alignuser_jax.randomness import generator_of
from alignuser_jax.records import Completion, Interaction, Item, Persona, Slate
from alignuser_jax.world import RecommendationSite, SiteConfig
from tests.agents.visits import completion, drive
from tests.language.conftest import fast, llama3, qwen, small, with_default

__all__ = ["fast", "llama3", "qwen", "small", "with_default"]  # the fixtures

TITLES = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1, max_size=40
).map(lambda text: text.strip() or "Untitled")


@pytest.fixture(scope="module", params=["small", "fast", "with_default", "qwen", "llama3"])
def tokenizer(request):
    return request.getfixturevalue(request.param)


@st.composite
def visits(draw):
    """A site, a user and settings: pages of any size, titles of any text, tight limits."""
    titles = draw(st.lists(TITLES, min_size=12, max_size=12))
    items = {f"i{n}": Item(f"i{n}", title, ("Drama",)) for n, title in enumerate(titles)}
    size = draw(st.integers(1, 4))
    site = SiteConfig(items_per_page=size, horizon=draw(st.integers(1, 12 // size)))
    history = tuple(Interaction(f"i{n}", 3.0, n) for n in range(draw(st.integers(0, 12))))
    config = SessionConfig(
        screening=draw(st.booleans()),
        persona=draw(st.booleans()),
        history_items=draw(st.integers(0, 12)),
        memory_items=draw(st.integers(0, 6)),
        max_clicks=draw(st.integers(0, 2)),
        max_actions=12,
        reasoning_tokens=draw(st.sampled_from([0, 16, 64])),
        rate_reasoning_tokens=draw(st.sampled_from([0, 24])),
        interview=draw(st.booleans()),
        context_tokens=draw(st.integers(300, 1600)),
        page_reserve_tokens=draw(st.sampled_from([0, 20, 160, 400])),
    )
    return items, site, history, config, draw(st.integers(0, 2**32))


def run(items, site, history, config, seed, count, bad=""):
    """The calls of one session whose user replies at random, now and then with a `bad` text."""
    world = RecommendationSite(items, {}, {}, site)
    user = AgentUser(Persona("u", pickiness=2, mean_rating=3.0), history)
    draws = generator_of(seed)
    calls = []

    def reply(request):
        choices = tuple(int(draws.integers(len(lines))) for lines in request.answer)
        calls.append(Call(request, choices))
        if bad and draws.random() < 0.3:
            return Completion(bad)
        return completion(request, *choices)

    def slates(request):
        start = site.items_per_page * (request.page - 1)
        return Slate(tuple(f"i{n}" for n in range(start, start + request.k)))

    _, outcome = drive(
        session(user, world, config, arm="a", number=0, seed=1, count_tokens=count),
        reply,
        slates,
    )
    return calls, outcome


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(setting=visits(), words=st.integers(1, 3000))
def test_a_second_try_after_a_long_unreadable_reply_fits_too(small, setting, words):
    *_, config, _ = setting
    count = TokenCounter(small)
    try:
        calls, _ = run(*setting, count, bad="I like them all " * words)
    except ContextTooSmall:
        return
    for call in calls:
        request = call.request
        prompt = len(render(small, request.messages, generation=True))
        longest = prompt + request.reasoning_tokens + count.reply(request.answer)
        assert longest <= config.context_tokens
        if request.messages[-1].content == REPROMPT:
            event("shortened" if words > 20 else "asked again")


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(setting=visits())
def test_every_request_and_every_example_fits(tokenizer, setting):
    """`context_tokens=1536` with a reserve of 160 once built an example of 1,597 tokens.

    The reserve was a guess at what a page's questions and replies take, and nothing held the
    guess against them.
    """
    *_, config, _ = setting
    count = TokenCounter(tokenizer)
    try:
        calls, outcome = run(*setting, count)
    except ContextTooSmall:
        event("too small")
        return
    event("restarted" if outcome.extra["restarts"] else "whole")
    for call in calls:
        request = call.request
        prompt = len(render(tokenizer, request.messages, generation=True))
        longest = prompt + request.reasoning_tokens + count.reply(request.answer)
        assert longest <= config.context_tokens
        assert request.messages[0].role == "system"  # never cut on the left
        assert request.messages[1].role == "user"
    examples = conversation_examples(calls, "visit", "u/0", "u")
    assert len(examples) == (outcome.extra["restarts"] + 1 if calls else 0)
    trained: Counter[str] = Counter()
    for example in examples:
        weights = render(tokenizer, example.messages).weights
        assert np.flatnonzero(weights)[-1] + 1 <= config.context_tokens
        for message in example.messages:
            if message.role == "assistant" and any(span.trained for span in message.spans):
                trained[message.content] += 1
    assert trained == Counter(call.answer for call in calls)


def pages_of(requests):
    return [r.messages[1].content.count("PAGE ") for r in requests]


def test_a_question_that_does_not_fit_repeats_its_page(small):
    """The page is begun anew with the replies that were given on it, and none is lost."""
    items = {f"i{n}": Item(f"i{n}", f"Film {n}", ("Drama",)) for n in range(12)}
    count = TokenCounter(small)
    setting = (items, SiteConfig(items_per_page=4, horizon=2), (), SessionConfig(), 3)
    free, _ = run(*setting, count)
    sizes = [len(render(small, call.request.messages, generation=True)) for call in free]
    second = next(n for n, c in enumerate(free) if n and c.request.purpose == "screen")
    limit = sizes[-1] - 1  # the interview does not fit
    config = SessionConfig(context_tokens=limit, page_reserve_tokens=0)
    calls, outcome = run(*setting[:3], config, 3, count)
    assert outcome.extra["restarts"] == 1
    anew = next(n for n in range(len(calls)) if calls[n].request != free[n].request)
    assert second < anew
    messages = calls[anew].request.messages
    assert [m.content for m in messages if m.role == "assistant"] == [
        call.answer for call in calls[second:anew]
    ]
    assert [c.answer for c in calls] == [c.answer for c in free]
    examples = conversation_examples(calls, "visit", "u/0", "u")
    assert len(examples) == 2
    replies = [m for m in examples[1].messages if m.role == "assistant"]
    repeated = anew - second
    assert [any(s.trained for s in m.spans) for m in replies] == [False] * repeated + [True] * (
        len(calls) - anew
    )


def test_a_context_for_no_page_is_refused_with_what_to_do(small):
    items = {f"i{n}": Item(f"i{n}", f"Film {n}", ("Drama",)) for n in range(12)}
    config = SessionConfig(context_tokens=40, page_reserve_tokens=0)
    with pytest.raises(ContextTooSmall, match="raise context_tokens, or show fewer"):
        run(items, SiteConfig(), (), config, 3, TokenCounter(small))
