import inspect
import re

import pytest

from alignuser_jax.agents import AgentUser, SessionConfig
from alignuser_jax.alignment.counterfactuals import Alternatives
from alignuser_jax.alignment.item_level import (
    imitation_examples,
    rating_steps,
    reasonings,
    reflection_examples,
)
from alignuser_jax.alignment.reflecting.templates import rating_template, shuffled
from alignuser_jax.alignment.trajectory import HumanSession, act_steps, trajectory_examples
from alignuser_jax.alignment.visits import Visit
from alignuser_jax.records import Action, Interaction
from alignuser_jax.sampling import ScriptedGenerator, generate
from alignuser_jax.views.sites import Sites
from alignuser_jax.world import SiteConfig
from tests.alignment.alignment_toy import Listed

SESSION = SessionConfig()
FEELINGS = ("Liked (", "Neutral (", "Disliked (")


@pytest.fixture(scope="module")
def sites(dataset, view):
    return Sites(dataset.items, view, SiteConfig())


@pytest.fixture(scope="module")
def targets(dataset, view):
    return [(u, t) for u in dataset.user_ids[:6] for t in dataset.history(view.targets, u)[:4]]


@pytest.fixture(scope="module")
def steps(dataset, view, sites, targets):
    return rating_steps(sites, targets, SESSION, Alternatives())


def texts_of(steps, **arguments):
    return reasonings(steps, SESSION, **arguments)[0]


def test_k_other_ratings_and_their_next_states(steps, targets):
    assert len(steps) == len(targets)
    for step, (user, target) in zip(steps, targets, strict=True):
        pair = step.counterfactual
        assert pair.human.action.value == target.rating and step.user_id == user
        values = [t.action.value for t in pair.alternatives]
        assert sorted([*values, pair.human.action.value]) == [1, 2, 3, 4, 5]
        for transition in (pair.human, *pair.alternatives):
            echo = transition.next_state.feedback
            assert echo.startswith("You rated ") and echo.endswith(
                f"{transition.action.value}/5"
            )


def test_the_template_never_sees_the_rating(steps):
    """It has no argument that holds it, and so the text for a (rating, alternative) pair is
    the text for any other rating."""
    assert list(inspect.signature(rating_template).parameters) == [
        "evidence",
        "alternative",
        "key",
    ]
    fields = set(steps[0].evidence.__slots__ if hasattr(steps[0].evidence, "__slots__") else ())
    assert "rating" not in fields
    for step in steps:
        assert all(past.item_id != step.evidence.item.item_id for past in step.evidence.history)


def test_template_reflections(steps):
    texts = texts_of(steps)
    assert len(texts) == 4 * len(steps)
    for text in texts:
        assert re.fullmatch(r"WHY: [^\n]+\nLESSON: [^\n]+\n", text)
        assert len(re.findall(r"\w+|[^\w\s]", text)) <= 75 and "RATING" not in text
    assert len({t.split("LESSON")[0] for t in texts}) > 0.9 * len(texts), "variety"
    assert len({t.split("LESSON")[1] for t in texts}) >= 4
    assert texts == texts_of(steps) and texts != texts_of(steps, seed=1)


def test_template_evidence_is_what_the_prompt_shows(steps, view):
    for step, text in zip(steps, texts_of(steps)[::4], strict=True):
        prompt = step.call.request.messages[-1].content
        cited = re.findall(r"(Film \d+): (\d)", text)
        assert cited or "Nothing like it" in text
        for title, score in cited:
            past = [line for line in prompt.splitlines() if line.startswith(FEELINGS)]
            line = next(line for line in past if f"{title};" in f"{line};")
            assert line.split(": ")[0].endswith(f"({score})")
        mean = view.mean_ratings.get(step.evidence.item.item_id)
        assert (f"thers {mean:.1f}" in text) if mean else ("thers" not in text)


def test_hidden_means_are_no_evidence(dataset, view, targets):
    sites = Sites(dataset.items, view, SiteConfig(show_mean_rating=False))
    steps = rating_steps(sites, targets, SessionConfig(persona=False), Alternatives())
    assert all("thers" not in t and "usually" not in t for t in texts_of(steps))
    lines = [s.call.request.messages[-1].content.splitlines()[-2] for s in steps]
    assert all(line.startswith("1. ") and " | rated " not in line for line in lines)


