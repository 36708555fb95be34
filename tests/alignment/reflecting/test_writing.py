"""A model writes reflections: what it is asked, what is kept, shown, repeated and given up."""

import re
from dataclasses import replace

import pytest

from alignuser_jax.agents import SessionConfig
from alignuser_jax.alignment.counterfactuals import Alternatives
from alignuser_jax.alignment.item_level import rating_steps, reasonings, reflection_examples
from alignuser_jax.alignment.reflecting.requests import ReflectionConfig, rating_facts
from alignuser_jax.alignment.reflecting.writing import Tally, TooFewKept, reflect
from alignuser_jax.language.reflection_prompts import EXAMPLES
from alignuser_jax.records import Completion
from alignuser_jax.sampling import Recording, ScriptedGenerator, generate
from alignuser_jax.sampling.request_checks import check_request
from alignuser_jax.views.sites import Sites
from alignuser_jax.world import SiteConfig
from tests.alignment.reflecting.replies import usable

SESSION = SessionConfig()


@pytest.fixture(scope="module")
def steps(dataset, view):
    sites = Sites(dataset.items, view, SiteConfig())
    targets = [
        (u, t) for u in dataset.user_ids[:6] for t in dataset.history(view.targets, u)[:4]
    ]
    return rating_steps(sites, targets, SESSION, Alternatives())


class Asked:
    """Answers batches from a script, and keeps the requests."""

    def __init__(self, reply):
        self.model, self.batches = ScriptedGenerator(reply), []

    def __call__(self, requests):
        self.batches.append(len(requests))
        return generate(self.model, requests)


def test_what_a_model_is_asked(steps):
    ask = Asked(usable)
    texts, dropped = reasonings(steps[:2], SESSION, generate=ask)
    assert not dropped and all(text.startswith("WHY: ") for text in texts)
    assert len(list(reflection_examples(steps[:2], texts))) == 8
    first, second = ask.model.requests[0], ask.model.requests[4]
    for request in (first, second):
        check_request(request)
        assert [m.role for m in request.messages] == [
            "system",
            *["user", "assistant"] * 3,
            "user",
        ]
        assert request.messages[2].content == EXAMPLES[0].reply
        assert (request.reply_start, request.lines) == ("WHY: I", ("WHY:", "LESSON:"))
        assert (request.line_tokens, request.no_repeat, request.temperature) == (40, 4, 0.7)
    assert first.messages[:-1] == second.messages[:-1], "one prefix for all users"
    question = first.messages[-1].content
    human, other = steps[0].counterfactual.pairs[0]
    words = ("hate it", "dislike it", "find it just okay", "like it", "love it")
    chosen, rejected = words[human.action.value - 1], words[other.action.value - 1]
    assert question.endswith(f"I {chosen} (not: I {rejected}). Why?")
    rated = question.split("Similar items I know: ")[1].splitlines()[0].split("; ")
    assert all(re.fullmatch(rf".+ \(I ({'|'.join(words)})\)", one) for one in rated)
    assert steps[0].evidence.item.title in question and "25-34, artist" in question
    zero = Tally(ReflectionConfig(examples=0))
    reasonings(steps[:1], SESSION, generate=ask, tally=zero)
    assert [m.role for m in ask.model.requests[-1].messages] == ["system", "user"]


def test_refused_ones_are_asked_again_under_another_key(steps):
    seen = {}

    def reply(request):
        tries = seen.setdefault(request.messages[-1].content, [])
        tries.append(request.key)
        return usable(request) if len(tries) == 3 else "WHY: I cannot say.\nLESSON: No."

    tally = Tally(ReflectionConfig(retries=2))
    texts, dropped = reasonings(steps[:2], SESSION, generate=Asked(reply), tally=tally)
    assert all(texts) and not dropped
    assert all(len(keys) == len(set(keys)) == 3 for keys in seen.values())
    assert (tally.replies, tally.kept) == (24, 8)
    assert tally.refused == {"too short": 16}
    seen.clear()
    once = Tally(ReflectionConfig(retries=1))
    texts, dropped = reasonings(steps[:2], SESSION, generate=Asked(reply), tally=once)
    assert not any(texts) and dropped == {"too short": 8}


def test_failures_are_not_asked_again(steps):
    pairs = steps[0].counterfactual.pairs[:2]
    replies = [Completion("", finish_reason="error", error="down"),
               Completion("WHY: a", finish_reason="length")]  # fmt: skip
    tally = Tally(ReflectionConfig(retries=0))
    requests = [steps[0].call.request] * 2
    result = reflect(Asked(replies), requests, pairs, tally=tally)
    assert result.texts == (None, None)
    assert result.dropped == {"generation failed: down": 1, "too long": 1}


