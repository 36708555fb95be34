"""A training goes on from an earlier adapter of the same shape and base, and from no other."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest

from alignuser_jax.model import (
    DecoderConfig,
    LoraConfig,
    init_decoder,
    merge,
    named_arrays,
    save_adapter,
    split,
)
from alignuser_jax.runs.second_round import adapter_folder, with_adapter_of
from alignuser_jax.training.checkpoint import weights_hash

CONFIG = DecoderConfig(64, 16, 32, num_layers=3, num_heads=2, num_kv_heads=1, head_dim=8)
LORA = LoraConfig(rank=2, alpha=8.0, targets=("q", "down"), layers=2)


@pytest.fixture
def first(tmp_path):
    """A first round: its decoder, and the run that holds its adapter and its manifest."""
    graphdef, lora, base = split(init_decoder(CONFIG, LORA, seed=1))
    lora = jax.tree.map(lambda x: x + 0.5, lora)
    folder = tmp_path / "run" / "align" / "adapter"
    save_adapter(folder, named_arrays(lora), LORA, "base/one", num_layers=3)
    manifest = {"base_weights": weights_hash(base)}
    (folder.parent / "train.json").write_text(json.dumps(manifest))
    return merge(graphdef, lora, base), tmp_path / "run"


def test_the_adapter_is_found_from_its_run_its_training_or_itself(first, tmp_path):
    _, run = first
    for given in (run, run / "align", run / "align" / "adapter"):
        assert adapter_folder(given) == run / "align" / "adapter"
    with pytest.raises(FileNotFoundError, match="holds no adapter.*give the folder of a run"):
        adapter_folder(tmp_path)
    (tmp_path / "other" / "align" / "checkpoints").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="run its command again to finish it"):
        adapter_folder(tmp_path / "other")


def test_the_second_round_has_the_first_ones_weights_and_its_own_dropout(first):
    decoder, run = first
    fresh = init_decoder(CONFIG, replace(LORA, dropout=0.5), seed=1)
    started, about = with_adapter_of(fresh, run, "base/one")
    jax.tree.map(np.testing.assert_array_equal, split(started)[1:], split(decoder)[1:])
    assert started.lora.dropout == 0.5
    assert about["folder"] == str(run / "align" / "adapter") and about["base"] == "base/one"


def test_every_difference_is_named(first):
    _, run = first
    other = LoraConfig(rank=4, alpha=8.0, targets=("q", "up"))
    with pytest.raises(ValueError) as error:
        with_adapter_of(init_decoder(CONFIG, other, seed=2), run, "base/two")
    for part in (
        "rank is 2, the experiment's 4",
        "scale (alpha and rslora) is 4.0, the experiment's 2.0",
        "targets is down, q, the experiment's q, up",
        "layers is 2, the experiment's 3",
        "its base is base/one, the experiment's base/two",
        "other weights or another type",
        "Set lora.rank",
    ):
        assert part in str(error.value)


@pytest.mark.parametrize("size", [8, 24])
def test_an_adapter_of_another_size_is_refused(first, size):
    _, run = first
    (run / "align" / "train.json").unlink()  # as of an adapter that peft made
    shape = replace(CONFIG, intermediate_size=size)
    with pytest.raises(ValueError, match="down_proj.lora_A.weight has shape"):
        with_adapter_of(init_decoder(shape, LORA), run / "align" / "adapter", "base/one")


def test_the_weights_of_the_base_are_compared(first):
    _, run = first
    with pytest.raises(ValueError, match="other weights or another type") as error:
        with_adapter_of(init_decoder(CONFIG, LORA, seed=2), run, "base/one")
    assert "rank is" not in str(error.value)
