"""A run's note says what was loaded of adapters; a config's note cannot know."""

from pathlib import Path

import pytest

from alignuser_jax.model import DecoderConfig, LoraConfig, abstract_decoder
from alignuser_jax.runs.experiment import load_experiment
from alignuser_jax.runs.policy import policy_note

FOLDER = Path(__file__).parents[2] / "configs"
CONFIGS = sorted(set(FOLDER.glob("*.py")) - {FOLDER / "__init__.py"})
SHAPE = DecoderConfig(vocab_size=64)


def test_a_note_names_the_adapter_that_is_loaded_and_no_other():
    """Runs of the backbone alone were labelled "with LoRA", as their config's note said."""
    experiment = load_experiment(CONFIGS[0], [])
    bare = policy_note(experiment, abstract_decoder(SHAPE))
    adapted = policy_note(experiment, abstract_decoder(SHAPE, LoraConfig(rank=4)))
    assert bare == f"{experiment.note}; without an adapter"
    assert adapted == f"{experiment.note}; with a LoRA adapter of rank 4"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_no_config_says_of_its_runs_what_only_they_know(path):
    note = load_experiment(path, []).note.lower()
    assert "lora" not in note and "adapter" not in note
