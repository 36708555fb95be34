"""The server of an arm dies in the middle of `alignuser simulate`: the run stops by name with
exit code 2, and the same command goes on when it is back, asking nothing twice."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from alignuser_jax.datasets.formats import synthetic
from alignuser_jax.recommenders import Random
from alignuser_jax.runs import simulate as simulation
from tests.hostile_server import HostileServer, obedient
from tests.recommenders.http.hostile_recommender import HostileRecommender

ROOT = Path(__file__).parents[2]

AGENTS, PAGES = 8, 3


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("away")
    dataset = synthetic.generate(
        synthetic.SyntheticConfig(users=40, items=40, ratings_per_user=12)
    )
    dataset.save(folder / "data")
    Random(dataset.item_ids).save(folder / "random")
    return folder, dataset


def simulate(folder, out, arm, model):
    command = [
        sys.executable, "-m", "launch.cli", "simulate", "--config=configs/tiny.py",
        f"--set=agents={AGENTS}", f"--dataset={folder / 'data'}",
        f"--arms=ours={folder / 'random'},theirs={arm}", f"--horizon={PAGES}",
        f"--out={folder / out}", f"--server={model.url}", "--model=m", "--structured=vllm",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert "Traceback" not in done.stderr, done.stderr
    return done


@pytest.mark.slow  # a minute on a busy machine: three simulations with pauses of 15 s
def test_killed_in_the_middle_and_resumed(place):
    folder, dataset = place
    model = HostileServer(lambda body, number: obedient(body))
    theirs = HostileRecommender(dataset.item_ids)
    answered = []

    def dies(body, number):
        if len(answered) + len(body["requests"]) > AGENTS * 2:
            theirs.stop()
            return None
        answered.extend((r["user_id"], r["page"]) for r in body["requests"])
        return theirs.good(body)

    theirs.reply = dies
    done = simulate(folder, "out", theirs.url, model)
    assert done.returncode == 2, done.stderr
    assert f"{theirs.url} does not answer" in done.stderr and "6 times" in done.stderr
    assert "run the same command again when the server is back" in done.stderr
    assert not (folder / "out" / "events.parquet").exists() and answered

    done = simulate(folder, "out", theirs.url, model)  # it is still away
    assert done.returncode == 2 and "does not answer" in done.stderr

    before, calls = len(answered), len(model.bodies)
    theirs.reply, theirs.answered = None, []
    theirs.start()
    done = simulate(folder, "out", theirs.url, model)
    assert done.returncode == 0, done.stderr
    events = pq.read_table(folder / "out" / "events.parquet")
    assert simulation.failures(events) == 0
    every = Counter([*answered, *theirs.answered])
    assert len(theirs.answered) == AGENTS * PAGES - before
    assert len(every) == AGENTS * PAGES and set(every.values()) == {1}
    print(f"\n{before} slates before, {len(theirs.answered)} after; {calls} calls to the model")
    theirs.stop()
    model.stop()


@pytest.mark.slow
def test_a_lying_arm_is_named_and_spoils_no_other(place):
    """Slates that break the contract are failures of their sessions, with the URL beside them;
    where all do, the run stops."""
    folder, dataset = place
    model = HostileServer(lambda body, number: obedient(body))
    theirs = HostileRecommender(dataset.item_ids)

    def lies(body, number):
        good = theirs.good(body)
        for n, (request, slate) in enumerate(zip(body["requests"], good[2]["slates"])):  # noqa: B905
            wrong = (
                slate["item_ids"][:1] * 4,
                ["nothing", *slate["item_ids"][1:]],
                [*request["exclude"][:1], *slate["item_ids"][1:]],
                slate["item_ids"][:2],
            )
            if everybody or int(request["user_id"][-1]) % 2:
                slate["item_ids"] = wrong[n % 4]
        return good

    theirs.reply, everybody = lies, False
    done = simulate(folder, "lies", theirs.url, model)
    assert done.returncode == 0, done.stderr
    events = pq.read_table(folder / "lies" / "events.parquet").to_pylist()
    texts = {e["user_id"]: e["text"] for e in events if e["kind"] == "failure"}
    assert texts and all(int(user[-1]) % 2 for user in texts)
    start = f"recommender of arm 'theirs' at {theirs.url} gave"
    assert all(text.startswith(start) for text in texts.values())
    assert {e["arm"] for e in events if e["kind"] == "failure"} == {"theirs"}

    everybody = True
    done = simulate(folder, "all-lies", theirs.url, model)
    assert done.returncode == 2 and "no session got its slates" in done.stderr
    assert theirs.url in done.stderr
    theirs.stop()
    model.stop()
