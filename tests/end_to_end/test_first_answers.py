"""The first answer of a conversation is as good as the later ones, shown on a small model."""

from pathlib import Path

import numpy as np
import pytest

from alignuser_jax.agents import rate_items
from alignuser_jax.alignment.examples import drive
from alignuser_jax.alignment.rating_runs import rating_runs
from alignuser_jax.alignment.visits import stars
from alignuser_jax.datasets.formats import synthetic
from alignuser_jax.runs.backend import BackendChoice, open_backend
from alignuser_jax.runs.experiment import load_experiment
from alignuser_jax.runs.folder import open_run
from alignuser_jax.runs.stages import build_stage, train_stage
from alignuser_jax.sampling import generate
from alignuser_jax.views import policy_and_agent_users, training_view
from alignuser_jax.views.sites import Sites, agent_user

TINY = Path(__file__).parents[2] / "configs" / "tiny.py"
SETTINGS = (
    *("pretrain.steps=300", "pretrain.first_reply_weight=4.0", "pretrain.save_every=300"),
    *('pretrain.mix={"rating": 1}', "pretrain.task_weights={}", "agents=100"),
    *('pretrain_shards.tasks=("rating",)', "pretrain_shards.limits={}"),
    "pretrain_shards.longest_run=8",
)


@pytest.mark.slow
def test_ratings_are_calibrated_on_first_and_on_later_turns(tmp_path):
    """The mean of P(rating) is within .1 of the share of that rating, in total variation."""
    experiment = load_experiment(TINY, SETTINGS)
    dataset = synthetic.generate(synthetic.SyntheticConfig(users=400, items=120))
    run = open_run(experiment, dataset, tmp_path)
    build_stage(experiment, dataset, run, "pretrain")
    train_stage(experiment, dataset, run, "pretrain")

    view, session = training_view(dataset), experiment.session
    sites = Sites(dataset.items, view, experiment.site)
    users = policy_and_agent_users(dataset, experiment.agents, experiment.seed)[1]
    requests, truth, first = [], [], []
    for user_id in users:
        for rating_run in rating_runs(user_id, dataset.history(view.targets, user_id), 8)[:3]:
            given = {past.item_id: stars(past.rating) for past in rating_run.rated}
            asking = rate_items(
                agent_user(view, user_id, session),
                list(given),
                sites.of_one_item(),
                session,
                seed=0,
            )
            calls, _ = drive(asking, lambda request, given=given: (given[request.subject] - 1,))
            requests += [call.request for call in calls]
            truth += [given[call.request.subject] for call in calls]
            first += [number == 0 for number in range(len(calls))]
    opened = open_backend(BackendChoice(adapter=""), experiment, dataset, run, say=print)
    with opened as (backend, _):
        done = generate(backend.generator, requests)
    told = np.array([c.choice_probabilities[0] for c in done])
    actual = np.eye(5)[np.array(truth) - 1]
    for turns in (np.array(first), ~np.array(first)):
        assert turns.sum() >= 200
        distance = 0.5 * np.abs(told[turns].mean(0) - actual[turns].mean(0)).sum()
        assert distance < 0.1, (told[turns].mean(0), actual[turns].mean(0))
        error = (told[turns] @ np.arange(1, 6) - np.array(truth)[turns]) ** 2
        assert error.mean() < np.array(truth)[turns].var(), (
            "it has learned more than the shares"
        )
