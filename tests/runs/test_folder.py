"""A run folder belongs to one experiment; folders of earlier versions are read or refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from alignuser_jax.datasets.formats import synthetic
from alignuser_jax.runs.experiment import load_experiment
from alignuser_jax.runs.folder import Stopwatch, open_run

ROOT = Path(__file__).parents[2]
OLD = Path(__file__).with_name("experiment-0.1.0.json")
"""What version 0.1.0 wrote (commit 756da92) for `alignuser demo`."""


@pytest.fixture(scope="module")
def experiment():
    return load_experiment(ROOT / "configs" / "tiny.py")


@pytest.fixture(scope="module")
def dataset(experiment):
    """The demo's."""
    config = synthetic.SyntheticConfig(users=500, items=160, taste=0.9, quality=0.9)
    return synthetic.generate(replace(config, seed=experiment.seed))


def test_a_folder_whose_policy_was_trained_on_other_prompts_is_refused(
    experiment, dataset, tmp_path
):
    shutil.copy(OLD, tmp_path / "experiment.json")
    with pytest.raises(ValueError, match="prompt_layout was 3, now 4"):
        open_run(experiment, dataset, tmp_path)
    assert json.loads((tmp_path / "experiment.json").read_text()) == json.loads(OLD.read_text())


def test_other_settings_are_refused_with_the_version_that_wrote_them(
    experiment, dataset, tmp_path
):
    open_run(experiment, dataset, tmp_path)
    other = replace(experiment, seed=7)
    with pytest.raises(ValueError, match=r"by alignuser_jax \d.*:\n  seed was 0, now 7"):
        open_run(other, dataset, tmp_path)
    shutil.copy(OLD, tmp_path / "experiment.json")
    with pytest.raises(ValueError, match="a version of alignuser_jax that did not say"):
        open_run(other, dataset, tmp_path)


def test_a_setting_of_later_counts_as_its_default(experiment, dataset, tmp_path):
    open_run(experiment, dataset, tmp_path)
    path = tmp_path / "experiment.json"
    settings = json.loads(path.read_text())
    del settings["align_shards"]["longest_run"], settings["lora"]["layers"]
    path.write_text(json.dumps(settings))
    assert open_run(experiment, dataset, tmp_path) == tmp_path
    shards = replace(experiment.align_shards, longest_run=5)
    with pytest.raises(ValueError, match="align_shards.longest_run was 12, now 5"):
        open_run(replace(experiment, align_shards=shards), dataset, tmp_path)


def test_a_setting_that_a_version_does_not_know_is_named(experiment, dataset, tmp_path):
    settings = json.loads(OLD.read_text())
    settings["align"]["a_setting_of_old"] = 3
    (tmp_path / "experiment.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"align.a_setting_of_old was 3, now '\(absent\)'"):
        open_run(experiment, dataset, tmp_path)


def test_the_engine_may_change_between_simulations(experiment, dataset, tmp_path):
    open_run(experiment, dataset, tmp_path)
    engine = replace(experiment.engine, slots=experiment.engine.slots // 2)
    open_run(replace(experiment, engine=engine), dataset, tmp_path)


def test_a_stopwatch_adds_up_the_blocks_of_a_stage():
    watch = Stopwatch()
    for name in ("shards", "training", "shards"):
        with watch.stage(name):
            pass
    assert list(watch.seconds) == ["shards", "training"] and min(watch.seconds.values()) >= 0
