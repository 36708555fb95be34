"""Decision 4: what is trained is what is run, token by token, for every kind of call."""

import numpy as np
import pytest

from alignuser_jax.agents import SessionConfig, SessionSpec, run_population, session
from alignuser_jax.agents.rating import rate_item
from alignuser_jax.alignment import (
    BuildConfig,
    ExposureMixture,
    ShardSource,
    VisitConfig,
    build_shards,
    reconstruct_visits,
)
from alignuser_jax.alignment.examples import HumanVisit, conversation_examples, drive
from alignuser_jax.durable.journal import Journal
from alignuser_jax.language.parsing import answer_text
from alignuser_jax.language.prompts import SCREEN
from alignuser_jax.language.render import answer_token_paths, render
from alignuser_jax.language.tokenizer import train_sentencepiece
from alignuser_jax.records import Slate
from alignuser_jax.sampling import ScriptedGenerator
from alignuser_jax.shards import read_examples
from alignuser_jax.views import simulation_view, test_view, training_view
from alignuser_jax.views.sites import Sites, agent_user
from alignuser_jax.world import SiteConfig
from tests.alignment.alignment_toy import toy

SITE = SiteConfig(max_pages=5)
UNIFORM = VisitConfig(exposure=ExposureMixture(popularity=0, model_top=0))


@pytest.fixture(scope="module")
def shards(dataset, tmp_path_factory):
    """Shards of all tasks but the world model's, by id, and the tokenizer of their text."""
    config = BuildConfig(
        tasks=("visit", "reflection", "imitation"),
        site=SITE,
        visits=UNIFORM,
        validation_share=0.0,
        ratings_per_user=3,
    )
    out = tmp_path_factory.mktemp("shards")
    build_shards(ShardSource(dataset, dataset.user_ids[:6]), out, config)
    examples = {e.example_id: e for e in read_examples(out)}
    texts = [m.content for e in examples.values() for m in e.messages]
    return examples, train_sentencepiece(texts, 1200, tmp_path_factory.mktemp("tokenizer"))


class HumanPages:
    """A recommender that shows the pages of recorded visits."""

    def __init__(self, visits):
        self.visits = {v.user_id: v for v in visits}

    def recommend(self, requests):
        return [Slate(self.visits[r.user_id].pages[r.page - 1]) for r in requests]


def test_tokens_of_the_shards_are_those_that_simulate_submits(dataset, view, shards, tmp_path):
    examples, tokenizer = shards
    reconstructed = reconstruct_visits(dataset, view, UNIFORM, users=dataset.user_ids[:6])
    visits = {}
    for (
        visit
    ) in reconstructed:  # of each user the visit with most pages: its number names its example
        if len(visit.pages) > len(getattr(visits.get(visit.user_id), "pages", ())):
            visits[visit.user_id] = visit
    humans = {user: HumanVisit(visit) for user, visit in visits.items()}

    def reply(request):
        human = humans[next(u for u in visits if request.messages[1].content == opening_of(u))]
        human.page = sum(m.content.count(f"\n{SCREEN}") for m in request.messages)
        return answer_text(human.choose(request), request.answer)

    def opening_of(user):
        return examples[f"visit/{user}/{visits[user].number}/0"].messages[1].content

    generator = ScriptedGenerator(reply)
    site = Sites(dataset.items, view, SITE).site()
    specs = [
        SessionSpec(
            "human",
            user,
            visit.number,
            lambda u=user, v=visit: session(
                agent_user(view, u, SessionConfig()),
                site,
                SessionConfig(),
                arm="human",
                number=v.number,
                seed=7,
            ),
        )
        for user, visit in visits.items()
    ]
    arms = {"human": HumanPages(visits.values())}
    with Journal.open(tmp_path / "journal", {}) as journal:
        events = run_population(specs, generator, arms, journal)
    assert not [e for e in events if e.kind == "failure"]

    checked = {}
    of_opening = {opening_of(u): examples[f"visit/{u}/{v.number}/0"] for u, v in visits.items()}
    for request in generator.requests:
        example = of_opening[request.messages[1].content]
        whole = render(tokenizer, example.messages)
        prompt = render(tokenizer, request.messages, generation=True).tokens
        n = len(prompt)
        assert np.array_equal(whole.tokens[:n], prompt), request.purpose
        lines = example.messages[len(request.messages)].content.split("\n")
        reply_tokens = []
        for number, (line, choices) in enumerate(zip(lines, request.answer, strict=True)):
            last = number == len(lines) - 1
            paths = answer_token_paths(tokenizer, choices, last)
            reply_tokens += paths[choices.index(line)]
        end = n + len(reply_tokens)
        assert whole.tokens[n:end].tolist() == reply_tokens, request.purpose
        assert whole.weights[n:end].all(), "the whole reply and its end are trained"
        assert not whole.weights[n - 1], "what the user says is not"
        checked[request.purpose] = checked.get(request.purpose, 0) + 1
    assert set(checked) == {"screen", "rate", "act", "interview"} and min(checked.values()) >= 6


