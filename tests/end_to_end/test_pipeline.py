"""From logs to an A/B table with a model trained for a few steps: the machinery only."""

import json
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow.compute as pc
import pytest

from alignuser_jax.datasets.formats import synthetic
from alignuser_jax.decision.compare import VERDICT_METRICS, arm_metrics, compare
from alignuser_jax.decision.synthetic_truth import true_lift
from alignuser_jax.language.answers import json_answer
from alignuser_jax.parallel.compiling import counted
from alignuser_jax.recommenders import ALS, Random
from alignuser_jax.records import Message, Request
from alignuser_jax.runs import simulate as simulation
from alignuser_jax.runs.backend import BackendChoice, open_backend, with_room
from alignuser_jax.runs.experiment import load_experiment
from alignuser_jax.runs.folder import open_run
from alignuser_jax.runs.simulate import SimulationSettings
from alignuser_jax.runs.stages import ShardOptions, TrainOptions, build_stage, train_stage
from alignuser_jax.runs.visit_shop import SHOP_AUTOMATA, ShopSettings, visit_shop
from alignuser_jax.sampling import generate
from alignuser_jax.views import policy_and_agent_users, simulation_view
from alignuser_jax.world import CatalogueConfig, GeneratedShop, make_catalogue

TINY = Path(__file__).parents[2] / "configs" / "tiny.py"
SMALLER = (
    *("pretrain.steps=4", "align.steps=3", "decoder.num_layers=1", "agents=6"),
    *("pretrain.log_every=1", "align.log_every=1", "engine.slots=8"),
    *("pretrain_shards.rollouts.episodes=6", "align_shards.rollouts.episodes=6"),
)


@pytest.fixture(scope="module")
def dataset():
    return synthetic.generate(
        synthetic.SyntheticConfig(users=40, items=60, ratings_per_user=24)
    )


@pytest.fixture(scope="module")
def experiment():
    return load_experiment(TINY, SMALLER)


@pytest.fixture(scope="module")
def run(experiment, dataset, tmp_path_factory):
    folder = open_run(experiment, dataset, tmp_path_factory.mktemp("run"))
    for stage in ("pretrain", "align"):
        build_stage(experiment, dataset, folder, stage)
        result = train_stage(experiment, dataset, folder, stage)
        assert result.result_dir.is_dir()
        for task, held in result.held_out.items():
            assert held["loss"] < result.first_held_out[task]["loss"], task
    return folder


def test_a_second_round_starts_where_the_first_ended(experiment, dataset, run, tmp_path):
    options = TrainOptions(out=tmp_path / "second", adapter_from=run)
    second = train_stage(experiment, dataset, run, "align", options)
    lines = map(json.loads, (run / "align" / "metrics.jsonl").read_text().splitlines())
    last = [line["held_out"] for line in lines if "held_out" in line][-1]
    for task, entry in second.first_held_out.items():
        assert entry["loss"] == pytest.approx(last[task]["loss"], abs=1e-4)
    started = json.loads((tmp_path / "second" / "train.json").read_text())["adapter_from"]
    assert started["folder"] == str(run / "align" / "adapter") and len(started["weights"]) == 64
    with pytest.raises(ValueError, match="stage 'pretrain' trains all weights"):
        train_stage(experiment, dataset, run, "pretrain", options)
    with pytest.raises(ValueError, match="start_weights was"):  # resumed without it
        plain = TrainOptions(out=tmp_path / "second")
        train_stage(experiment, dataset, run, "align", plain)


@pytest.fixture(scope="module")
def told():
    return []


@pytest.fixture(scope="module")
def backend(experiment, dataset, run, told):
    with open_backend(BackendChoice(), experiment, dataset, run, say=told.append) as (
        opened,
        _,
    ):
        yield opened


@pytest.fixture(scope="module")
def simulate(experiment, dataset, backend):
    train = dataset.log.of_split("train")
    arms = {
        "random": Random(dataset.item_ids),
        "als": ALS(factors=8).fit(dataset, train),
    }
    users = policy_and_agent_users(dataset, experiment.agents, experiment.seed)[1]

    def simulated(out, **options):
        return simulation.simulate(
            experiment, dataset, simulation_view(dataset), arms, backend, out,
            SimulationSettings(users, horizon=2, progress=False, **options),
        )  # fmt: skip

    return simulated


@pytest.fixture(scope="module")
def first(simulate, tmp_path_factory):
    out = tmp_path_factory.mktemp("simulation")
    return simulate(out), out


