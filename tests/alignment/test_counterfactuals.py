import pytest

from alignuser_jax.agents import SessionConfig
from alignuser_jax.alignment.counterfactuals import (
    policy_alternatives,
    step_alternatives,
    uniform_alternatives,
)
from alignuser_jax.alignment.rollouts import (
    RolloutConfig,
    collect_rollouts,
    generator_policy,
    human_transitions,
    random_policy,
)
from alignuser_jax.alignment.visits import ExposureMixture, VisitConfig, reconstruct_visits
from alignuser_jax.records import Action, Completion, Message, Request, Transition
from alignuser_jax.sampling import ScriptedGenerator, generate
from alignuser_jax.views.sites import Sites, agent_user
from alignuser_jax.world import SiteConfig
from tests.alignment.alignment_toy import Listed

NEXT, EXIT = Action("next_page"), Action("exit")


@pytest.fixture(scope="module")
def sites(dataset, view):
    return Sites(dataset.items, view, SiteConfig(max_pages=6))


@pytest.fixture(scope="module")
def visits(dataset, view):
    config = VisitConfig(exposure=ExposureMixture(popularity=0, model_top=0))
    return reconstruct_visits(dataset, view, config)


def page(site, recommender, user="u01"):
    state = site.reset(user, 0)
    return site.resolve(state, recommender.recommend([state.needs])[0])


def test_alternatives_are_imagined_in_one_batch(dataset, sites):
    site, recommender = sites.site(), Listed(dataset.item_ids)
    states = [page(site, recommender, user) for user in ("u01", "u02")]
    taken = [Transition(s, EXIT, site.step(s, EXIT), "human") for s in states]
    recommender.batches.clear()
    actions = [[NEXT, Action("click", "2")], [NEXT]]
    pairs = step_alternatives(site, taken, actions, recommender)
    assert [len(batch) for batch in recommender.batches] == [2]
    assert {r.purpose for r in recommender.batches[0]} == {"counterfactual"}
    assert [[t.action for t in pair.alternatives] for pair in pairs] == actions
    assert pairs[0].alternatives[0].next_state.text.startswith("PAGE 2")
    assert all(t.source == "counterfactual" for pair in pairs for t in pair.alternatives)
    assert site.step(states[0], NEXT).needs.purpose == "browse"


def test_alternatives_without_an_effect_of_their_own_are_dropped_but_ratings_kept(
    dataset, sites
):
    site = sites.of_one_item()
    state = page(site, Listed(dataset.item_ids))
    rate = [Action("rate", "1", value) for value in (2, 5)]
    taken = Transition(state, rate[0], site.step(state, rate[0]), "human")
    (pair,) = step_alternatives(site, [taken], [[rate[1]]])
    assert pair.alternatives[0].next_state.feedback.endswith(": 5/5")
    bad = [Action("click", "9"), Action("click", "9"), EXIT]
    taken = Transition(state, EXIT, site.step(state, EXIT), "human")
    (pair,) = step_alternatives(site, [taken], [bad])
    assert [t.action for t in pair.alternatives] == bad[:1]


def test_who_may_answer_imagined_pages(dataset, sites):
    site, recommender = sites.site(), Listed(dataset.item_ids)
    state = page(site, recommender)
    taken = [Transition(state, EXIT, site.step(state, EXIT), "human")]
    with pytest.raises(ValueError, match="recommender"):
        step_alternatives(site, taken, [[NEXT]])
    recommender.stateful = True
    with pytest.raises(ValueError, match="state"):
        step_alternatives(site, taken, [[NEXT]], recommender)


def test_uniform_alternatives():
    drawn = {uniform_alternatives(5, 2, 3, key) for key in range(50)}
    assert all(len(set(d)) == 3 and 2 not in d for d in drawn) and len(drawn) > 10
    assert sorted(uniform_alternatives(5, 2, 9, 0)) == [0, 1, 3, 4]
    assert uniform_alternatives(5, 2, 0, 0) == ()


def test_alternatives_of_the_policy():
    lines = tuple(f"RATING: {n}" for n in range(1, 6))
    request = Request((Message.of("user", "Rate."),), "rate", answer=(lines,), scored=True)
    seen = []

    def reply(sampled):
        seen.append(sampled)
        return "RATING: 4" if len(seen) % 2 else "RATING: 1"

    def ask(requests):
        return generate(ScriptedGenerator(reply), requests)

    (indices,) = policy_alternatives(ask, [request], [0], 2)
    assert indices[0] == 3, "the policy's own first; the human's never"
    assert len(indices) == 2 and indices[1] in (1, 2, 4), "filled up uniformly"
    assert seen[0].samples == 8 and seen[0].temperature == 1.0
    assert policy_alternatives(ask, [request], [0], 0) == [()]

    def broken(requests):
        return [Completion("", finish_reason="error", error="down") for _ in requests]

    assert len(policy_alternatives(broken, [request], [0], 4)[0]) == 4


