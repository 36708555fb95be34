"""What a person may give as a backbone, in the library and in each verb that takes one."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from alignuser_jax.language import TextTokenizer
from alignuser_jax.model import LoraConfig, load_pretrained, named_arrays, save_adapter, split
from alignuser_jax.model.files import published_wheels
from alignuser_jax.model.files.backbone import (
    backbone_config_directory,
    backbone_directory,
    backbone_name,
    backbone_tokenizer_directory,
)
from alignuser_jax.model.files.gguf.importing import cache_folder, import_gguf
from alignuser_jax.model.files.weights import load_decoder
from alignuser_jax.runs.backend import BackendChoice, _tokenizer_of
from tests.language.conftest import fast
from tests.model.files.gguf.gguf_files import byte_pair_vocabulary, torch_model, write_gguf

pytest.importorskip("gguf")
ROOT = Path(__file__).parents[3]

__all__ = ["fast"]  # the fixture


@pytest.fixture(scope="module")
def tiny(fast, tmp_path_factory):
    """A small GGUF file."""
    vocabulary = byte_pair_vocabulary(fast.tokenizer)
    model = torch_model("llama", len(vocabulary["add_token_list"]))
    return write_gguf(tmp_path_factory.mktemp("tiny") / "m.gguf", model, vocabulary)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def published(tiny, monkeypatch):
    """The small file in the cache, as if `alignuser fetch-weights smollm2` had fetched it."""
    model = published_wheels.WHEEL_MODELS["smollm2"]
    model = dataclasses.replace(model, member="package/m.gguf")
    monkeypatch.setitem(published_wheels.WHEEL_MODELS, "smollm2", model)
    place = cache_folder() / "weights" / "smollm2" / "m.gguf"
    place.parent.mkdir(parents=True)
    place.write_bytes(tiny.read_bytes())
    return "smollm2"


def test_a_gguf_file_is_imported_once(tiny, tmp_path):
    folder = backbone_directory(tiny)
    assert folder.is_relative_to(tmp_path / "cache")
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert backbone_directory(str(tiny)) == backbone_config_directory(tiny) == folder
    assert backbone_tokenizer_directory(tiny) == folder
    assert backbone_name(tiny) == str(folder)
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    assert backbone_directory(folder) == folder and backbone_name(folder) == str(folder)
    assert backbone_name("owner/name") == "owner/name"
    for dtype in ("float32", "float16"):
        assert backbone_directory(tiny, dtype).name.endswith("-float32")


def test_a_gguf_file_without_the_suffix(tiny, tmp_path):
    """Ollama keeps GGUF files under the names of their hashes."""
    blob = tmp_path / "sha256-abc"
    blob.write_bytes(tiny.read_bytes())
    assert backbone_directory(blob) == backbone_directory(tiny)


def test_a_published_model_by_its_name(published, tiny, tmp_path, monkeypatch):
    assert backbone_directory(published) == backbone_directory(tiny)
    assert backbone_name(published) == str(backbone_directory(tiny))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smollm2").mkdir()
    assert backbone_directory("smollm2") == Path("smollm2")  # an own folder comes first


def test_a_published_model_that_was_not_fetched(tmp_path):
    with pytest.raises(FileNotFoundError, match="run alignuser fetch-weights smollm2"):
        backbone_directory("smollm2")
    with pytest.raises(FileNotFoundError, match="no directory smollm3.*smollm2"):
        backbone_directory("smollm3")


def test_what_is_no_backbone(tiny, tmp_path):
    (tmp_path / "model.bin").write_bytes(b"a pickle")
    with pytest.raises(ValueError, match="model.bin is a file, and no GGUF file.*the folder"):
        backbone_directory(tmp_path / "model.bin")
    with pytest.raises(FileNotFoundError, match="no GGUF file .*absent.gguf"):
        backbone_directory(tmp_path / "absent.gguf")
    with pytest.raises(FileNotFoundError, match="but 1 GGUF files: give one of them, .*m.gguf"):
        backbone_directory(tiny.parent)
    with pytest.raises(FileNotFoundError, match="no directory /nowhere/at/all"):
        backbone_directory("/nowhere/at/all")
    with pytest.raises(ConnectionError, match="no directory owner/absent here"):
        backbone_directory("owner/absent")


def test_load_pretrained(tiny, published, tmp_path):
    import_gguf(tiny, tmp_path / "hf", dtype="float32")
    tokens = np.arange(20)[None]
    expected = load_pretrained(tmp_path / "hf", dtype=jnp.float32).logits(tokens)
    for source in (tiny, published):
        got = load_pretrained(source, dtype=jnp.float32).logits(tokens)
        assert np.array_equal(got, expected)


def test_the_tokenizer_of_a_served_model(tiny, published):
    expected = TextTokenizer.load(backbone_directory(tiny)).fingerprint
    for source in (str(tiny), published, str(backbone_directory(tiny))):
        assert _tokenizer_of(BackendChoice(tokenizer=source)).fingerprint == expected


def program(name, *flags):
    command = [sys.executable, "-m", name, *map(str, flags)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_export_adapter(tiny, tmp_path):
    base = backbone_directory(tiny)
    lora = LoraConfig(rank=2, targets=("q", "up"))
    arrays = named_arrays(split(load_decoder(base, lora, dtype=jnp.float32))[1])
    arrays = {name: np.asarray(values) + np.float32(0.1) for name, values in arrays.items()}
    save_adapter(tmp_path / "adapter", arrays, lora)
    flags = [f"--adapter={tmp_path / 'adapter'}", f"--base={tiny}"]
    done = program("launch.export_adapter", *flags, f"--output={tmp_path / 'peft'}")
    assert done.returncode == 0, done.stderr
    named = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert named["base_model_name_or_path"] == str(base)  # which other tools can read
    done = program(
        "launch.export_adapter", *flags, f"--output={tmp_path / 'merged'}", "--merged"
    )
    assert done.returncode == 0, done.stderr
    tokens = np.arange(20)[None]
    expected = load_pretrained(base, dtype=jnp.float32, adapters=tmp_path / "adapter")
    got = load_pretrained(tmp_path / "merged", dtype=jnp.float32).logits(tokens)
    expected = expected.logits(tokens)
    assert np.abs(got - expected).max() <= 0.05 * np.abs(expected).max()  # bfloat16


@pytest.mark.slow
def test_benchmark_and_dry_run(tiny, tmp_path):
    small = ["--sessions=2", "--pages=1", "--slots=2", "--samples=1", "--persona_tokens=40",
             "--page_tokens=20", "--reply_tokens=8"]  # fmt: skip
    done = program("inference.benchmark", f"--model={tiny}", *small)
    assert done.returncode == 0 and "no tokenizer" not in done.stdout, done.stderr
    done = program("inference.benchmark", "--model=smollm2", *small)
    assert done.returncode == 2 and "alignuser fetch-weights smollm2" in done.stderr
    flags = ["--config=configs/llama32_3b.py", f"--set=backbone={tiny}"]
    done = program("launch.train", *flags, "--dry_run", "--chip=h100")
    assert done.returncode == 0 and "parameters" in done.stdout, done.stderr
    done = program("launch.fetch_weights", *flags)
    assert done.returncode == 0 and str(tmp_path / "cache") in done.stdout, done.stderr
