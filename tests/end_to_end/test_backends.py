"""`alignuser simulate` with answers from a server, kept in a file and replayed from it."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from absl import app, flags

from alignuser_jax.datasets import load_dataset
from alignuser_jax.datasets.formats import synthetic
from alignuser_jax.durable.whole import JournalError
from alignuser_jax.recommenders import Random, load_recommender
from alignuser_jax.runs import flags as programs
from alignuser_jax.runs import simulate as simulation
from alignuser_jax.runs.backend import BackendChoice, open_backend, with_context
from alignuser_jax.runs.experiment import load_experiment
from alignuser_jax.runs.simulate import SimulationSettings
from alignuser_jax.sampling import NotRecorded, ServerConfig, ServerError, TransportConfig
from alignuser_jax.views import policy_and_agent_users, simulation_view
from tests.hostile_server import HostileServer, failure, obedient, obedient_writer

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


def command(place, out, *flags):
    arms = f"a={place / 'random1'},b={place / 'random2'}"
    line = [
        sys.executable, "-m", "inference.simulate", "--config=configs/tiny.py",
        f"--set=agents={AGENTS}", f"--dataset={place / 'data'}", f"--arms={arms}",
        "--horizon=1", f"--out={place / out}", *flags,
    ]  # fmt: skip
    return subprocess.run(line, capture_output=True, text=True, cwd=ROOT)


def simulate(place, out, choice, seed=0):
    """What that command does, in this process."""
    experiment = load_experiment(ROOT / "configs" / "tiny.py", [f"agents={AGENTS}"])
    dataset = load_dataset(place / "data")
    arms = {
        name: load_recommender(str(place / f"random{n}")) for n, name in ((1, "a"), (2, "b"))
    }
    users = policy_and_agent_users(dataset, experiment.agents, experiment.seed)[1]
    with open_backend(choice, experiment, dataset, None) as (backend, experiment):
        return simulation.simulate(
            experiment, dataset, simulation_view(dataset), arms, backend, place / out,
            SimulationSettings(users, seed=seed, horizon=1, progress=False),
        )  # fmt: skip


def served(server, model="m", **options):
    return ServerConfig(model, TransportConfig((server.url,), **options))


def test_served_recorded_replayed(place, server):
    log = str(place / "answers.log")
    flags = [f"--server={server.url}", "--model=m", "--prices=1,2", f"--record={log}"]
    first = command(place, "first", *flags)
    assert first.returncode == 0, first.stderr
    assert "m, served as it is" in first.stdout
    assert "invalid or failed actions: 0" in first.stdout
    asked = len(server.bodies)
    assert f"server: {asked} requests in" in first.stdout and "cost 0.00" in first.stdout
    manifest = json.loads((place / "first" / "journal" / "manifest.json").read_text())
    assert manifest["policy"] == "server: m" and manifest["engine"]["structured"] == "vllm"
    assert manifest["note"].startswith("SYNTHETIC data; m,")
    table = pq.read_table(place / "first" / "events.parquet")
    assert len(set(table["user_id"].to_pylist())) == AGENTS and simulation.failures(table) == 0

    simulate(place, "again", BackendChoice(replay=log))
    events = [(place / out / "events.parquet").read_bytes() for out in ("first", "again")]
    assert events[0] == events[1] and len(server.bodies) == asked
    with pytest.raises(NotRecorded, match="differs in key"):
        simulate(place, "other", BackendChoice(replay=log), seed=1)

    simulate(place, "recorded", BackendChoice(served(server), record=log))
    assert len(server.bodies) == asked  # nothing is paid for twice
    with pytest.raises(JournalError, match="engine.server_model was 'm', now 'another'"):
        simulate(place, "first", BackendChoice(served(server, "another")))


def test_a_key_that_is_refused_leaves_what_was_answered(place, server):
    def revoked(body, number):
        return obedient(body) if number < 15 else failure(401, "revoked")

    choice = BackendChoice(served(server, concurrency=2))
    server.reply = revoked
    with pytest.raises(ServerError, match="401: revoked"):
        simulate(place, "revoked", choice)
    assert not (place / "revoked" / "events.parquet").exists()
    asked = [json.dumps(body, sort_keys=True) for body in server.bodies[:15]]
    server.reply, server.bodies = obedient, []
    events = simulate(place, "revoked", choice)
    assert simulation.failures(events) == 0
    again = [json.dumps(body, sort_keys=True) for body in server.bodies]
    assert len(set(asked) & set(again)) <= 2  # at most those that were under way


def test_a_server_that_is_not_there_is_one_message_and_exit_code_2(place):
    done = command(place, "nobody", "--server=http://127.0.0.1:1/v1", "--model=m")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "no answer from http://127.0.0.1:1/v1" in done.stderr


URL = "--server=http://a/v1"


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ([], "--run must be given"),
        ([URL], "--server and --model belong together"),
        (["--model=m", "--server=localhost:1"], "is no URL"),
        ([URL, "--model=m", "--prices=x"], "expected PROMPT,GENERATED"),
        ([URL, "--model=m", "--server_extra=[1]"], "expected a JSON object"),
        ([URL, "--model=m", "--structured=xml"], "structured is 'xml'"),
        (["--prices=1,2", "--run=r"], "--prices: only with --server"),
        (["--replay=a.log", "--context_tokens=512"], "--context_tokens: only with --server"),
        (["--replay=a.log", "--record=x"], "give no --server or --record"),
    ],
)
def test_flags_that_cannot_be(given, text, monkeypatch):
    mine = flags.FlagValues()
    monkeypatch.setattr(programs, "FLAGS", mine)
    defined = [flags.DEFINE_list, flags.DEFINE_string, flags.DEFINE_integer, flags.DEFINE_float]
    for define in defined:
        here = partial(define, flag_values=mine)
        monkeypatch.setattr(programs.flags, define.__name__, here)
    programs.backend_flags()
    flags.DEFINE_string("run", None, "")
    mine(["program", *given])
    with pytest.raises((app.UsageError, ValueError), match=text):
        programs.backend_choice()


def test_a_choice_and_what_it_changes():
    experiment = load_experiment(ROOT / "configs" / "tiny.py")
    with pytest.raises(ValueError, match="--adapter=a is for the policy of --run"):
        BackendChoice(replay="x", adapter="a")
    assert BackendChoice(record="a", replay="").of_part("ratings").record == "a.ratings"
    longer = with_context(experiment, 9000)
    assert longer.session.context_tokens == 9000 and longer.site == experiment.site


@pytest.mark.slow
def test_evaluation_and_reflections_by_a_server(place, server):
    """Nothing here is trained: reflections need a --run for the tokenizer of their shards."""

    def program(name, *flags):
        line = [
            sys.executable, "-m", f"inference.{name}", "--config=configs/tiny.py",
            "--set=agents=8", f"--dataset={place / 'data'}", f"--server={server.url}",
            "--model=m", *flags,
        ]  # fmt: skip
        return subprocess.run(line, capture_output=True, text=True, cwd=ROOT)

    server.reply = obedient_writer
    flags = ["--what=ratings,preference", f"--record={place / 'told'}"]
    done = program("evaluate", *flags, f"--out={place / 'evaluation'}")
    assert done.returncode == 1 and "NOT ACCEPTED" in done.stdout, done.stderr  # random ratings
    assert " 0 failed" in done.stdout
    asked = len(server.bodies)
    again = program("evaluate", *flags, f"--out={place / 'evaluation2'}")
    tables = [(place / f / "evaluation.md").read_text() for f in ("evaluation", "evaluation2")]
    assert again.returncode == 1 and tables[0] == tables[1] and len(server.bodies) == asked
    done = program("evaluate", "--what=next_state", f"--out={place / 'evaluation'}")
    assert done.returncode == 2 and "without --run" in done.stdout + done.stderr

    done = program(
        "generate_counterfactuals", f"--run={place / 'run'}", f"--out={place / 'shards'}",
        "--k=1", "--limit=12",
    )  # fmt: skip
    assert done.returncode == 0 and "12 examples, generated by server: m" in done.stdout, (
        done.stderr
    )
