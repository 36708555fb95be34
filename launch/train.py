"""Train one stage of an experiment: from scratch, or LoRA on a backbone.

    alignuser train --config=configs/small.py --dataset=runs/ml-1m/data --run=runs/ml-1m \
        --stage=pretrain
    alignuser train ... --stage=align --shards=runs/ml-1m/shards/shuffled \
        --out=runs/ml-1m/shuffled --set=align.seed=1
    alignuser train ... --adapter_from=runs/ml-1m --out=runs/ml-1m/second   (a second round)
    alignuser train --config=configs/qwen3_8b.py --mesh=fsdp=8 --dry_run --chip=h100
    alignuser train --config=configs/small.py --dry_run   (on this machine)

All devices train; launch/README.md has the scripts for several hosts. The same command again
resumes, on other devices too (with the same --adapter_from). SIGTERM saves and exits with code
85, on which launchers start it again. Other shards or settings than the run's need a folder of
their own, --out.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import app, flags

from alignuser_jax.runs.experiment import load_experiment
from alignuser_jax.runs.flags import experiment_flags, numbers, open_experiment
from alignuser_jax.runs.flags import run as run_program
from alignuser_jax.runs.stages import TrainOptions, plan_stage, train_stage

if TYPE_CHECKING:
    import jax

FLAGS = flags.FLAGS
experiment_flags(required=False)
flags.DEFINE_enum("stage", "align", ["pretrain", "align"], "The stage to train.")
flags.DEFINE_string("shards", None, "Folder of shards; default: the stage's in the run.")
flags.DEFINE_string("out", None, "Folder of the result; default: the stage's in the run.")
flags.DEFINE_string("checkpoints", None, "Their folder, also gs://...; default: in --out.")
flags.DEFINE_integer("steps", None, "Optimizer steps (with --out).")
flags.DEFINE_bool("packing", None, "Pack several examples into a row (with --out).")
flags.DEFINE_integer("seed", None, "Names the data order and the dropout (with --out).")
flags.DEFINE_list("mix", None, "Row shares, e.g. world_model=1,imitation=1 (with --out).")
flags.DEFINE_list("task_weights", None, "The lambdas, e.g. reflection=0.5 (with --out).")
flags.DEFINE_string(
    "adapter_from", None, "Start from this adapter: folder of a run, a training or PEFT."
)
flags.DEFINE_list(
    "mesh", [], "Sizes of data, fsdp, tensor; fsdp takes the devices left, e.g. tensor=2."
)
flags.DEFINE_enum(
    "distributed", "none", ["none", "auto"], "auto: join the hosts of Slurm, GKE, TPU or MPI."
)
flags.DEFINE_string("coordinator", None, "host:port of process 0, to join hosts by hand.")
flags.DEFINE_integer("processes", None, "Number of processes, with --coordinator.")
flags.DEFINE_integer("process", None, "Number of this process, from 0, with --coordinator.")
flags.DEFINE_bool("dry_run", False, "Print what the training needs and can reach, and exit.")
flags.DEFINE_string("chip", None, "Chip of the dry run, e.g. h100; default: what is here.")
flags.DEFINE_string("profile", None, "FIRST:LAST step of a profile in OUT/profile.")


def main() -> None:
    changes, profile, mesh_sizes = changed_settings(), profiled_steps(), numbers("mesh", int)
    if FLAGS.dry_run:
        experiment = load_experiment(FLAGS.config, FLAGS.set)
        print(plan_stage(experiment, FLAGS.stage, mesh_sizes, FLAGS.chip, changes).table())
        return
    missing = [f"--{name}" for name in ("dataset", "run") if not FLAGS[name].value]
    if missing:
        raise app.UsageError(f"{' and '.join(missing)} must be given (but for --dry_run)")
    mesh = joined_mesh(mesh_sizes)
    experiment, dataset, run = open_experiment()
    assert run is not None  # --run is given
    say = print if is_first_process() else lambda *_, **__: None
    sizes = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    device = mesh.devices.flat[0].device_kind
    say(f"{experiment.note}\n{mesh.size} x {device}: {sizes}", flush=True)
    options = TrainOptions(
        shards=Path(FLAGS.shards) if FLAGS.shards else None,
        out=Path(FLAGS.out) if FLAGS.out else None,
        mesh=mesh,
        checkpoints=FLAGS.checkpoints,
        profile=profile,
        changes=changes,
        adapter_from=Path(FLAGS.adapter_from) if FLAGS.adapter_from else None,
    )
    result = train_stage(experiment, dataset, run, FLAGS.stage, options)
    for task, held_out in result.held_out.items():
        before = result.first_held_out[task]["loss"]
        say(f"held-out {task}: {before:.4f} -> {held_out['loss']:.4f}")
    say(f"step {result.steps}: {result.result_dir}")


def changed_settings() -> dict[str, Any]:
    """Return the training settings that flags change; such a training needs its own folder."""
    plain = ("steps", "seed", "packing")
    changes = {name: FLAGS[name].value for name in plain if FLAGS[name].value is not None}
    for flag, kind in (("mix", int), ("task_weights", float)):
        if FLAGS[flag].value is not None:
            changes[flag] = numbers(flag, kind)
    if (changes or FLAGS.shards) and not FLAGS.out and not FLAGS.dry_run:
        names = [*changes, *(["shards"] if FLAGS.shards else [])]
        raise app.UsageError(f"{', '.join(names)} differ from the run's own: give --out")
    return changes


def profiled_steps() -> tuple[int, int] | None:
    """Return the first and the last step that --profile names, from 1."""
    if FLAGS.profile is None:
        return None
    try:
        first, last = map(int, FLAGS.profile.split(":"))
    except ValueError:
        first, last = 0, 0
    if not 1 <= first <= last:
        raise app.UsageError(f"--profile={FLAGS.profile}: expected FIRST:LAST, e.g. 10:12")
    return first, last


def joined_mesh(sizes: Mapping[str, int]) -> jax.sharding.Mesh:
    """Join the other processes if there are any, and return the mesh of all devices."""
    import jax

    from alignuser_jax.parallel import make_mesh, mesh_sizes, start_hosts

    by_hand = (FLAGS.coordinator, FLAGS.processes, FLAGS.process)
    if FLAGS.distributed == "auto" or any(value is not None for value in by_hand):
        start_hosts(*by_hand)
    return make_mesh(**mesh_sizes(sizes, jax.device_count()))


def is_first_process() -> bool:
    """Whether this process speaks for all."""
    import jax

    return jax.process_index() == 0


if __name__ == "__main__":
    run_program(main)
