"""The whole way once on a generated log: data, training, a simulated A/B test, in 3 minutes.

    alignuser demo [--run=runs/demo]
    alignuser demo --backbone=smollm2 [--run=runs/smollm2-demo]

The data are SYNTHETIC and the model is tiny and trained from scratch: the demo shows that the
machinery works, not how human-like agents are. With --backbone the same way is gone with a
pretrained model and LoRA (configs/smollm2_demo.py). Run again with the same folder, it goes on
where it was.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
from absl import flags

from alignuser_jax.datasets import Dataset
from alignuser_jax.datasets.formats import synthetic
from alignuser_jax.decision.compare import (
    VERDICTS_BY_HOLM,
    arm_metrics,
    arms_table,
    compare,
    comparison_table,
    not_validated_table,
)
from alignuser_jax.decision.synthetic_truth import true_lift
from alignuser_jax.recommenders import ALS, Random
from alignuser_jax.records import Recommender
from alignuser_jax.report.plots import forest_plot
from alignuser_jax.runs.backend import METRICS_FILE, BackendChoice, open_backend
from alignuser_jax.runs.experiment import Experiment, load_experiment
from alignuser_jax.runs.flags import run as run_program
from alignuser_jax.runs.folder import Stopwatch, open_run
from alignuser_jax.runs.policy import claim_devices
from alignuser_jax.runs.simulate import SimulationSettings, failures, simulate
from alignuser_jax.runs.stages import build_stage, train_stage
from alignuser_jax.text import markdown_table
from alignuser_jax.views import policy_and_agent_users, simulation_view

FLAGS = flags.FLAGS
flags.DEFINE_string(
    "config", None, "File of the experiment (default: tiny, with --backbone smollm2_demo)."
)
flags.DEFINE_string(
    "backbone", None, "A pretrained model: `smollm2`, a folder, a GGUF file or a hub id."
)
flags.DEFINE_string(
    "run", None, "Folder for all that is made (default: runs/demo, runs/smollm2-demo)."
)
flags.DEFINE_integer("seed", 0, "Seed of the agents' randomness, chosen before any result.")
flags.DEFINE_multi_string("set", [], "Override a setting: section.field=value.")

SYNTHETIC = synthetic.SyntheticConfig(users=500, items=160, taste=0.9, quality=0.9)
"""500 users, as 60 become agents and the rest must train a policy; tastes and qualities that
spread alike, so that a recommender which learns tastes has a true lift."""
CONTROL, TREATMENT, AGAIN = "random", "als", "als, again"
STAGES = {"pretrain": "first stage, from scratch", "align": "alignment"}


def main() -> None:
    watch, experiment = Stopwatch(), demo_experiment()
    claim_devices(experiment.engine)
    print(f"{experiment.note}\n", flush=True)
    default = "runs/demo" if FLAGS.backbone is None else f"runs/{experiment.name}"
    folder = Path(FLAGS.run or default)
    with watch.stage("data and recommenders"):
        dataset = generated_data(folder / "data", experiment.seed)
        run = open_run(experiment, dataset, folder)
        als = ALS(factors=16).fit(dataset, dataset.log.of_split("train"))
        arms = {CONTROL: Random(dataset.item_ids), TREATMENT: als, AGAIN: als}
    for stage, label in STAGES.items():
        if stage == "pretrain" and experiment.pretrain is None:
            continue
        with watch.stage("shards"):
            build_stage(experiment, dataset, run, stage)
        with watch.stage(f"training: {label}"):
            train_stage(experiment, dataset, run, stage)
    with watch.stage("simulation"):
        users = policy_and_agent_users(dataset, experiment.agents, experiment.seed)[1]
        events = visit_arms(experiment, dataset, users, arms, run)
    with watch.stage("statistics"):
        text = ab_test_text(experiment, dataset, events, run / "ab_test.png")
        text = f"A/B test, {len(users)} agents, {experiment.note}\n\n{text}"
        (run / "ab_test.md").write_text(text + "\n")
    seconds = [[name, f"{value:.1f}"] for name, value in watch.seconds.items()]
    seconds.append(["all", f"{sum(watch.seconds.values()):.1f}"])
    print(f"\n{text}\n\n{markdown_table(seconds, ['stage', 'seconds'])}\n")
    print(f"invalid or failed actions: {failures(events)} of {len(events)} events")
    print(f"everything is in {run}")


def demo_experiment() -> Experiment:
    """Return the experiment of the flags; its note names the backbone."""
    if FLAGS.backbone is None:
        return load_experiment(FLAGS.config or "configs/tiny.py", FLAGS.set)
    config = FLAGS.config or "configs/smollm2_demo.py"
    experiment = load_experiment(config, [f"backbone={FLAGS.backbone}", *FLAGS.set])
    return replace(experiment, note=f"{experiment.note} (backbone: {experiment.backbone})")


def generated_data(folder: Path, seed: int) -> Dataset:
    """Generate the synthetic data set, or load the one that an earlier run left in `folder`."""
    if not folder.is_dir():
        synthetic.generate(replace(SYNTHETIC, seed=seed)).save(folder)
    return Dataset.load(folder)


def visit_arms(
    experiment: Experiment,
    dataset: Dataset,
    users: Sequence[str],
    arms: Mapping[str, Recommender],
    run: Path,
) -> pa.Table:
    """Let the run's own policy play `users` on every arm, and return the events.

    The arm `AGAIN` is the same recommender on a second visit, for an A/A test.
    """
    out = run / "simulation"
    view = simulation_view(dataset)
    settings = SimulationSettings(users, seed=FLAGS.seed, visit_numbers={AGAIN: 1})
    opened = open_backend(
        BackendChoice(), experiment, dataset, run, say=print, metrics=out / METRICS_FILE
    )
    with opened as (backend, _):
        return simulate(experiment, dataset, view, arms, backend, out, settings)


def ab_test_text(experiment: Experiment, dataset: Dataset, events: pa.Table, plot: Path) -> str:
    """Return the tables of the A/B and the A/A test, and draw the plot.

    The data are synthetic, so the true lift stands beside the simulated one.
    """
    metrics = arm_metrics(events)
    comparisons = compare(metrics, CONTROL, [TREATMENT], seed=FLAGS.seed)
    again = compare(metrics, TREATMENT, [AGAIN], seed=FLAGS.seed)
    forest_plot(comparisons, plot, experiment.note)
    parts = [
        comparison_table(comparisons, true_lift(dataset, events, CONTROL)),
        "A/A test: the same recommender, other randomness",
        comparison_table(again),
        VERDICTS_BY_HOLM,
        "Means per arm",
        arms_table(metrics),
        not_validated_table(metrics),
    ]
    return "\n\n".join(parts)


if __name__ == "__main__":
    run_program(main)
