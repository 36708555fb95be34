"""The no-leak rule: a view's profile is earlier than its targets, and disjoint from them."""

import numpy as np
import pytest

from alignuser_jax import views
from alignuser_jax.agents import SessionConfig
from alignuser_jax.views import held_out_users, policy_and_agent_users
from alignuser_jax.views.sites import Sites, agent_user
from alignuser_jax.world import SiteConfig
from tests.alignment.alignment_toy import toy

PARTS = {
    "training": ((0, 24), (24, 32)),
    "simulation": ((0, 32), (32, 40)),
    "test": ((0, 36), (36, 40)),
}
"""View -> places in each user's log of 40 ratings: those of the profile, those of targets."""


@pytest.fixture(scope="module")
def dataset():
    return toy()


@pytest.mark.parametrize("name", PARTS)
def test_a_view_shows_what_was_before_its_targets(dataset, name):
    view = getattr(views, f"{name}_view")(dataset)
    assert view.persona_source == ""
    for user, user_id in enumerate(dataset.user_ids):
        times = dataset.log.timestamp[dataset.log.user == user]
        for part, (first, end) in zip((view.profile, view.targets), PARTS[name], strict=True):
            np.testing.assert_array_equal(part.timestamp[part.user == user], times[first:end])
        history = view.histories[user_id]
        assert [past.timestamp for past in history] == times[: PARTS[name][0][1]].tolist()


@pytest.mark.parametrize("name", PARTS)
def test_a_changed_target_changes_nothing_that_a_view_shows(name):
    """The leak that this rule is against: a target in personas, means or recollections."""
    place = PARTS[name][1][0]
    before, after = (
        getattr(views, f"{name}_view")(toy(change=("u04", place, rating)))
        for rating in (1.0, 5.0)
    )
    assert before.targets.rating.tolist() != after.targets.rating.tolist()
    assert before.personas == after.personas and before.histories == after.histories
    assert before.mean_ratings == after.mean_ratings


def test_agents_and_policy_users_are_disjoint(dataset):
    policy, agents = policy_and_agent_users(dataset, 8)
    assert not set(policy) & set(agents) and len(agents) == 8
    assert set(policy) | set(agents) == set(dataset.user_ids)
    assert policy_and_agent_users(dataset, 3)[1] == agents[:3]
    assert policy_and_agent_users(dataset, 8, seed=1)[1] != agents
    with pytest.raises(ValueError, match="24 users"):
        policy_and_agent_users(dataset, 25)
    training, held = held_out_users(policy, 0.25)
    assert len(held) == 4 and not set(training) & set(held)
    with pytest.raises(ValueError, match="share"):
        held_out_users(policy, 1.0)


def test_sites_differ_in_when_a_visit_ends_and_in_what_means_they_show(dataset):
    view = views.training_view(dataset)
    sites = Sites(dataset.items, view, SiteConfig(horizon=5))
    assert sites.site() is sites.site(sites.config), "each is built once"
    assert sites.of_visit(2).config.horizon == 2
    assert not sites.of_visit(2, show_means=False).config.show_mean_rating
    assert sites.of_one_item().config.items_per_page == 1
    open_ended = Sites(dataset.items, view, SiteConfig())
    assert open_ended.of_visit(2).config == open_ended.config


def test_an_agent_knows_the_end_of_the_history(dataset):
    view = views.training_view(dataset)
    user = agent_user(view, "u03", SessionConfig(history_items=3))
    assert user.history == view.histories["u03"][-3:] and user.recollection is None
    assert agent_user(view, "u03", SessionConfig(history_items=0)).history == ()
    assert agent_user(view, "u03", SessionConfig(recall=True)).recollection is not None
