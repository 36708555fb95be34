"""`alignuser visit-shop`: agents behind a server in a generated shop and in that of a log."""

import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from alignuser_jax.datasets.formats import opera, synthetic
from tests.datasets.formats.opera_files import write_opera
from tests.hostile_server import HostileServer, obedient

ROOT = Path(__file__).parents[2]


@pytest.fixture
def server():
    made = HostileServer(obedient, hello=obedient)
    yield made
    made.stop()


def visit(server, data, out, *flags):
    line = [
        sys.executable, "-m", "inference.visit_shop", "--config=configs/tiny.py",
        f"--dataset={data}", f"--out={out}", f"--server={server.url}", "--model=m",
        "--max_actions=5", "--context_tokens=32000", *flags,
    ]  # fmt: skip
    return subprocess.run(line, capture_output=True, text=True, cwd=ROOT)


def test_in_a_generated_shop_again_without_asking(server, tmp_path):
    data = tmp_path / "data"
    synthetic.generate(synthetic.SyntheticConfig(users=6, items=20, ratings_per_user=8)).save(
        data
    )
    out = tmp_path / "out"
    flags = ("--agents=3", "--catalogue_goals=8")
    first = visit(server, data, out, *flags)
    assert first.returncode == 0, first.stderr
    assert "a generated shop, SYNTHETIC (synthetic goals)" in first.stdout
    assert "3 visits, " in first.stdout and "failures: 0 of" in first.stdout
    events = (out / "events.parquet").read_bytes()
    table = pq.read_table(out / "events.parquet")
    assert len(set(table["user_id"].to_pylist())) == 3
    assert table["kind"].to_pylist().count("exit") == 3
    asked = len(server.bodies)
    (out / "events.parquet").unlink()
    again = visit(server, data, out, *flags)
    assert again.returncode == 0, again.stderr
    assert (out / "events.parquet").read_bytes() == events
    assert len(server.bodies) <= asked + 1  # at most the hello
    other = visit(server, data, out, *flags, "--seed=1")
    assert other.returncode == 2 and "seed" in other.stderr


def test_in_the_shop_of_a_log(server, tmp_path):
    data = opera.read(write_opera(tmp_path / "files")).save(tmp_path / "data")
    done = visit(server, data, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "in the log: 4 training sessions" in done.stdout, done.stdout
    assert "pages made by: log" in done.stdout
    prompts = [str(body["messages"]) for body in server.bodies if body["messages"]]
    assert any("Occupation: Nurse" in prompt for prompt in prompts)
    refused = visit(server, data, tmp_path / "other", f"--goals={tmp_path}")
    assert refused.returncode != 0 and "--goals is for the generated shop" in refused.stderr


def test_what_needs_ratings_says_that_a_log_of_sessions_has_none(tmp_path):
    data = opera.read(write_opera(tmp_path / "files")).save(tmp_path / "data")
    for module, flags, message in (
        ("fit_recommender", ["--kind=popularity"], "nothing to recommend by (it is a log of"),
        (
            "match_personas",
            ["--config=configs/tiny.py", "--set=agents=1", f"--run={tmp_path / 'run'}"],
            f"its surveys are personas: --personas={data / 'surveys.parquet'}",
        ),
    ):
        line = [sys.executable, "-m", f"data_prep.{module}", f"--dataset={data}"]
        line += [f"--output={tmp_path / module}", *flags]
        done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 2 and message in done.stderr, done.stderr
