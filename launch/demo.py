"""The whole way once on a generated log: data, training, a simulated A/B test, in 3 minutes.

    alignuser demo [--run=runs/demo]

SYNTHETIC data and a tiny model trained from scratch: it shows the machinery, not fidelity.
Run again with the same folder, it goes on where it was.
"""

from dataclasses import replace
from pathlib import Path

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
from alignuser_jax.report.plots import forest_plot
from alignuser_jax.runs.backend import METRICS_FILE, BackendChoice, open_backend
from alignuser_jax.runs.experiment import load_experiment
from alignuser_jax.runs.flags import run as run_program
from alignuser_jax.runs.folder import Stopwatch, open_run
from alignuser_jax.runs.simulate import SimulationSettings, failures, simulate
from alignuser_jax.runs.stages import build_stage, train_stage
from alignuser_jax.text import markdown_table
from alignuser_jax.views import policy_and_agent_users, simulation_view

FLAGS = flags.FLAGS
CONFIG = Path(__file__).parents[1] / "configs" / "tiny.py"
SYNTHETIC = synthetic.SyntheticConfig(users=500, items=160, taste=0.9, quality=0.9)
flags.DEFINE_string("config", str(CONFIG), "The experiment.")
flags.DEFINE_string("run", "runs/demo", "Folder for everything that is made.")
flags.DEFINE_integer("seed", 0, "Seed of the agents' randomness; fixed beforehand.")
flags.DEFINE_multi_string("set", [], "Override a setting: section.field=value.")


def main() -> None:
    watch, experiment = Stopwatch(), load_experiment(FLAGS.config, FLAGS.set)
    print(f"{experiment.note}\n", flush=True)
    with watch.stage("data and recommenders"):
        folder = Path(FLAGS.run) / "data"
        if not folder.is_dir():
            synthetic.generate(replace(SYNTHETIC, seed=experiment.seed)).save(folder)
        dataset = Dataset.load(folder)
        run = open_run(experiment, dataset, FLAGS.run)
        train = dataset.log.of_split("train")
        als = ALS(factors=16).fit(dataset, train)
        arms = {
            "random": Random(dataset.item_ids),
            "als": als,
            "als, again": als,
        }
    for stage, label in (("pretrain", "first stage, from scratch"), ("align", "alignment")):
        with watch.stage("shards"):
            build_stage(experiment, dataset, run, stage)
        with watch.stage(f"training: {label}"):
            train_stage(experiment, dataset, run, stage)
    with (
        watch.stage("simulation"),
        open_backend(
            BackendChoice(),
            experiment,
            dataset,
            run,
            say=print,
            metrics=run / "simulation" / METRICS_FILE,
        ) as (backend, _),
    ):
        users = policy_and_agent_users(dataset, experiment.agents, experiment.seed)[1]
        events = simulate(
            experiment,
            dataset,
            simulation_view(dataset),
            arms,
            backend,
            run / "simulation",
            SimulationSettings(users, seed=FLAGS.seed, visit_numbers={"als, again": 1}),
        )
    with watch.stage("statistics"):
        metrics = arm_metrics(events)
        lift = true_lift(dataset, events, "random")
        comparisons = compare(metrics, "random", ["als"], seed=FLAGS.seed)
        again = compare(metrics, "als", ["als, again"], seed=FLAGS.seed)
        forest_plot(comparisons, run / "ab_test.png", experiment.note)
        text = "\n\n".join(
            [
                f"A/B test, {len(users)} agents, {experiment.note}",
                comparison_table(comparisons, lift),
                "A/A test: the same recommender, other randomness",
                comparison_table(again),
                VERDICTS_BY_HOLM,
                "Means per arm",
                arms_table(metrics),
                not_validated_table(metrics),
            ]
        )
        (run / "ab_test.md").write_text(text + "\n")
    seconds = [[name, f"{value:.1f}"] for name, value in watch.seconds.items()]
    seconds.append(["all", f"{sum(watch.seconds.values()):.1f}"])
    print(f"\n{text}\n\n{markdown_table(seconds, ['stage', 'seconds'])}\n")
    print(f"invalid or failed actions: {failures(events)} of {len(events)} events")
    print(f"everything is in {run}")


if __name__ == "__main__":
    run_program(main)
