"""Let a model write the reflections on human ratings and their alternatives, as shards.

    alignuser generate-counterfactuals --config=configs/qwen3_8b.py --dataset=runs/ml-1m/data \
        --run=runs/ml-1m --out=runs/ml-1m/shards/generated --k=4 --limit=20000

The writer is the policy's own base model, the policy with --adapter, or a model behind a
--server. A server's answers are kept in OUT/answers (the policy's, with --record=FILE) and not
asked for again. If requests fail, no shards are written: run the command again, or leave out
with --drop_failed what they were for. Texts that the filter refuses (docs/method.md section
8.3) are dropped, and counted in the manifest.
"""

from pathlib import Path

from absl import app, flags

from alignuser_jax.personas import read_personas
from alignuser_jax.runs.backend import METRICS_FILE, open_backend
from alignuser_jax.runs.flags import (
    backend_choice,
    backend_flags,
    experiment_flags,
    open_experiment,
)
from alignuser_jax.runs.flags import run as run_program
from alignuser_jax.runs.stages import ShardOptions, build_stage
from alignuser_jax.shards import read_manifest

FLAGS = flags.FLAGS
experiment_flags()
backend_flags(adapter="")
flags.DEFINE_string("out", None, "Folder of the shards.", required=True)
flags.DEFINE_integer("k", None, "Alternatives per rating (default: the experiment's).")
flags.DEFINE_integer("limit", None, "Reflections, at most (default: the experiment's).")
flags.DEFINE_integer("reflection_tokens", 400, "Tokens of one reflection, at most.")
flags.DEFINE_bool("drop_failed", False, "Leave out reflections whose request failed.")
flags.DEFINE_string("personas", None, "File of personas that replace the computed ones.")
flags.DEFINE_bool("shuffle_reflections", False, "Permute the reflections (the ablation).")


def main() -> None:
    out = Path(FLAGS.out)
    for name in ("k", "limit"):
        if FLAGS[name].value is not None and FLAGS[name].value < 1:
            raise app.UsageError(f"--{name}={FLAGS[name].value}: expected 1 or more")
    choice = backend_choice(out / "answers", reply_tokens=FLAGS.reflection_tokens)
    experiment, dataset, run = open_experiment()
    settings = experiment.stage("align")[1]
    limits = settings.limits if FLAGS.limit is None else {"reflection": FLAGS.limit}
    changes = {
        "tasks": ("reflection",),
        "limits": limits,
        "k": settings.k if FLAGS.k is None else FLAGS.k,
        "reflection_tokens": FLAGS.reflection_tokens,
        "shuffle_reflections": FLAGS.shuffle_reflections,
    }
    personas = read_personas(FLAGS.personas) if FLAGS.personas else None
    options = ShardOptions(out, changes, personas, FLAGS.drop_failed)
    with open_backend(
        choice, experiment, dataset, run, say=print, metrics=out / METRICS_FILE
    ) as (backend, _):
        folder = build_stage(
            experiment, dataset, run, "align", options, writer=backend, say=print
        )
    manifest = read_manifest(folder)
    for reason, count in manifest["reflections_dropped"].items():
        print(f"dropped, {reason}: {count}")
    count = sum(entry["count"] for entry in manifest["tasks"].values())
    print(f"{count} examples by {manifest['policy_id']}; shards: {folder}")


if __name__ == "__main__":
    run_program(main)
