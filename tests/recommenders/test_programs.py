"""The two programs, run as a person would run them on a small dataset of one's own."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(program, *arguments, cwd=ROOT):
    command = [sys.executable, "-m", f"data_prep.{program}", *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    from alignuser_jax.datasets.formats.synthetic import SyntheticConfig, generate

    directory = tmp_path_factory.mktemp("data") / "synthetic"
    generate(SyntheticConfig(users=60, items=80, seed=0)).save(directory)
    return directory


def test_fit_then_wrap_then_check(dataset, tmp_path):
    als = tmp_path / "als"
    code, text = run(
        "fit_recommender",
        f"--dataset={dataset}",
        "--kind=als",
        f"--output={als}",
        "--factors=8",
    )
    assert code == 0, text
    assert "hit@20" in text and "synthetic" in text
    assert all(f"\n{name} " in text for name in ("als", "popularity", "random"))
    shuffled = tmp_path / "shuffled"
    common = (f"--dataset={dataset}", f"--inner={als}", "--kind=shuffled")
    code, text = run("fit_recommender", *common, f"--output={shuffled}", "--splits=train,test")
    assert code == 0 and "no held-out hits: it was fitted on more than train" in text, text
    code, text = run("check_recommender", shuffled, f"--dataset={dataset}", "--rounds=2")
    assert code == 0 and "16 of 16 checks passed" in text and "p99" in text, text


def test_check_exits_with_1_and_says_what_broke(dataset, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from alignuser_jax.records import Slate\n"
        "class Same:\n"
        "    def recommend(self, requests):\n"
        "        return [Slate(('nothing',) * r.k) for r in requests]\n"
    )
    # from another folder than the checkout, where `mine` lies, as `alignuser` is run
    command = [
        sys.executable,
        str(ROOT / "launch" / "cli.py"),
        "check-recommender",
        "mine:Same",
    ]
    done = subprocess.run(
        [*command, f"--dataset={dataset}"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "FAIL  no repeats" in done.stdout and "FAIL  known items" in done.stdout


def test_serve_then_check_a_url_and_a_file(dataset, tmp_path):
    common = (f"--dataset={dataset}", "--users=0", "--kind=popularity")
    code, text = run("fit_recommender", *common, f"--output={tmp_path}/popular")
    assert code == 0, text
    command = [sys.executable, "-m", "data_prep.serve_recommender", f"{tmp_path}/popular"]
    serving = subprocess.Popen(
        [*command, "--port=0"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        said = serving.stdout.readline().split()
        assert said[:2] == ["serving", "popularity"] and len(said) == 5
        code, text = run("check_recommender", said[-1], f"--dataset={dataset}", "--rounds=2")
        assert code == 0 and "16 of 16 checks passed" in text, text
        assert text.startswith(f"contract of popularity {said[2]}\n")
    finally:
        serving.terminate()
    assert serving.wait(timeout=30) == 0
    code, text = run("check_recommender", said[-1], f"--dataset={dataset}")
    assert code == 2 and f"{said[-1]} does not answer" in text and "Traceback" not in text
    recs = tmp_path / "recs.tsv"
    rows = [(f"user{u:04d}", f"item{i:04d}", 80 - i) for u in range(60) for i in range(80)]
    recs.write_text("".join("\t".join(map(str, row)) + "\n" for row in rows))
    code, text = run("check_recommender", recs, f"--dataset={dataset}", "--rounds=2")
    assert code == 0 and "16 of 16 checks passed" in text, text


def test_wrong_flags_are_explained(dataset, tmp_path):
    common = (f"--dataset={dataset}", f"--output={tmp_path}/out")
    code, text = run("fit_recommender", *common, "--kind=degraded")
    assert code != 0 and "needs --inner" in text
    code, text = run("check_recommender", f"--dataset={dataset}")
    assert code != 0 and "give one recommender" in text


@pytest.mark.parametrize(
    "kind", ["mf", *(pytest.param(k, marks=pytest.mark.slow) for k in ("lightgcn", "multvae"))]
)
def test_a_trained_one_is_fitted_saved_and_ranked(dataset, tmp_path, kind):
    out = tmp_path / kind
    common = (f"--dataset={dataset}", f"--kind={kind}", f"--output={out}", "--batch_size=64")
    code, text = run("fit_recommender", *common, "--epochs=3", "--learning_rate=0.01")
    assert code == 0, text
    assert "best epoch" in text and " of 3" in text and "recall@20" in text, text
    assert f"\n{kind} " in text and (out / "recommender.json").is_file()
    assert not (out / "unfinished.npz").exists()
    if kind == "mf":
        code, text = run("fit_recommender", *common, "--splits=train,validation")
        assert code != 0 and "give --epochs" in text, text
        code, text = run("fit_recommender", *common, "--patience=0")
        assert code == 2 and "patience >= 1, got 0" in text, text
