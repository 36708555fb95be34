"""The side-by-side programs run, and their rows have the form that is quoted."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks import sides

ROOT = Path(__file__).parents[2]


def rows_of(program, path, *flags):
    module = f"tests.benchmarks.{program}"
    done = subprocess.run(
        [sys.executable, "-m", module, f"--json={path}", "--quick", *flags],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "| case" in done.stdout and "load of the machine" in done.stdout
    rows = json.loads(path.read_text())
    assert all(list(row) == ["case", "metric", *sides.COLUMNS] for row in rows)
    return {(row["case"], row["metric"]): row for row in rows}


@pytest.mark.slow
def test_decoding_beside_transformers(tmp_path):
    rows = rows_of(
        "decode_vs_transformers", tmp_path / "r.json", "--cases=3,k4", "--dtypes=float32"
    )
    speed = rows["batch 3 float32", "tokens/s"]  # one round
    assert speed["ratio"] == pytest.approx(speed["ours"] / speed["peer"])
    assert rows["batch 3 float32", "share of equal rows"]["ours"] == 1
    seconds = rows["k4 float32", "seconds, 6 new tokens"]
    assert seconds["ratio"] == pytest.approx(seconds["peer"] / seconds["ours"])
    assert rows["all", "least ratio; peer: wanted"]["ours"] == speed["ratio"]


@pytest.mark.slow
def test_agents_beside_transformers(tmp_path):
    rows = rows_of("agents_vs_transformers", tmp_path / "r.json", "--cases=24,30")
    for peer in ("reuse off", "generate"):
        speed = rows["24 sessions", f"sessions/s; peer: {peer}"]
        assert speed["ratio"] == pytest.approx(speed["ours"] / speed["peer"])
    saved = rows["24 sessions", "prompt tokens saved; peer: reuse off"]
    assert 0 < saved["ours"] < 1 and saved["peer"] == 0
    assert rows["30 sessions", "sessions/s; peer: ours, 24 sessions"]["ratio"] > 0


@pytest.mark.slow
def test_the_engine_beside_generate_where_llama_cpp_is_missing(tmp_path):
    pytest.importorskip("torch")
    rows = rows_of("engine_vs_llama_cpp", tmp_path / "r.json", "--replicas=2")
    for case in ("prefill", "decode, 1 rows", "decode, 16 rows", "agents"):
        metric = "sessions/s" if case == "agents" else "tokens/s"
        speed = rows[case, f"{metric}; ours float32, peer: generate"]
        assert speed["ratio"] == pytest.approx(speed["ours"] / speed["peer"])
    seconds = rows["4 replies to 64 tokens", "s; ours float32, peer: generate"]
    assert seconds["ratio"] == pytest.approx(seconds["peer"] / seconds["ours"])
    assert 0 < rows["agents", "prompt tokens saved: ours float32"]["ours"] < 1
    assert not any("llama.cpp" in metric for _, metric in rows)


@pytest.mark.slow
def test_importing_beside_pandas(tmp_path):
    pytest.importorskip("pandas")
    rows = rows_of("import_at_scale", tmp_path / "r.json")  # both sides must find the same
    (case,) = {case for case, _ in rows}
    assert case.startswith("50,000 rows")
    memory = rows[case, "peak RSS, GiB"]
    assert memory["ratio"] == pytest.approx(memory["peer"] / memory["ours"])
    assert 0 < memory["ours"] < 1
    assert rows[case, "seconds, check of leaks"]["peer"] is None


def test_a_failure_in_a_side_is_one_here():
    side = sides.Side(Fails)
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        side.ask("work", 0)
    assert side.ask("work", 2) == 0.5
    side.close()


class Fails:
    def work(self, number):
        return 1 / number
