"""Let a model write the reflections on human ratings and their alternatives, as shards.

    alignuser generate-counterfactuals --config=configs/qwen3_8b.py --dataset=runs/ml-1m/data \
        --run=runs/ml-1m --out=runs/ml-1m/shards/generated --k=4 --limit=20000

The writer is the policy's own base model, the policy with --adapter, or a model behind a
--server; it draws the alternatives too, where there are more than --k. With --reflector another
model writes the reflections. Answers are kept in OUT/answers and not asked for again. How many
are kept is shown while they are written, and a model that writes too few is given up
(docs/reflections.md). If requests fail, no shards are written: run the command again, or leave
out with --drop_failed what they were for. Texts that the filter refuses (docs/method.md section
8.3) are dropped, and counted in the manifest.
"""

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from absl import app, flags

from alignuser_jax.personas import read_personas
from alignuser_jax.records import RATINGS
from alignuser_jax.runs.backend import METRICS_FILE, BackendChoice, open_backend
from alignuser_jax.runs.flags import (
    backend_choice,
    backend_flags,
    experiment_flags,
    open_experiment,
    reflector_flags,
)
from alignuser_jax.runs.flags import run as run_program
from alignuser_jax.runs.reflector import open_reflector
from alignuser_jax.runs.stages import ShardOptions, build_stage
from alignuser_jax.shards import read_manifest

FLAGS = flags.FLAGS
REPLY_TOKENS = 512
"""Tokens of a question with worked examples, and of its reply, beyond those of a session."""
experiment_flags()
backend_flags(adapter="")
reflector_flags()
flags.DEFINE_string("out", None, "Folder of the shards.", required=True)
flags.DEFINE_integer("k", None, "Alternatives per rating (default: the experiment's).")
flags.DEFINE_integer("limit", None, "Reflections, at most (default: the experiment's).")
flags.DEFINE_integer("line_tokens", None, "Tokens of one tag's text, at most (default: 40).")
flags.DEFINE_integer("retries", None, "How often a refused one is asked for again (2).")
flags.DEFINE_bool("drop_failed", False, "Leave out reflections whose request failed.")
flags.DEFINE_string("personas", None, "File of personas that replace the computed ones.")
flags.DEFINE_bool("shuffle_reflections", False, "Permute the reflections (the ablation).")


def main() -> None:
    out = Path(FLAGS.out)
    for name in ("k", "limit"):
        if FLAGS[name].value is not None and FLAGS[name].value < 1:
            raise app.UsageError(f"--{name}={FLAGS[name].value}: expected 1 or more")
    experiment, dataset, run = open_experiment()
    settings = experiment.stage("align")[1]
    reflections = {
        name: FLAGS[name].value
        for name in ("line_tokens", "retries", "least_kept")
        if FLAGS[name].value is not None
    }
    limits = settings.limits if FLAGS.limit is None else {"reflection": FLAGS.limit}
    changes = {
        "tasks": ("reflection",),
        "limits": limits,
        "k": settings.k if FLAGS.k is None else FLAGS.k,
        "reflections": replace(settings.reflections, **reflections),
        "shuffle_reflections": FLAGS.shuffle_reflections,
    }
    metrics = out / METRICS_FILE
    personas = read_personas(FLAGS.personas) if FLAGS.personas else None
    options = ShardOptions(out, changes, personas, FLAGS.drop_failed)
    draws = changes["k"] < len(RATINGS) - 1  # else every other rating is an alternative
    choice = _choice(out) if draws or not FLAGS.reflector else None
    with ExitStack() as opened:
        reflector = writer = None
        if FLAGS.reflector:
            arguments = FLAGS.reflector, experiment, out / "answers"
            served = FLAGS.reflector_model
            reflector = opened.enter_context(
                open_reflector(*arguments, served_model=served, say=print)
            )
        if choice:
            writer = opened.enter_context(
                open_backend(choice, experiment, dataset, run, say=print, metrics=metrics)
            ).backend
        folder = build_stage(
            experiment,
            dataset,
            run,
            "align",
            options,
            writer=writer,
            reflector=reflector,
            say=print,
        )
    manifest = read_manifest(folder)
    for reason, count in manifest["reflections_dropped"].items():
        print(f"dropped, {reason}: {count}")
    count = sum(entry["count"] for entry in manifest["tasks"].values())
    by = manifest["labels"]["reflections"]
    print(f"{count} examples, {by} ({manifest['reflector']['model']}); shards: {folder}")


def _choice(out: Path) -> BackendChoice:
    """Who draws and, without a reflector, writes; the policy's answers are kept too."""
    choice = backend_choice(out / "answers", reply_tokens=REPLY_TOKENS)
    if choice.needs_run and not choice.record:
        choice = replace(choice, record=str(out / "answers" / "policy.log"))
    return choice


if __name__ == "__main__":
    run_program(main)
