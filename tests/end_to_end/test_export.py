"""`alignuser export-adapter`: from a run into the formats of other tools, and its errors."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from alignuser_jax.model import (
    DecoderConfig,
    LoraConfig,
    init_decoder,
    load_pretrained,
    named_arrays,
    save_adapter,
    save_pretrained,
    split,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder with a first stage's model and an adapter, which names no base."""
    folder = tmp_path_factory.mktemp("run")
    config = DecoderConfig(vocab_size=50, hidden_size=16, intermediate_size=24, num_layers=2)
    save_pretrained(init_decoder(config), folder / "pretrain" / "model")
    (folder / "pretrain" / "model" / "sentencepiece.model").write_bytes(b"a tokenizer")
    lora = LoraConfig(rank=2, targets=("q", "up"))
    arrays = named_arrays(split(init_decoder(config, lora))[1])
    arrays = {name: values + np.float32(0.1) for name, values in arrays.items()}
    save_adapter(folder / "align" / "adapter", arrays, lora)
    return folder


def export(*flags):
    command = [sys.executable, "-m", "launch.export_adapter", *map(str, flags)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_an_adapter_and_a_merged_model(run, tmp_path):
    tokens = np.arange(12).reshape(2, 6)
    base, adapter = run / "pretrain" / "model", run / "align" / "adapter"
    expected = load_pretrained(base, dtype=np.float32, adapters=adapter).logits(tokens)
    done = export(f"--adapter={adapter}", f"--output={tmp_path / 'peft'}")
    assert done.returncode == 0 and "rank 2 on q, up" in done.stdout, done.stderr
    named = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert named["base_model_name_or_path"] == str(base)
    again = load_pretrained(base, dtype=np.float32, adapters=tmp_path / "peft")
    assert np.array_equal(again.logits(tokens), expected)

    merged = tmp_path / "merged"
    done = export(f"--adapter={tmp_path / 'peft'}", f"--output={merged}", "--merged")
    assert done.returncode == 0 and "MB of weights in 1 file" in done.stdout, done.stderr
    got = load_pretrained(merged, dtype=np.float32).logits(tokens)
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert (merged / "sentencepiece.model").read_bytes() == b"a tokenizer"
    done = export(f"--adapter={adapter}", f"--output={merged}", "--merged")
    assert done.returncode == 2 and "is not empty" in done.stderr


def test_bad_input(run, tmp_path):
    adapter = f"--adapter={run / 'align' / 'adapter'}"
    for flags, named in (
        ([adapter, f"--output={tmp_path}", "--dtype=float16"], "--dtype is for --merged"),
        ([adapter, f"--output={tmp_path}", "--base=nobody"], "no directory nobody"),
        ([f"--adapter={tmp_path}", f"--output={tmp_path}"], "holds no adapter"),
        ([adapter], "--output"),
        ([adapter, f"--output={tmp_path}", "--step=3"], "no checkpoint of step 3; it has none"),
        ([adapter, f"--output={tmp_path}", "--step=3", "--merged"], "export the step first"),
    ):
        done = export(*flags)
        assert done.returncode and named in done.stderr + done.stdout, (flags, done.stderr)
        assert "Traceback" not in done.stderr