def test_an_engine_is_compiled_ahead(backend, told):
    """Whatever is asked of it first; jax counts every program of the process."""
    assert "compiling ahead" in told[0] and any("XLA programs" in line for line in told[1:])
    ask = (Message.of("user", "Rate it."),)
    ratings = (tuple(f"RATING: {n}" for n in range(1, 6)),)
    fields = json_answer({"watch": ["yes", "no, as I saw it in 1999"], "rating": [1, 2]})
    asked = [
        Request(ask, "free", max_tokens=12, top_k=3, min_p=0.1, stop=("so",)),
        Request(ask, "rate", answer=ratings, scored=True),
        Request(ask, "rate", answer=ratings, scored=True, reasoning_tokens=5),
        Request(ask, "longer", answer=(("a", "a b c d e f", "b"),), scored=True),
        Request(ask, "json", answer=fields, reasoning_tokens=3, samples=3),
        Request(ask, "many", max_tokens=5, samples=5, temperature=0.0),
        Request((Message.of("user", "long " * 60),), "long", max_tokens=40),
        Request((Message.of("user", "long " * 9000),), "too long"),
        Request(ask, "late", max_tokens=100, timeout_seconds=1e-6),
    ]
    with counted() as compiled:
        done = generate(backend.generator, asked)
    assert [c.finish_reason == "error" for c in done] == [False] * 7 + [True] * 2
    assert compiled.programs == 0


def test_every_action_is_valid_and_the_horizon_is_fixed(first, experiment):
    events, _ = first
    assert simulation.failures(events) == 0
    pages = events.filter(pc.equal(events["kind"], "page"))
    assert len(pages) == experiment.agents * 2 * 2 * 4


def test_the_comparison_has_every_metric_and_the_lift_is_known(first, dataset):
    events, _ = first
    table = compare(arm_metrics(events), "random")
    assert [c.metric for c in table] == list(VERDICT_METRICS)
    lift = true_lift(dataset, events, "random")
    assert lift["als", "mean rating"] > 0
    assert set(lift) == {("als", metric) for metric in VERDICT_METRICS}


def test_a_second_run_in_another_order_writes_the_same_bytes(first, simulate, tmp_path):
    simulate(tmp_path, shuffle=7)
    name = "events.parquet"
    assert (tmp_path / name).read_bytes() == (first[1] / name).read_bytes()


@pytest.mark.parametrize("share", [0.2, 0.71])
def test_a_killed_run_goes_on_to_the_same_bytes(first, simulate, tmp_path, share):
    shutil.copytree(first[1], tmp_path / "killed")
    segments = sorted((tmp_path / "killed" / "journal").glob("*segment*"))
    segments = segments or [
        p for p in (tmp_path / "killed" / "journal").iterdir()
        if p.suffix not in (".json",) and p.stat().st_size > 1000
    ]  # fmt: skip
    data = segments[0].read_bytes()
    segments[0].write_bytes(data[: int(len(data) * share)])
    (tmp_path / "killed" / "events.parquet").unlink()
    simulate(tmp_path / "killed")
    name = "events.parquet"
    assert (tmp_path / "killed" / name).read_bytes() == (first[1] / name).read_bytes()


@pytest.mark.slow
def test_plain_imitation_and_a_world_model_alone_run(experiment, dataset, run, tmp_path):
    shards = build_stage(
        experiment,
        dataset,
        run,
        "align",
        ShardOptions(tmp_path / "k0", {"k": 0, "shuffle_reflections": False}),
    )
    imitated = train_stage(
        experiment, dataset, run, "align",
        TrainOptions(
            shards, tmp_path / "il", changes={"mix": {"imitation": 1, "world_model": 1}}
        ),
    )  # fmt: skip
    assert set(imitated.held_out) == {"imitation", "world_model"}
    alone = train_stage(
        experiment, dataset, run, "align",
        TrainOptions(out=tmp_path / "wm", changes={"task_weights": {"reflection": 0.0}}),
    )  # fmt: skip
    assert "reflection" not in alone.metrics[-2].get("task_loss", {})


def program(verb, *arguments):
    command = [sys.executable, "-m", "launch.cli", verb, *arguments]
    return subprocess.run(command, cwd=TINY.parents[1], capture_output=True, text=True)


