"""Train one stage of an experiment: from scratch, or LoRA on a backbone.

    alignuser train --config=configs/small.py --dataset=runs/ml-1m/data --run=runs/ml-1m \
        --stage=pretrain
    alignuser train ... --stage=align --shards=runs/ml-1m/shards/shuffled \
        --out=runs/ml-1m/shuffled --set=align.seed=1
    alignuser train --config=configs/qwen3_8b.py --mesh=fsdp=8 --dry_run --chip=h100

All devices train; launch/README.md has the scripts for several hosts. The same command again
resumes, on other devices too. SIGTERM saves and exits with code 85, on which launchers start
it again. Other shards or settings than the run's need a folder of their own, --out.
"""

from pathlib import Path

from absl import app, flags

from alignuser_jax.runs.experiment import load_experiment
from alignuser_jax.runs.flags import experiment_flags, numbers, open_experiment
from alignuser_jax.runs.flags import run as run_program
from alignuser_jax.runs.stages import TrainOptions, plan_stage, train_stage

FLAGS = flags.FLAGS
experiment_flags(required=False)
flags.DEFINE_enum("stage", "align", ["pretrain", "align"], "What is trained.")
flags.DEFINE_string("shards", None, "Other shards than the stage's in the run.")
flags.DEFINE_string("out", None, "Folder of the result; default: the stage's in the run.")
flags.DEFINE_string("checkpoints", None, "Their folder, also gs://...; default: in --out.")
flags.DEFINE_integer("steps", None, "Optimizer steps (with --out).")
flags.DEFINE_bool("packing", None, "Several examples in a row (with --out).")
flags.DEFINE_integer("seed", None, "Names data order and dropout (with --out).")
flags.DEFINE_list("mix", None, "Row shares, e.g. world_model=1,imitation=1 (with --out).")
flags.DEFINE_list("task_weights", None, "The lambdas, e.g. reflection=0.5 (with --out).")
flags.DEFINE_list(
    "mesh", [], "Sizes of data, fsdp, tensor; fsdp takes the devices left, e.g. tensor=2."
)
flags.DEFINE_enum(
    "distributed", "none", ["none", "auto"], "auto: join the hosts of Slurm, GKE, TPU or MPI."
)
flags.DEFINE_string("coordinator", None, "host:port of process 0, to join hosts by hand.")
flags.DEFINE_integer("processes", None, "How many, with --coordinator.")
flags.DEFINE_integer("process", None, "Which this is, from 0, with --coordinator.")
flags.DEFINE_bool("dry_run", False, "Say what it needs and reaches on --mesh, and exit.")
flags.DEFINE_string("chip", None, "Of the dry run, e.g. h100, v5p; default: what is here.")
flags.DEFINE_string("profile", None, "First:last step of a profile in OUT/profile.")


def main() -> None:
    plain = ("steps", "seed", "packing")
    changes = {name: FLAGS[name].value for name in plain if FLAGS[name].value is not None}
    for flag, kind in (("mix", int), ("task_weights", float)):
        if FLAGS[flag].value is not None:
            changes[flag] = numbers(flag, kind)
    if (changes or FLAGS.shards) and not FLAGS.out:
        given = [*changes, *(["shards"] if FLAGS.shards else [])]
        raise app.UsageError(f"{', '.join(given)} differ from the run's own: give --out")
    profile, mesh_flag = _profile(), numbers("mesh", int)
    if FLAGS.dry_run:
        experiment = load_experiment(FLAGS.config, FLAGS.set)
        print(plan_stage(experiment, FLAGS.stage, mesh_flag, FLAGS.chip).table())
        return
    missing = [f"--{name}" for name in ("dataset", "run") if not FLAGS[name].value]
    if missing:
        raise app.UsageError(f"{' and '.join(missing)} must be given (but for --dry_run)")

    import jax

    from alignuser_jax.parallel import make_mesh, mesh_sizes, start_hosts

    by_hand = (FLAGS.coordinator, FLAGS.processes, FLAGS.process)
    if FLAGS.distributed == "auto" or any(value is not None for value in by_hand):
        start_hosts(*by_hand)
    mesh = make_mesh(**mesh_sizes(mesh_flag, jax.device_count()))
    experiment, dataset, run = open_experiment()
    first = jax.process_index() == 0
    if first:
        sizes = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
        device = mesh.devices.flat[0].device_kind
        print(f"{experiment.note}\n{mesh.size} x {device}: {sizes}", flush=True)
    result = train_stage(
        experiment,
        dataset,
        run,
        FLAGS.stage,
        TrainOptions(
            Path(FLAGS.shards) if FLAGS.shards else None,
            Path(FLAGS.out) if FLAGS.out else None,
            mesh,
            FLAGS.checkpoints,
            profile,
            changes,
        ),
    )
    if first:
        for task, held in result.held_out.items():
            before = result.first_held_out[task]["loss"]
            print(f"held-out {task}: {before:.4f} -> {held['loss']:.4f}")
        print(f"step {result.steps}: {result.result_dir}")


def _profile() -> tuple[int, int] | None:
    if FLAGS.profile is None:
        return None
    try:
        begin, end = map(int, FLAGS.profile.split(":"))
    except ValueError:
        begin, end = 0, 0
    if not 1 <= begin <= end:
        raise app.UsageError(f"--profile={FLAGS.profile}: expected FIRST:LAST, e.g. 10:12")
    return begin, end


if __name__ == "__main__":
    run_program(main)
