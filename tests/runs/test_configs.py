"""Every experiment resolves; models from scratch build abstractly; settings have names."""

from dataclasses import replace
from pathlib import Path

import pytest

from alignuser_jax.runs.experiment import load_experiment, resolved

CONFIGS = sorted(p for p in (Path(__file__).parents[2] / "configs").glob("[a-z]*.py"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_a_config_resolves_and_builds_abstractly(path):
    import jax.numpy as jnp

    from alignuser_jax.model import abstract_decoder, count_parameters

    experiment = load_experiment(path)
    assert resolved(experiment)["name"] == experiment.name
    if (
        experiment.backbone
    ):  # its shape is its own config.json's: tests/model/files/test_published.py
        return
    decoder = abstract_decoder(
        experiment.decoder, experiment.lora, dtype=jnp.dtype(experiment.dtype)
    )
    low, high = {"tiny": (0.1, 0.6)}.get(path.stem, (1, 2.2))
    assert low < count_parameters(decoder) / 1e6 < high


def test_every_config_names_its_command():
    for path in CONFIGS:
        assert "alignuser " in path.read_text().split('"""')[1], path


def test_settings_are_typed_and_unknown_names_get_the_nearest():
    tiny = CONFIGS[0].with_name("tiny.py")
    changed = load_experiment(tiny, ["align.steps=7", "align.learning_rate=1", "agents=9"])
    assert (changed.align.steps, changed.align.learning_rate, changed.agents) == (7, 1.0, 9)
    with pytest.raises(ValueError, match="did you mean 'steps'"):
        load_experiment(tiny, ["align.stepz=7"])
    with pytest.raises(ValueError, match="align.steps=many"):
        load_experiment(tiny, ["align.steps=many"])
    with pytest.raises(ValueError, match="section.field=value"):
        load_experiment(tiny, ["align.steps"])
    targets = load_experiment(tiny, ["lora.targets=('q', 'v')", "lora.rslora=True"]).lora
    assert targets.targets == ("q", "v") and targets.rslora
    with pytest.raises(ValueError, match=r"unknown LoRA targets \['w'\]"):
        load_experiment(tiny, ["lora.targets=('q', 'w')"])
    with pytest.raises(ValueError, match="either a pretrained backbone, or a decoder"):
        load_experiment(tiny, ["backbone=some/model"])
    with pytest.raises(ValueError, match="'lora' is also set as a whole"):
        load_experiment(tiny, ["lora=LoraConfig()", "lora.rank=3"])
    with pytest.raises(ValueError, match="'lora' is also set as a whole"):
        load_experiment(tiny, ["lora.rank=3", "lora=LoraConfig()"])
    with pytest.raises(ValueError, match="'agents' has no fields of its own"):
        load_experiment(tiny, ["agents.more=3"])
    with pytest.raises(FileNotFoundError, match="no config file"):
        load_experiment("nowhere.py")


def test_settings_that_belong_together_are_checked_together():
    """Each alone was refused: a visit's pages must be the site's."""
    tiny = CONFIGS[0].with_name("tiny.py")
    both = ["site.items_per_page=2", "align_shards.visits.items_per_page=2"]
    both += ["pretrain_shards.visits.items_per_page=2"]
    experiment = load_experiment(tiny, both)
    assert experiment.site.items_per_page == 2
    assert experiment.align_shards.visits.items_per_page == 2
    with pytest.raises(ValueError, match="visits have 4 items a page, the site 2"):
        load_experiment(tiny, both[:1])
    scratch = ["backbone=some/model", "decoder=None", "pretrain=None", "pretrain_shards=None"]
    assert load_experiment(tiny, scratch).backbone == "some/model"


def test_the_site_is_overridden_in_every_stage():
    for path in CONFIGS:
        experiment = load_experiment(path, ["site.search=True", "session.max_clicks=2"])
        assert experiment.site.search and experiment.session.max_clicks == 2
        before = load_experiment(path)
        assert replace(experiment.site, search=False) == before.site
    with pytest.raises(ValueError, match="site.serch.*did you mean 'search'"):
        load_experiment(path, ["site.serch=True"])
