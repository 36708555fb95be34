"""Turn a dataset into the training shards of one stage: visits, world model, reflections.

    alignuser build-shards --config=configs/small.py --dataset=runs/ml-1m/data \
        --run=runs/ml-1m --stage=align
    alignuser build-shards ... --stage=align --out=runs/ml-1m/shards/shuffled \
        --shuffle_reflections --exposure=uniform=1

    alignuser build-shards ... --stage=align --reflector=teacher.gguf

Only ratings of users who do not become agents are used. Reflections are written by template
(and labelled so), or by another model, the --reflector; `alignuser generate-counterfactuals`
lets the policy's own model write them. What a reflector writes is kept in answers/ of the
shards' folder, so the same command goes on where it was interrupted (docs/reflections.md).
Shards with
other settings than the stage's need a folder of their own, --out. Shards that exist are not
built again; if they were built with other settings, the command is refused.
"""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from absl import app, flags

from alignuser_jax.alignment import ExposureMixture
from alignuser_jax.alignment.config import TASKS, TRANSITION_SOURCES
from alignuser_jax.language.fitting import fit_lines
from alignuser_jax.personas import read_personas
from alignuser_jax.runs.flags import (
    experiment_flags,
    numbers,
    open_experiment,
    reflector_flags,
)
from alignuser_jax.runs.flags import run as run_program
from alignuser_jax.runs.reflector import open_reflector
from alignuser_jax.runs.stages import ShardOptions, build_stage
from alignuser_jax.shards import read_manifest

FLAGS = flags.FLAGS
experiment_flags()
reflector_flags()
flags.DEFINE_enum("stage", "align", ["pretrain", "align"], "The stage to build shards for.")
flags.DEFINE_string("out", None, "Folder of the shards (default: the stage's in the run).")
flags.DEFINE_list("tasks", None, f"Some of {', '.join(TASKS)}.")
flags.DEFINE_list("limits", None, "Examples per task, at most: visit=1000,world_model=500.")
flags.DEFINE_list("sources", None, f"World model: some of {', '.join(TRANSITION_SOURCES)}.")
flags.DEFINE_list("exposure", None, "Page filler: weights of uniform, popularity, model_top.")
flags.DEFINE_integer("k", None, "Alternatives per human step; 0 for plain imitation.")
flags.DEFINE_integer("seed", None, "Names every draw.")
flags.DEFINE_integer("ratings_per_user", None, "Target ratings of one user, at most.")
flags.DEFINE_integer("visits_per_user", None, "Visits of one user, at most.")
flags.DEFINE_float("validation_share", None, "Share of the users held out for validation.")
flags.DEFINE_float("profile_share", None, "Share of a user's train part that prompts show.")
flags.DEFINE_string("personas", None, "File of personas that replace the computed ones.")
flags.DEFINE_bool("shuffle_reflections", None, "Permute the reflections (the ablation).")

PLAIN = (
    *("k", "seed", "ratings_per_user", "visits_per_user", "validation_share"),
    *("profile_share", "shuffle_reflections"),
)
"""Flags that are fields of `BuildConfig`, with the same values."""


def main() -> None:
    changes = {name: FLAGS[name].value for name in PLAIN if FLAGS[name].value is not None}
    changes |= {
        name: tuple(FLAGS[name].value) for name in ("tasks", "sources") if FLAGS[name].value
    }
    if FLAGS.limits is not None:
        changes["limits"] = numbers("limits", int)
    weights = {"uniform": 0.0, "popularity": 0.0, "model_top": 0.0}
    exposure = numbers("exposure", float) if FLAGS.exposure is not None else {}
    if unknown := sorted(exposure.keys() - weights.keys()):
        raise app.UsageError(f"--exposure has {unknown}; expected some of {', '.join(weights)}")
    if (changes or exposure or FLAGS.personas) and not FLAGS.out:
        names = [*changes, *(["exposure"] if exposure else [])]
        names += ["personas"] if FLAGS.personas else []
        raise app.UsageError(f"{', '.join(names)}: not the stage's settings, so give --out")
    experiment, dataset, run = open_experiment()
    if exposure:
        visits = experiment.stage(FLAGS.stage)[1].visits
        mixture = ExposureMixture(**{**weights, **exposure})
        changes["visits"] = replace(visits, exposure=mixture)
    personas = read_personas(FLAGS.personas) if FLAGS.personas else None
    if FLAGS.least_kept is not None:
        settings = experiment.stage(FLAGS.stage)[1].reflections
        changes["reflections"] = replace(settings, least_kept=FLAGS.least_kept)
    out = Path(FLAGS.out) if FLAGS.out else run / "shards" / FLAGS.stage
    reflecting = nullcontext()
    if FLAGS.reflector:
        reflecting = open_reflector(
            FLAGS.reflector,
            experiment,
            out / "answers",
            served_model=FLAGS.reflector_model,
            say=print,
        )
    with reflecting as reflector:
        folder = build_stage(
            experiment,
            dataset,
            run,
            FLAGS.stage,
            ShardOptions(Path(FLAGS.out) if FLAGS.out else None, changes, personas),
            reflector=reflector,
            say=print,
        )
    manifest = read_manifest(folder)
    for line in fit_lines(
        manifest, manifest["fit"]["counted_by"] or "", experiment.stage(FLAGS.stage)[0].seq_len
    ):
        print(line)
    for label, value in manifest["labels"].items():
        print(f"{label}: {value}")
    print(f"{manifest['users']} users; shards: {folder}")


if __name__ == "__main__":
    run_program(main)
