"""Collect epsilon-greedy rollouts of the site as world-model shards (docs/method.md section 7).

    alignuser collect-rollouts --config=configs/small.py --dataset=runs/ml-1m/data \
        --run=runs/ml-1m --out=runs/ml-1m/shards/rollouts --episodes=1000 [--policy]

Epsilon falls linearly over the episodes. The greedy actions are those of the run's own policy
with --policy, of a model behind a --server, or else random ones (labelled so in the manifest).
A server's answers are kept in OUT/answers and not asked for again.
"""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from absl import app, flags

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
backend_flags()
flags.DEFINE_string("out", None, "Folder of the shards.", required=True)
flags.DEFINE_integer("episodes", None, "Episodes (default: the experiment's).")
flags.DEFINE_float("epsilon_start", None, "Share of random actions in the first episode.")
flags.DEFINE_float("epsilon_end", None, "Share of random actions after the last episode.")
flags.DEFINE_integer("max_actions", None, "Actions per episode, at most.")
flags.DEFINE_integer("limit", None, "Examples, at most (default: all).")
flags.DEFINE_bool("policy", False, "Let the run's trained policy take the greedy actions.")


def main() -> None:
    out = Path(FLAGS.out)
    choice = backend_choice(out / "answers")
    other = not choice.needs_run
    if FLAGS.policy and other:
        raise app.UsageError(
            "the greedy actions come from --policy, --server or --replay: give only one of them"
        )
    if not (FLAGS.policy or other) and (FLAGS.record or FLAGS.adapter is not None):
        raise app.UsageError(
            "--record and --adapter go with --policy: without it no model is asked"
        )
    experiment, dataset, run = open_experiment()
    names = ("episodes", "epsilon_start", "epsilon_end", "max_actions")
    schedule = {name: FLAGS[name].value for name in names if FLAGS[name].value is not None}
    changes = {
        "tasks": ("world_model",),
        "sources": ("rollout",),
        "limits": {} if FLAGS.limit is None else {"world_model": FLAGS.limit},
        "rollouts": replace(experiment.stage("align")[1].rollouts, **schedule),
    }
    with (
        open_backend(choice, experiment, dataset, run, say=print, metrics=out / METRICS_FILE)
        if FLAGS.policy or other
        else nullcontext((None, None))
    ) as (backend, _):
        options = ShardOptions(out, changes)
        folder = build_stage(
            experiment, dataset, run, "align", options, writer=backend, say=print
        )
    manifest = read_manifest(folder)
    print(f"{manifest['tasks']['world_model']['count']} transitions")
    print(f"greedy branch: {manifest['labels']['rollouts']}; shards: {folder}")


if __name__ == "__main__":
    run_program(main)
