"""Every experiment resolves; the 8 B one builds abstractly; settings are overridden by name."""

from pathlib import Path

import pytest

from alignuser_jax.experiment import load_experiment, resolved

CONFIGS = sorted(p for p in (Path(__file__).parents[2] / "configs").glob("[a-z]*.py"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_a_config_resolves_and_builds_abstractly(path):
    import jax.numpy as jnp

    from alignuser_jax.model import abstract_decoder, count_parameters

    experiment = load_experiment(path)
    decoder = abstract_decoder(
        experiment.decoder, experiment.lora, dtype=jnp.dtype(experiment.dtype)
    )
    millions = count_parameters(decoder) / 1e6
    expected = {"tiny": (0.1, 0.6), "small": (1, 2.2), "small_uniform": (1, 2.2)}
    low, high = expected.get(path.stem, (8_000, 8_400))
    assert low < millions < high
    assert resolved(experiment)["name"] == experiment.name


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
    with pytest.raises(FileNotFoundError, match="no config file"):
        load_experiment("nowhere.py")
