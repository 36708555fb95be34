"""Which recommender is better: paired differences, intervals, verdicts, from simulated events.

    alignuser ab-test --simulations=runs/ml-1m/ab --control=random
    alignuser ab-test --simulations=mixed=runs/a/ab,uniform=runs/b/ab --control=popularity \
        --dataset=runs/ml-1m/data --recommenders=als=runs/ml-1m/als,...

With several simulations (one per exposure assumption) a verdict that flips is printed as
"depends on the exposure assumption". With a dataset and the arms' recommenders, held-out
hit@20 stands beside the simulated likes, with Kendall's tau and its interval.
"""

from pathlib import Path

from absl import flags

from alignuser_jax.datasets import load_dataset
from alignuser_jax.decision.ab_test import (
    AbTestSettings,
    ab_test,
    held_out_tables,
    same_agents,
    tables,
)
from alignuser_jax.durable.whole import write_whole
from alignuser_jax.recommenders import load_recommender
from alignuser_jax.report.plots import forest_plot
from alignuser_jax.runs.flags import run as run_program
from alignuser_jax.runs.simulate import read_simulation

FLAGS = flags.FLAGS
flags.DEFINE_list("simulations", None, "FOLDER or NAME=FOLDER of simulations.", required=True)
flags.DEFINE_string(
    "control", None, "The arm that the others are compared with.", required=True
)
flags.DEFINE_list("treatments", None, "The others (default: all).")
flags.DEFINE_string("dataset", None, "Dataset, for held-out hits.")
flags.DEFINE_list("recommenders", None, "NAME=FOLDER of the arms, for held-out hits.")
flags.DEFINE_string("out", None, "Folder for the tables and the plot (default: the first one).")
flags.DEFINE_integer("agents", None, "Draw so many of the agents (default: all).")
flags.DEFINE_integer("resamples", 2000, "Bootstrap resamples over users.")
flags.DEFINE_integer("seed", 0, "Seed of the bootstrap.")


def named(text: str) -> tuple[str, str]:
    """Split NAME=VALUE; a value without a name is named after its last part."""
    name, equals, value = text.partition("=")
    return (name, value) if equals else (Path(text).name, text)


def main() -> None:
    folders = dict(map(named, FLAGS.simulations))
    simulations = {name: read_simulation(folder) for name, folder in folders.items()}
    events = {name: simulation.events for name, simulation in simulations.items()}
    if FLAGS.agents is not None:
        events = same_agents(events, FLAGS.agents, FLAGS.seed)
    settings = AbTestSettings(FLAGS.control, FLAGS.treatments, FLAGS.resamples, FLAGS.seed)
    test = ab_test(events, settings)
    note = simulations[test.first].manifest["note"]
    dataset = load_dataset(FLAGS.dataset) if FLAGS.dataset else None
    parts = tables(test, note, dataset)
    if dataset is not None and FLAGS.recommenders:
        specs = dict(map(named, FLAGS.recommenders))
        recommenders = {arm: load_recommender(spec) for arm, spec in specs.items()}
        parts += held_out_tables(test, dataset, recommenders)
    out = Path(FLAGS.out or folders[test.first])
    out.mkdir(parents=True, exist_ok=True)
    text = "\n\n".join(parts)
    write_whole(out / "ab_test.md", text + "\n")
    forest_plot(test.comparisons[test.first], out / "ab_test.png", note)
    print(f"{text}\n\ntables and plot: {out}/ab_test.md, {out}/ab_test.png")


if __name__ == "__main__":
    run_program(main)