def test_of_one_lesson_for_one_step_the_first_stays(steps):
    same = "WHY: I do not love Film 3, a comedy or drama.\nLESSON: I trust my own taste."
    pairs = steps[0].counterfactual.pairs[:2]
    tally = Tally(ReflectionConfig(retries=0))
    result = reflect(Asked([same, same]), [steps[0].call.request] * 2, pairs, tally=tally)
    assert result.texts[0] and result.texts[1] is None
    assert result.dropped == {"lesson repeated": 1}


def test_a_hopeless_run_stops_and_says_what_to_do(steps):
    said = []

    def reply(request):
        return usable(request) if request.key % 16 == 0 else "WHY: I cannot.\nLESSON: No."

    ask = Asked(reply)
    tally = Tally(ReflectionConfig(first_replies=40), said.append)
    with pytest.raises(TooFewKept, match=r"kept \d of 40 replies .*too short.*--reflector=DIR"):
        reasonings(steps, SESSION, generate=ask, tally=tally)
    assert ask.batches == [40], "no reply more than it takes to know"
    assert said[0].startswith("reflections: kept ")
    tally = Tally(ReflectionConfig(least_kept=0, retries=0))
    texts, _ = reasonings(steps, SESSION, generate=Asked(reply), tally=tally)
    assert len(texts) == 4 * len(steps) and any(texts)


def test_the_share_is_judged_once(steps):
    answers = iter([True] * 5 + [False] * 1000)
    tally = Tally(ReflectionConfig(first_replies=10, retries=0))

    def reply(request):
        return usable(request) if next(answers) else "WHY: no"

    texts, dropped = reasonings(steps, SESSION, generate=Asked(reply), tally=tally)
    assert sum(text is not None for text in texts) == 5
    assert dropped == {"tags missing": len(texts) - 5}


def test_what_is_done_is_not_asked_again(steps, tmp_path):
    path, config = tmp_path / "answers.log", ReflectionConfig(first_replies=20)

    def once(config, model):
        recording = Recording(model, path, {"model": "scripted"})
        try:
            ask = lambda requests: generate(recording, requests)  # noqa: E731
            return reasonings(steps, SESSION, generate=ask, tally=Tally(config))
        finally:
            recording.close()

    with pytest.raises(TooFewKept):
        once(config, ScriptedGenerator(lambda request: "WHY: no"))
    model = ScriptedGenerator(usable)
    texts, dropped = once(replace(config, least_kept=0, retries=0), model)
    assert len(model.requests) == 4 * len(steps) - 20, "twenty were there"
    assert dropped == {"tags missing": 20}


def test_samples_are_shown_while_it_goes_on(steps):
    said, now = [], [0.0]

    def clock():
        now[0] += 40.0
        return now[0]

    tally = Tally(ReflectionConfig(first_replies=10), said.append, clock=clock)
    reasonings(steps, SESSION, generate=Asked(usable), tally=tally)
    assert said[0] == "reflections: kept 10 of 10 replies (100%)"
    assert said[1].startswith("  for example: WHY: ") and " / LESSON: " in said[1]
    assert tally.figures()["item_named"] == tally.kept == 4 * len(steps)


def test_facts_are_what_the_question_names(steps):
    facts = rating_facts(steps[0].evidence, ReflectionConfig())
    ask = Asked(usable)
    reasonings(steps[:1], SESSION, generate=ask)
    question = ask.model.requests[0].messages[-1].content
    assert facts.title in question and all(title in question for title in facts.known)
    assert 1 <= len(facts.known) <= 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"line_tokens": 0}, "reflections.line_tokens is 0, expected 4 to 400"),
        ({"examples": 4}, "reflections.examples is 4, expected 0 to 3"),
        ({"retries": -1}, "reflections.retries is -1"),
        ({"no_repeat": 9}, "reflections.no_repeat is 9, expected 0 to 8"),
        ({"temperature": -1}, "temperature is -1"),
        ({"top_p": 0}, "top_p is 0"),
        ({"least_kept": 1.5}, "reflections.least_kept is 1.5, expected 0 to 1"),
        ({"first_replies": 0}, "reflections.first_replies is 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        ReflectionConfig(**changes)
    with pytest.raises(ValueError, match="k is -1, expected 0 or more"):
        Alternatives(k=-1)