def test_tokens_of_item_level_examples_are_those_of_the_rating_protocol(dataset, view, shards):
    examples, tokenizer = shards
    site = Sites(dataset.items, view, SITE).site()
    seen = 0
    for example in examples.values():
        if example.task == "visit":
            continue
        item = example.example_id.split("/")[2]
        user = agent_user(view, example.user_id, SessionConfig())
        request = next(rate_item(user, item, site, SessionConfig(), seed=99))
        prompt = render(tokenizer, request.messages, generation=True).tokens
        whole = render(tokenizer, example.messages)
        assert np.array_equal(whole.tokens[: len(prompt)], prompt)
        assert whole.weights[len(prompt) :].all() and not whole.weights[: len(prompt)].any()
        paths = answer_token_paths(tokenizer, request.answer[0], last=True)
        rating = paths[int(example.messages[-1].content[-1]) - 1]
        assert whole.tokens[-len(rating) :].tolist() == rating
        assert whole.is_action[-len(rating) : -1].all()
        seen += 1
    assert seen >= 6 * 3 * 5


def test_template_reflections_are_short_in_tokens(shards):
    examples, tokenizer = shards
    counts = [
        tokenizer.count(e.messages[-1].spans[0].text)
        for e in examples.values()
        if e.task == "reflection"
    ]
    assert np.mean(counts) <= 60 and max(counts) <= 75


def test_a_conversation_that_starts_anew_gives_one_example_per_window(dataset, view):
    visits = reconstruct_visits(dataset, view, UNIFORM)
    visit = max(visits, key=lambda v: len(v.pages))
    config = SessionConfig(context_tokens=500, page_reserve_tokens=60)

    def count(text):
        return len(text.split())

    def calls_of(config):
        human = HumanVisit(visit)
        coroutine = session(
            agent_user(view, visit.user_id, config),
            Sites(dataset.items, view, SITE).site(),
            config,
            arm="human",
            number=visit.number,
            seed=0,
            count_tokens=count,
        )
        return drive(coroutine, human.choose, human.show)

    calls, outcome = calls_of(config)
    assert outcome.extra["restarts"] >= 1
    examples = conversation_examples(calls, "visit", "v", visit.user_id)
    assert len(examples) == outcome.extra["restarts"] + 1
    assert len({e.example_id for e in examples}) == len(examples)
    trained = [
        m.content
        for e in examples
        for m in e.messages
        if m.role == "assistant" and all(s.trained for s in m.spans)
    ]
    assert trained == [call.answer for call in calls]
    whole, _ = calls_of(SessionConfig())
    assert len(conversation_examples(whole, "visit", "v", visit.user_id)) == 1


# --- no leak ------------------------------------------------------------------------------


def prompts(dataset, view, users):
    """The prompt of every target at item level, and the first call of every visit."""
    requests = {}
    sites = Sites(dataset.items, view, SITE)
    for user in users:
        person = agent_user(view, user, SessionConfig())
        for target in dataset.history(view.targets, user):
            request = next(
                rate_item(person, target.item_id, sites.site(), SessionConfig(), seed=0)
            )
            requests[user, target.item_id] = request
    for visit in reconstruct_visits(dataset, view, UNIFORM, users=users):
        human = HumanVisit(visit)
        person = agent_user(view, visit.user_id, SessionConfig())
        site = sites.site()
        coroutine = session(
            person, site, SessionConfig(), arm="human", number=visit.number, seed=0
        )
        calls, _ = drive(coroutine, human.choose, human.show)
        requests[visit.user_id, "visit", visit.number] = calls[0].request
    return requests


@pytest.mark.parametrize(
    ("make_view", "place"), [(training_view, 27), (training_view, 31), (test_view, 38)]
)
def test_a_changed_target_rating_changes_no_prompt(make_view, place):
    users = [f"u{n:02}" for n in range(24)]
    before, after = (toy(change=("u04", place, rating)) for rating in (1.0, 5.0))
    target = before.history(make_view(before).targets, "u04")
    assert any(t.rating == 1.0 for t in target)
    old, new = (prompts(d, make_view(d), users) for d in (before, after))
    assert old == new and len(old) > 24 * 3
    changed = after.history(make_view(after).targets, "u04")
    assert changed != target, "the change is in the targets"


@pytest.mark.parametrize("place", [3, 23])
def test_a_changed_profile_rating_does_change_prompts(place):
    before, after = (toy(change=("u04", place, rating)) for rating in (1.0, 5.0))
    old, new = (prompts(d, training_view(d), ["u04"]) for d in (before, after))
    assert old.keys() == new.keys() and all(old[k] != new[k] for k in old)


def test_views_cut_the_log_where_they_say(dataset):
    training, test = training_view(dataset), test_view(dataset)
    assert len(training.histories["u01"]) == 24 and len(test.histories["u01"]) == 36
    assert len(training.targets) == 24 * 8 and len(test.targets) == 24 * 4
    assert set(training.targets.split.tolist()) == {0}
    assert set(test.targets.split.tolist()) == {2}
    rated = dataset.item_ids[training.profile.item[0]]
    ratings = training.profile.rating[training.profile.item == training.profile.item[0]]
    assert training.mean_ratings[rated] == pytest.approx(ratings.mean())


def test_agents_of_an_ab_test_know_only_train(dataset):
    view = simulation_view(dataset)
    assert len(view.histories["u01"]) == 32 and len(view.targets) == 24 * 8
    assert set(view.profile.split.tolist()) == {0}
    assert set(view.targets.split.tolist()) == {1, 2}
