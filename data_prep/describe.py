"""Describe a dataset: counts per split, and pictures of its distributions.

    alignuser describe --dataset=runs/ml-1m --output=runs/ml-1m-described

Prints the tables, and writes description.md, description.json and a PNG for each of ratings,
interactions per user and per item, time, sessions, genres and traits, as far as the log has
them. A log of sessions (OPeRA) gets pictures of its steps, pages, actions and clicks instead.
"""

from pathlib import Path

from absl import flags

from alignuser_jax.datasets import load_dataset
from alignuser_jax.personas import compute_traits, trait_levels
from alignuser_jax.report.log_pictures import summary, write_description
from alignuser_jax.runs.flags import run as run_program

FLAGS = flags.FLAGS
flags.DEFINE_string("dataset", None, "Folder of an imported dataset.", required=True)
flags.DEFINE_string("output", None, "Folder for the description.", required=True)


def main() -> None:
    dataset = load_dataset(FLAGS.dataset)
    train = dataset.log.of_split("train")
    levels = trait_levels(compute_traits(dataset, train)) if len(train) else None
    described = write_description(dataset, FLAGS.output, levels)
    print(f"{dataset.label}\n\n{summary(described)}\n")
    print(Path(FLAGS.output) / "description.md")


if __name__ == "__main__":
    run_program(main)