def test_epsilon_is_annealed_linearly():
    config = RolloutConfig(episodes=100, epsilon_start=1.0, epsilon_end=0.1)
    assert config.epsilon(0) == 1.0 and config.epsilon(50) == pytest.approx(0.55)
    assert config.epsilon(100) == config.epsilon(500) == pytest.approx(0.1)


def leaver(states, keys):
    return [EXIT] * len(states)


def test_rollouts_explore_less_and_less(dataset, sites):
    config = RolloutConfig(episodes=200, epsilon_start=1.0, epsilon_end=0.0, max_actions=1)
    steps = collect_rollouts(
        sites.site(), Listed(dataset.item_ids), ["u01", "u02"], config, policy=leaver
    )
    assert len(steps) == 200 and steps[1].state.user_id == "u02"
    exits = [step.action == EXIT for step in steps]
    assert sum(exits[:50]) < 25 < 40 < sum(exits[150:])


def test_rollouts_are_whole_episodes_named_by_their_seed(dataset, sites):
    recommender = Listed(dataset.item_ids)
    config = RolloutConfig(episodes=6, epsilon_end=1.0, max_actions=12)
    steps = collect_rollouts(sites.site(), recommender, ["u01"], config)
    more = RolloutConfig(episodes=9, epsilon_end=1.0, max_actions=12)
    assert collect_rollouts(sites.site(), recommender, ["u01"], more)[: len(steps)] == steps
    assert collect_rollouts(sites.site(), recommender, ["u01"], config, seed=1) != steps
    for before, after in zip(steps, steps[1:], strict=False):
        assert before.next_state == after.state or after.state.page == 1
    assert all(s.action in s.state.actions and s.source == "rollout" for s in steps)
    assert all(s.next_state.needs is None and s.next_state.text for s in steps)
    with pytest.raises(ValueError, match="user_ids is empty"):
        collect_rollouts(sites.site(), recommender, [], config)


def test_random_actions_are_uniform_over_the_valid_ones(dataset, sites):
    state = page(sites.site(), Listed(dataset.item_ids))
    drawn = random_policy([state] * 600, range(600))
    assert {drawn.count(a) > 60 for a in state.actions} == {True}


def test_the_greedy_branch_by_the_agents_own_act_prompt(dataset, view, sites):
    users = {"u01": agent_user(view, "u01", SessionConfig())}
    scripted = ScriptedGenerator(lambda request: request.answer[0][1])

    def ask(requests):
        return generate(scripted, requests)

    policy = generator_policy(ask, users, dataset.items, SessionConfig())
    state = page(sites.site(), Listed(dataset.item_ids))
    assert policy([state], [3]) == [state.actions[1]]
    (request,) = scripted.requests
    assert request.temperature == 0.0 and request.purpose == "act"
    assert state.text in request.messages[-1].content
    failing = generator_policy(
        lambda requests: [Completion("", finish_reason="error", error="down")] * len(requests),
        users,
        dataset.items,
        SessionConfig(),
    )
    with pytest.raises(RuntimeError, match="down"):
        failing([state], [3])


def test_a_human_visit_as_transitions(sites, visits):
    visit = max(visits, key=lambda v: (len(v.pages), len(v.rated)))
    steps = human_transitions(sites.site(), visit)
    kinds = [s.action.kind for s in steps if s.action.kind != "rate"]
    assert kinds == ["next_page"] * (len(visit.pages) - 1) + ["exit"]
    rated = {
        s.state.slate[int(s.action.target) - 1]: s.action.value
        for s in steps
        if s.action.kind == "rate"
    }
    assert rated == visit.ratings
    assert all(a.next_state == b.state for a, b in zip(steps, steps[1:], strict=False))
    assert tuple(steps[-1].next_state.pages) == visit.pages and steps[-1].next_state.terminal
    assert all(s.source == "human" for s in steps)


def test_a_visit_on_a_site_of_fixed_length(dataset, view, visits):
    sites = Sites(dataset.items, view, SiteConfig(horizon=5))
    visit = next(v for v in visits if len(v.pages) == 2)
    steps = human_transitions(sites.of_visit(2), visit)
    assert steps[-1].action == NEXT and steps[-1].next_state.terminal


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"episodes": 0}, "episodes is 0, expected at least 1"),
        ({"max_actions": 0}, "max_actions is 0"),
        ({"epsilon_start": 1.5}, "epsilon_start is 1.5, expected 0 <= epsilon <= 1"),
        ({"epsilon_end": -0.1}, "epsilon_end is -0.1"),
    ],
)
def test_rollouts_refuse_nonsense(settings, text):
    with pytest.raises(ValueError, match=text):
        RolloutConfig(**settings)