def test_verdicts_from_two_simulations_and_from_fewer_agents(first, tmp_path):
    _, folder = first
    both = f"--simulations=one={folder},two={folder}"
    done = program("ab-test", both, "--control=random", "--agents=4", f"--out={tmp_path}")
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "ab_test.md").read_text()
    assert text.startswith("A/B test, 4 agents; SYNTHETIC") and "verdict, two" in text
    assert (tmp_path / "ab_test.png").stat().st_size > 1000
    wrong = program("ab-test", both, "--control=random", "--agents=7", f"--out={tmp_path}")
    assert wrong.returncode != 0 and "share 6 agents" in wrong.stdout + wrong.stderr
    wrong = program("ab-test", "--simulations=/nowhere", "--control=random")
    assert wrong.returncode == 2 and "finish `alignuser simulate" in wrong.stderr


@pytest.mark.slow
def test_several_policies_are_evaluated_in_one_table(dataset, run, tmp_path):
    dataset.save(tmp_path / "data")
    adapter = run / "align" / "adapter"
    command = [f"--config={TINY}", *(f"--set={setting}" for setting in SMALLER)]
    command += [f"--dataset={tmp_path}/data", f"--run={run}", f"--out={tmp_path}/tables"]
    command += [f"--adapters=first=,aligned@0={adapter},aligned@1={adapter}", "--agents=6"]
    every = "--what=ratings,rating_turns,preference,next_state"
    command += [every, "--cap=2", "--next_states=3", "--swap_history"]
    command += ["--reasoning_samples=2", "--reasoning_tokens=8"]
    done = program("evaluate", *command)
    assert done.returncode in (0, 1), done.stderr  # 1: not accepted, as a few steps deserve
    text = (tmp_path / "tables" / "evaluation.md").read_text()
    for row in ("item mean", "first", "aligned@1, after reasoning", "page-type F1, model"):
        assert row in text
    turns = text.split("Ratings one after another")[1]
    assert all(f"| {name} " in turns for name in ("first", "aligned@0", "aligned@1"))
    swapped = text.split("The same questions with another user's past")[1]
    assert all(f"| {name} " in swapped for name in ("first", "aligned@0", "aligned@1"))
    averaged = text.split("Mean over seeds")[1].splitlines()
    assert any(line.startswith("| aligned, after reasoning") for line in averaged)
    assert ("NOT ACCEPTED" in done.stdout) == (done.returncode == 1)
    lines = (tmp_path / "tables" / "metrics.jsonl").read_text().splitlines()
    told = [json.loads(line) for line in lines]
    names = ("first", "aligned@0", "aligned@1")
    parts = [f"{test}.{name}" for test in ("ratings", "rating_turns") for name in names]
    assert [t["part"] for t in told] == [*parts, "preference.first", "next_state.first"]
    assert all(t["compiled_later"] == 0 and t["rows"] > 0 for t in told)
    assert told[0]["saved_share"] > 0 and told[0]["policy"] != told[1]["policy"]
    assert done.stdout.count("0 programs compiled after the start") == len(told)

    command[command.index(every)] = "--what=next_state"
    done = program("evaluate", *command, f"--out={tmp_path}/states")
    assert done.returncode == 0, done.stderr  # no rating test: nothing to accept
    assert "neither accepted nor refused" in done.stdout and "\naccepted" not in done.stdout


def test_the_policy_shops_and_a_second_run_writes_the_same_bytes(
    experiment, dataset, run, tmp_path
):
    shop = GeneratedShop(make_catalogue(config=CatalogueConfig(goals=8)))
    roomy = with_room(experiment, 4000, **SHOP_AUTOMATA)
    assert roomy.engine.context == 4000 and roomy.engine.all_pages >= 4 * roomy.engine.row_pages
    written = []
    with open_backend(BackendChoice(), roomy, dataset, run) as (backend, _):
        for name in ("one", "two"):
            events = visit_shop(
                roomy, dataset, simulation_view(dataset), shop,
                replace(backend, concurrency=3), tmp_path / name,
                ShopSettings(
                    dataset.user_ids[:5], {"kind": "generated"}, max_actions=4, progress=False
                ),
            )  # fmt: skip
            written.append((tmp_path / name / "events.parquet").read_bytes())
    assert written[0] == written[1] and simulation.failures(events) == 0
    kinds = Counter(events["kind"].to_pylist())
    assert kinds["exit"] == 5 and 5 <= kinds["act"] <= 20


def test_another_experiment_in_the_same_folder_is_refused(experiment, dataset, run):
    other = load_experiment(TINY, (*SMALLER, "align.seed=5"))
    with pytest.raises(ValueError, match="align.seed was 0, now 5"):
        open_run(other, dataset, run)
