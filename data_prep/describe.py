"""Describe a dataset, or what an experiment's examples of it cost in tokens.

    alignuser describe --dataset=runs/ml-1m --output=runs/ml-1m-described
    alignuser describe --dataset=runs/ml-1m --prompts=smollm2

The first prints tables of counts per split, and writes description.md, description.json and a
PNG for each of ratings, interactions per user and per item, time, sessions, genres and traits,
as far as the log has them. A log of sessions (OPeRA) gets pictures of its steps, pages, actions
and clicks instead.

The second prints the tokens of a training example by part of the prompt, and how many choices
1,000 tokens teach; with --tokenizer=DIR for another model's tokenizer.
"""

from pathlib import Path

from absl import flags

from alignuser_jax.datasets import load_dataset
from alignuser_jax.personas import compute_traits, trait_levels
from alignuser_jax.report.log_pictures import summary, write_description
from alignuser_jax.runs.experiment import load_experiment
from alignuser_jax.runs.flags import run as run_program
from alignuser_jax.runs.prompt_costs import prompt_report

FLAGS = flags.FLAGS
flags.DEFINE_string("dataset", None, "Folder of an imported dataset.", required=True)
flags.DEFINE_string("output", None, "Folder for the description.")
flags.DEFINE_string("prompts", None, "Config whose prompts are counted instead.")
flags.DEFINE_multi_string("tokenizer", [], "With --prompts: folder of another tokenizer.")
flags.DEFINE_multi_string("set", [], "With --prompts: override a setting.")


def main() -> None:
    if (FLAGS.output is None) == (FLAGS.prompts is None):
        raise ValueError("give --output for a description, or --prompts=CONFIG for its costs")
    if FLAGS.prompts is None and (FLAGS.tokenizer or FLAGS.set):
        raise ValueError(
            "--tokenizer and --set belong to --prompts=CONFIG: give it, or neither"
        )
    dataset = load_dataset(FLAGS.dataset)
    if FLAGS.prompts is not None:
        experiment = load_experiment(FLAGS.prompts, FLAGS.set)
        print(f"{dataset.label}\n\n{prompt_report(experiment, dataset, FLAGS.tokenizer)}")
        return
    train = dataset.log.of_split("train")
    levels = trait_levels(compute_traits(dataset, train)) if len(train) else None
    described = write_description(dataset, FLAGS.output, levels)
    print(f"{dataset.label}\n\n{summary(described)}\n")
    print(Path(FLAGS.output) / "description.md")


if __name__ == "__main__":
    run_program(main)
