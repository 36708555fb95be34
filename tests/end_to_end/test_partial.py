"""Programs whose server fails them in the middle: what was answered stays and is not asked for
again, and what failed is told."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from alignuser_jax.datasets.formats import synthetic
from tests.hostile_server import (
    HostileServer,
    failure,
    items_asked_about,
    obedient,
    obedient_writer,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "data"
    shape = synthetic.SyntheticConfig(users=30, items=40, ratings_per_user=16)
    synthetic.generate(shape).save(folder)
    return folder


@pytest.fixture
def server():
    made = HostileServer(obedient, hello=obedient)
    yield made
    made.stop()


@pytest.fixture
def program(data, server):
    def run(name, *flags):
        line = [
            sys.executable, "-m", name, "--config=configs/tiny.py", "--set=agents=8",
            f"--dataset={data}", f"--server={server.url}", "--model=org/m", *flags,
        ]  # fmt: skip
        done = subprocess.run(line, capture_output=True, text=True, cwd=ROOT)
        assert "Traceback" not in done.stderr, done.stderr
        return done

    return run


def names(bodies):
    return [json.dumps(body, sort_keys=True) for body in bodies]


def constraint(body):
    return body.get("structured_outputs")


def asks_for_a_rating(body):
    return constraint(body) == {"choice": ["1", "2", "3", "4", "5"]}


def test_an_evaluation_with_requests_that_fail(program, server, tmp_path):
    def moody(body, number):
        """Refuses some of what is asked about ratings."""
        rating = asks_for_a_rating(body)
        return failure(400, "not today") if rating and body["seed"] % 5 == 0 else obedient(body)

    server.reply = moody
    flags = ["--what=ratings,preference", "--cap=3", f"--out={tmp_path}"]
    done = program("inference.evaluate", *flags)
    assert done.returncode == 2
    asked = names(server.bodies)
    refused = [body for body in server.bodies if moody(body, 0)[0] == 400]
    ratings = sum(map(asks_for_a_rating, server.bodies))
    count = f"{len(refused)} of {ratings} requests failed: {len(refused)} x "
    assert refused and f"error: agents: {count}" in done.stderr and "not today" in done.stderr
    assert "1 of 2 tests are not made" in done.stderr
    kept = tmp_path / "answers" / "org-m.ratings.log"
    assert f"{ratings} answers are kept in {kept}: the same command goes on" in done.stdout
    text = (tmp_path / "evaluation.md").read_text()
    assert f"NOT MEASURED: agents: {count}" in text and "Preference 1:1, 8 users" in text

    server.reply, server.bodies = obedient, []
    again = program("inference.evaluate", *flags)
    assert again.returncode in (0, 1), again.stderr  # 1: drawn at random, so not accepted
    assert sorted(names(server.bodies)) == sorted(names(refused))
    assert f"{ratings - len(refused)} answers were in {kept}" in again.stdout
    text = (tmp_path / "evaluation.md").read_text()
    assert "NOT MEASURED" not in text and "RMSE expected" in text
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-2])
    assert last["part"] == "ratings" and last["requests"] == len(refused) < len(asked)


@pytest.mark.slow
def test_reflections_by_a_server_that_fails(program, server, tmp_path):
    out = tmp_path / "shards"
    flags = [f"--run={tmp_path / 'run'}", f"--out={out}", "--k=1", "--limit=12"]

    server.reply = lambda body, n: (
        obedient_writer(body, n) if n < 6 else failure(401, "revoked")
    )
    done = program("inference.generate_counterfactuals", *flags, "--server_concurrency=1")
    assert done.returncode == 2 and "401: revoked" in done.stderr
    assert not (out / "manifest.json").exists()
    assert "answers are kept in" in done.stdout
    first = names(server.bodies[:5])

    server.bodies = []

    def moody(body, number):
        refused = bool(items_asked_about(body)) and body["seed"] % 4 == 0
        return failure(400, "not today") if refused else obedient_writer(body, number)

    server.reply = moody
    done = program("inference.generate_counterfactuals", *flags)
    assert done.returncode == 2 and "error: reflect: " in done.stderr
    assert "x '400: not today'" in done.stderr
    assert not (out / "manifest.json").exists()
    assert not set(first) & set(names(server.bodies))

    again = program("inference.generate_counterfactuals", *flags, "--drop_failed")
    assert again.returncode == 0 and "dropped, generation failed" in again.stdout, again.stderr
    assert (out / "manifest.json").exists()


@pytest.mark.slow
def test_rollouts_by_a_server_that_fails(program, server, tmp_path):
    flags = [
        f"--run={tmp_path / 'run'}",
        "--episodes=8",
        "--max_actions=4",
        "--epsilon_start=0",
    ]
    collect = "data_prep.collect_rollouts"
    whole = program(collect, *flags, f"--out={tmp_path / 'whole'}")
    assert whole.returncode == 0 and "greedy branch: server: org/m" in whole.stdout, (
        whole.stderr
    )
    asked, server.bodies = names(server.bodies), []

    out = f"--out={tmp_path / 'shards'}"
    half = len(asked) // 2
    server.reply = lambda body, n: obedient(body) if n < half else failure(401, "revoked")
    done = program(collect, *flags, out, "--server_concurrency=1")
    assert done.returncode == 2 and "401: revoked" in done.stderr
    server.reply, server.bodies = obedient, []
    again = program(collect, *flags, out)
    assert again.returncode == 0 and 0 < len(server.bodies) <= len(asked) - half + 1
    files = [sorted((tmp_path / f).glob("*.arrayrecord")) for f in ("whole", "shards")]
    assert files[0] and [a.read_bytes() for a in files[0]] == [b.read_bytes() for b in files[1]]
    both = program(collect, *flags, out, "--policy")
    assert both.returncode == 2 and "give only one" in both.stdout + both.stderr
