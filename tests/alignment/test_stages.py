"""Shards that are there already are gone on with only where they are what would be built."""

from dataclasses import replace
from pathlib import Path

import pytest

from alignuser_jax.alignment import BuildConfig, ShardSource, build_shards
from alignuser_jax.driver.backend import Backend
from alignuser_jax.personas import GivenPersonas
from alignuser_jax.runs.experiment import load_experiment
from alignuser_jax.runs.stages import ShardOptions, build_stage
from alignuser_jax.sampling import ScriptedGenerator
from alignuser_jax.views import policy_and_agent_users
from tests.alignment.alignment_toy import Listed

TINY = Path(__file__).parents[2] / "configs" / "tiny.py"
ONLY = {"tasks": ("imitation",), "limits": {"imitation": 5}}


@pytest.fixture(scope="module")
def experiment():
    return load_experiment(TINY, ("agents=6",))


@pytest.fixture(scope="module")
def built(dataset, experiment, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stage")
    config = replace(experiment.stage("align")[1], **ONLY)
    users = policy_and_agent_users(dataset, 6, experiment.seed)[0]
    source = ShardSource(dataset, users, recommender=Listed(dataset.item_ids))
    build_shards(source, folder, config, count_tokens=lambda t: len(t) // 4)
    return folder


def test_the_same_command_goes_on(dataset, experiment, built):
    same = build_stage(experiment, dataset, built, "align", ShardOptions(built, ONLY))
    assert same == built


def test_other_shards_than_those_there_are_refused(dataset, experiment, built):
    def stage(writer=None, personas=None, **changes):
        options = ShardOptions(built, changes, personas)
        build_stage(experiment, dataset, built, "align", options, writer=writer)

    with pytest.raises(ValueError, match=r"config.k was 4, now 2\n.*another --out folder"):
        stage(**ONLY, k=2)
    with pytest.raises(ValueError, match="config.limits.imitation was 5, now 6"):
        stage(tasks=("imitation",), limits={"imitation": 6})
    with pytest.raises(ValueError, match="policy_id was 'template', now 'writer'\n.*reflector"):
        stage(Backend(ScriptedGenerator([]), len, "writer"), **ONLY)
    given = GivenPersonas({u: {} for u in dataset.user_ids}, "mine", "h")
    with pytest.raises(
        ValueError, match="personas was 'computed from the log', now 'given, h'"
    ):
        stage(**ONLY, personas=given)
    with pytest.raises(ValueError, match="users that are used here"):
        stage(**ONLY, personas=replace(given, rows={"elsewhere": {}}))
    with pytest.raises(ValueError, match="users_hash"):
        build_stage(
            replace(experiment, agents=7), dataset, built, "align", ShardOptions(built, ONLY)
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": -1}, "k is -1, expected 0 or more"),
        ({"limits": {"visit": 0}}, "limits.'visit'. is 0, expected 1"),
        ({"ratings_per_user": 0}, "ratings_per_user is 0"),
        ({"visits_per_user": -3}, "visits_per_user is -3"),
    ],
)
def test_numbers_that_build_nothing(changes, message):
    with pytest.raises(ValueError, match=message):
        BuildConfig(**changes)


def test_no_example_is_an_error(dataset, tmp_path):
    config = BuildConfig(
        tasks=("world_model",), sources=("counterfactual",), k=0, validation_share=0
    )
    source = ShardSource(dataset, recommender=Listed(dataset.item_ids))
    with pytest.raises(
        ValueError, match="no example was made of 24 users by tasks world_model"
    ):
        build_shards(source, tmp_path, config)
    assert not (tmp_path / "manifest.json").exists()