def test_examples_of_ratings(steps):
    texts = texts_of(steps)
    examples = list(reflection_examples(steps, texts))
    assert len(examples) == len({e.example_id for e in examples}) == 4 * len(steps)
    for n, example in enumerate(examples):
        step = steps[n // 4]
        assert example.messages[:-1] == step.call.request.messages
        reasoning, answer = example.messages[-1].spans
        assert (reasoning.text, reasoning.trained, reasoning.action) == (texts[n], True, False)
        assert answer.text == str(step.counterfactual.human.action.value)
        assert answer.trained and answer.action
        assert not any(s.trained for m in example.messages[:-1] for s in m.spans)
    plain = list(imitation_examples(steps))
    assert [e.messages[-1].content for e in plain] == [s.call.answer for s in steps]
    assert {e.task for e in plain} == {"imitation"} and len(plain) == len(steps)


def test_k_is_checked_and_items_rated_before_are_left_out(dataset, view, sites):
    with pytest.raises(ValueError, match="0 to 4"):
        rating_steps(sites, [], SESSION, Alternatives(k=5))
    earlier = view.histories["u01"][0]
    assert rating_steps(sites, [("u01", earlier)], SESSION, Alternatives()) == []


def test_shuffled_reflections_keep_prompts_answers_and_the_set_of_texts(steps):
    plain, moved = texts_of(steps), texts_of(steps, shuffle=True)
    assert sorted(plain) == sorted(moved)
    assert sum(a == b for a, b in zip(plain, moved, strict=True)) == 0
    assert shuffled(["a"], 0) == ["a"] and shuffled(["a", "b"], 3) == ["b", "a"]


# --- the trajectory level, on synthetic sessions ------------------------------------------


def synthetic_session(dataset, view, user="u05"):
    seen = {past.item_id for past in view.histories[user]}
    free = [item for item in dataset.item_ids if item not in seen]
    visit = Visit(user, 0, (tuple(free[:4]), tuple(free[4:8])), (Interaction(free[1], 4.0),))
    actions = (Action("click", "2"), Action("next_page"), Action("exit"))
    return HumanSession(visit, actions)


def run(dataset, view, sites, generate=None, k=4):
    human = synthetic_session(dataset, view)
    user = AgentUser(view.personas["u05"], view.histories["u05"])
    recommender = Listed(dataset.item_ids)
    world = sites.site()
    steps = act_steps(
        user, world, recommender, human, SESSION, Alternatives(k, generate=generate)
    )
    return human, user, world, recommender, steps


def test_trajectory_steps_are_the_sessions_own_act_calls(dataset, view, sites):
    human, _, _, recommender, steps = run(dataset, view, sites)
    assert [s.counterfactual.human.action for s in steps] == list(human.actions)
    assert steps[0].counterfactual.human.next_state.kind == "detail"
    assert steps[1].counterfactual.human.next_state.pages == human.visit.pages
    assert steps[2].counterfactual.human.next_state.terminal
    for step in steps:
        assert 1 <= len(step.counterfactual.alternatives) <= 4
        for other in step.counterfactual.alternatives:
            assert other.action != step.counterfactual.human.action
            assert other.next_state.text != step.counterfactual.human.next_state.text
    purposes = {r.purpose for batch in recommender.batches for r in batch}
    assert purposes <= {"counterfactual"} and len(recommender.batches) <= 1


def test_trajectory_examples_by_template(dataset, view, sites):
    _, user, world, _, steps = run(dataset, view, sites)
    examples, dropped = trajectory_examples(user, world, steps, SESSION)
    assert not dropped and len(examples) == sum(
        len(s.counterfactual.alternatives) for s in steps
    )
    tags = ["CONTEXT-ADVANTAGE", "PERSONA-ALIGNMENT", "FUTURE-OUTCOMES", "LESSON"]
    for example in examples:
        lines = example.messages[-1].content.splitlines()
        assert [line.split(":")[0] for line in lines] == [*tags, "BEST-ACTION"]
        assert "[" not in "".join(lines[:4]), "no action token before the answer"
        assert [s.action for s in example.messages[-1].spans] == [False, True]
    assert len({e.example_id for e in examples}) == len(examples)


def test_trajectory_examples_by_a_model(dataset, view, sites):
    prompts_seen = []

    def reply(request):
        prompts_seen.append(request)
        if request.purpose == "act":
            return request.answer[0][-1]
        n = len(prompts_seen)
        return (
            "CONTEXT-ADVANTAGE: a.\nPERSONA-ALIGNMENT: b.\nFUTURE-OUTCOMES: c.\n"
            f"LESSON: go on{n}" + (" [EXIT]." if n % 2 else ".")
        )

    def ask(requests):
        return generate(ScriptedGenerator(reply), requests)

    _, user, world, _, steps = run(dataset, view, sites, generate=ask, k=1)
    drawn = [s.counterfactual.alternatives[0].action for s in steps[:2]]
    assert drawn == [Action("exit"), Action("exit")], "the model's own choice"
    examples, dropped = trajectory_examples(user, world, steps, SESSION, generate=ask)
    assert len(examples) + sum(dropped.values()) == 3
    assert "Other action: [EXIT]" in prompts_seen[-3].messages[-1].content


def test_a_session_that_does_what_is_not_offered(dataset, view, sites):
    human = synthetic_session(dataset, view)
    wrong = HumanSession(human.visit, (Action("click", "9"),))
    user = AgentUser(view.personas["u05"], view.histories["u05"])
    with pytest.raises(ValueError, match="not offered"):
        act_steps(user, sites.site(), Listed(dataset.item_ids), wrong, SESSION, Alternatives())
