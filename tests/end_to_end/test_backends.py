"""`alignuser simulate` with answers from a server, kept in a file and replayed from it."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hostile_server import HostileServer, failure, obedient

from alignuser_jax import pipeline
from alignuser_jax.datasets import synthetic
from alignuser_jax.recommenders import Random

ROOT = Path(__file__).parents[2]
AGENTS = 4


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a dataset and two arms."""
    folder = tmp_path_factory.mktemp("served")
    dataset = synthetic.generate(
        synthetic.SyntheticConfig(users=30, items=40, ratings_per_user=16)
    )
    dataset.save(folder / "data")
    for seed in (1, 2):
        Random(dataset.item_ids).save(folder / f"random{seed}")
    return folder


@pytest.fixture
def server():
    made = HostileServer(obedient, hello=obedient)
    yield made
    made.stop()


def simulate(place, out, *flags):
    arms = f"a={place / 'random1'},b={place / 'random2'}"
    command = [
        sys.executable, "-m", "inference.simulate", "--config=configs/tiny.py",
        f"--set=agents={AGENTS}", f"--dataset={place / 'data'}", f"--arms={arms}",
        "--horizon=1", f"--out={place / out}", *flags,
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_served_recorded_replayed(place, server):
    served = [f"--server={server.url}", "--model=m", "--prices=1,2"]
    log = place / "answers.log"
    first = simulate(place, "first", *served, f"--record={log}")
    assert first.returncode == 0, first.stderr
    assert (
        "m, served as it is" in first.stdout and "invalid or failed actions: 0" in first.stdout
    )
    asked = len(server.bodies)
    assert f"server: {asked} requests in" in first.stdout and "cost 0.00" in first.stdout
    manifest = json.loads((place / "first" / "journal" / "manifest.json").read_text())
    assert manifest["policy"] == "server: m" and manifest["engine"]["structured"] == "vllm"
    assert manifest["note"].startswith("SYNTHETIC data; m,")
    table = pq.read_table(place / "first" / "events.parquet")
    assert len(set(table["user_id"].to_pylist())) == AGENTS and pipeline.failures(table) == 0

    again = simulate(place, "again", f"--replay={log}")
    assert again.returncode == 0, again.stderr
    events = [(place / out / "events.parquet").read_bytes() for out in ("first", "again")]
    assert events[0] == events[1] and len(server.bodies) == asked
    other = simulate(place, "other", f"--replay={log}", "--seed=1")
    assert other.returncode == 2 and "differs in key" in other.stderr

    recorded = simulate(place, "recorded", *served, f"--record={log}")
    assert recorded.returncode == 0 and len(server.bodies) == asked  # nothing is paid twice
    changed = simulate(place, "first", served[0], "--model=another")
    assert changed.returncode == 2
    assert "engine.server_model was 'm', now 'another'" in changed.stderr


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ([], "--run must be given"),
        (["--server=http://localhost:1/v1"], "--server and --model belong together"),
        (["--model=m", "--server=http://127.0.0.1:1/v1"], "http://127.0.0.1:1/v1"),
        (["--model=m", "--server=localhost:1"], "is no URL"),
        (["--model=m", "--server=http://a/v1", "--prices=x"], "expected PROMPT,GENERATED"),
        (["--model=m", "--server=http://a/v1", "--server_extra=[1]"], "expected a JSON object"),
        (["--replay=nowhere.log"], "no recording nowhere.log"),
        (["--replay=nowhere.log", "--record=x"], "give no --server or --record"),
        (["--replay=nowhere.log", "--adapter=a"], "--adapter=a is for the policy of --run"),
    ],
)
def test_flags_that_cannot_be_are_one_message_and_exit_code_2(flags, text, place):
    done = simulate(place, "flags", *flags)
    assert done.returncode == 2 and text in done.stderr + done.stdout, done.stderr
    assert "Traceback" not in done.stderr


def test_a_key_that_is_refused_leaves_what_was_answered(place, server):
    def revoked(body, number):
        return obedient(body) if number < 15 else failure(401, "revoked")

    served = [f"--server={server.url}", "--model=m", "--server_concurrency=2"]
    server.reply = revoked
    done = simulate(place, "revoked", *served)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "401: revoked" in done.stderr and "$OPENAI_API_KEY" in done.stderr
    assert not (place / "revoked" / "events.parquet").exists()
    asked = [json.dumps(body, sort_keys=True) for body in server.bodies[:15]]
    server.reply, server.bodies = obedient, []
    done = simulate(place, "revoked", *served)
    assert done.returncode == 0, done.stderr
    again = [json.dumps(body, sort_keys=True) for body in server.bodies]
    assert len(set(asked) & set(again)) <= 2  # at most those that were under way
