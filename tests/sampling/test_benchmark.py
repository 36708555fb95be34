"""`alignuser benchmark`: a table and a JSON for a model, and one line for what it cannot do."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SESSIONS = ["--sessions=4", "--pages=3", "--persona_tokens=40", "--page_tokens=20"]
SESSIONS += ["--reply_tokens=5", "--samples=2", "--slots=4", "--chunk=16", "--group=2"]


def benchmark(*flags, **environment):
    return subprocess.run(
        [sys.executable, "-m", "launch.cli", "benchmark", *flags],
        capture_output=True, text=True, cwd=ROOT, env=os.environ | environment,
    )  # fmt: skip


def programs_in(done):
    """What was compiled ahead, and how much of it came from the compilation cache."""
    found = re.search(r"(\d+) XLA programs, (\d+) of them from the compilation", done.stderr)
    return tuple(map(int, found.groups()))


@pytest.mark.slow
def test_random_weights_are_labelled_and_measured(tmp_path):
    path, own = tmp_path / "speed.json", {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "xla")}
    command = ["--shape=32,2,4,2,64,256", *SESSIONS, f"--json={path}"]
    done = benchmark(*command, **own)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "RANDOM WEIGHTS" in done.stdout and "sessions/s" in done.stdout
    assert "4 sessions of 3 pages" in done.stderr
    figures = json.loads(path.read_text())
    assert figures["random_weights"] and figures["engine"]["slots"] == 4
    usage, rates, seconds = figures["usage"], figures["rates"], figures["seconds"]
    assert rates["sessions/s"] == pytest.approx(4 / seconds["all"])
    assert usage["generated_tokens"] <= figures["pages"] * 2 * 5
    assert 0 < rates["prompt tokens saved"] < 1
    read, reused = usage["read_tokens"], usage["cached_tokens"]
    assert read + reused == usage["prompt_tokens"]
    assert rates["prompt tokens read/s"] == pytest.approx(read / seconds["all"])
    assert rates["prompt tokens reused/s"] == pytest.approx(reused / seconds["all"])
    cells = dict(re.findall(r"\| (prompt tokens \w+|model)\s+\| (.*?)\s+\|", done.stdout))
    assert cells["prompt tokens read"] == str(read)
    assert cells["prompt tokens reused"] == str(reused)
    parts = sum(seconds[part] for part in ("prefill", "score", "decode", "host"))
    assert parts == pytest.approx(seconds["all"])
    assert figures["compiled_later"] == 0 < figures["compiled_ahead"] <= 6
    assert 0 < figures["hit_rate"] <= 1

    compiled, cached = programs_in(done)
    files = sorted(f.name for f in (tmp_path / "xla").iterdir() if f.name.endswith("-cache"))
    assert compiled >= 6 and files
    again = benchmark(*command, **own)
    assert programs_in(again) == (compiled, compiled)  # a second start compiles nothing
    kept = sorted(f.name for f in (tmp_path / "xla").iterdir() if f.name.endswith("-cache"))
    assert kept == files


def test_a_folder_of_weights(decoder_folder, tmp_path):
    path = tmp_path / "speed.json"
    done = benchmark(f"--model={decoder_folder}", *SESSIONS, f"--json={path}")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "no tokenizer there" in done.stdout
    assert not json.loads(path.read_text())["random_weights"]


@pytest.fixture(scope="module")
def decoder_folder(tmp_path_factory):
    import transformers

    folder = tmp_path_factory.mktemp("model")
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    config = transformers.Qwen3Config(vocab_size=256, **shape, **heads)
    transformers.Qwen3ForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give one of --model"),
        (["--shape=32,2,4,2,64,256", "--model=x"], "given: --model, --shape"),
        (["--run=r"], "give one of --model"),
        (["--shape=32,2,4"], "expected hidden,layers,heads,kv_heads,ffn,vocab"),
        (["--shape=30,2,4,2,64,256"], "hidden a multiple of heads"),
        (["--shape=32,2,4,2,64,256", "--pages=0"], "pages=0: expected at least 1"),
        (["--shape=32,2,4,2,64,256", "--slots=0"], "--slots=0: expected at least 1"),
        (["--shape=32,2,4,2,64,256", "--context=64", "--chunk=16"], "EngineConfig.context"),
        (["--shape=32,2,4,2,64,256", "--set=engine.slots=2"], "--set: only with --config"),
        (["--shape=32,2,4,2,64,256", "--json=no/such/folder/x.json"], "make it first"),
        (["--model=no/such/folder/at/all"], "no/such/folder"),
    ],
)
def test_wrong_flags_have_exit_code_2(flags, message):
    done = benchmark(*flags)
    assert done.returncode == 2, done.stderr[-2000:]
    assert message in done.stdout + done.stderr and "Traceback" not in done.stderr
