"""Train one stage of an experiment: from scratch, or LoRA on a backbone.

    alignuser train --config=configs/small.py --dataset=runs/ml-1m/data --run=runs/ml-1m \
        --stage=pretrain
    alignuser train ... --stage=align --shards=runs/ml-1m/shards/shuffled \
        --out=runs/ml-1m/shuffled --set=align.seed=1

The same command again resumes. SIGTERM saves and exits with code 85, on which launchers may
start it again. Other shards or settings than the run's need a folder of their own, --out.
"""

from pathlib import Path

from absl import app, flags

from alignuser_jax import pipeline
from alignuser_jax.programs import experiment_flags, numbers, open_experiment
from alignuser_jax.programs import run as run_program

FLAGS = flags.FLAGS
experiment_flags()
flags.DEFINE_enum("stage", "align", ["pretrain", "align"], "What is trained.")
flags.DEFINE_string("shards", None, "Other shards than the stage's in the run.")
flags.DEFINE_string("out", None, "Folder of the result; default: the stage's in the run.")
flags.DEFINE_integer("steps", None, "Optimizer steps (with --out).")
flags.DEFINE_bool("packing", None, "Several examples in a row (with --out).")
flags.DEFINE_integer("seed", None, "Names data order and dropout (with --out).")
flags.DEFINE_list("mix", None, "Row shares, e.g. world_model=1,imitation=1 (with --out).")
flags.DEFINE_list("task_weights", None, "The lambdas, e.g. reflection=0.5 (with --out).")


def main() -> None:
    plain = ("steps", "seed", "packing")
    changes = {name: FLAGS[name].value for name in plain if FLAGS[name].value is not None}
    for flag, kind in (("mix", int), ("task_weights", float)):
        if FLAGS[flag].value is not None:
            changes[flag] = numbers(flag, kind)
    if (changes or FLAGS.shards) and not FLAGS.out:
        given = [*changes, *(["shards"] if FLAGS.shards else [])]
        raise app.UsageError(f"{', '.join(given)} differ from the run's own: give --out")
    experiment, dataset, run = open_experiment()
    print(experiment.note, flush=True)
    result = pipeline.train_stage(
        experiment,
        dataset,
        run,
        FLAGS.stage,
        shards=Path(FLAGS.shards) if FLAGS.shards else None,
        out=Path(FLAGS.out) if FLAGS.out else None,
        **changes,
    )
    for task, held in result.held_out.items():
        before = result.first_held_out[task]["loss"]
        print(f"held-out {task}: {before:.4f} -> {held['loss']:.4f}")
    print(f"step {result.steps}: {result.result_dir}")


if __name__ == "__main__":
    run_program(main)
