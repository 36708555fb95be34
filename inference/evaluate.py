"""Test how far to believe a policy: ratings, preferences and next states against held-out logs.

    alignuser evaluate --config=configs/small.py --dataset=runs/ml-1m/data --run=runs/ml-1m \
        --what=ratings,preference,next_state
    alignuser evaluate ... --what=ratings --reasoning_samples=8 --out=runs/ml-1m/ablation \
        --adapters=imitation@0=FOLDER,imitation@1=FOLDER,reflection@0=FOLDER,...

Baselines fitted on the same data stand in the same tables; policies NAME@SEED are also
averaged over their seeds and compared with the first name. The exit code is 1 if the first
policy fails the acceptance of the rating test (below user mean and item mean with intervals
that exclude 0; no leak). With --server --model=NAME a served model is tested instead. Servers
report no distributions, so its ratings are draws: --reasoning_samples=8 takes the mean of
eight.
--record and --replay name files by what is tested: FILE.ratings, FILE.preference, …; what a
server answered is kept in OUT/answers also without --record. If requests fail, that test is
left out, the others are made, and the exit code is 2: run the same command again to ask only
for what is missing.
"""

import sys
from functools import partial
from pathlib import Path

from absl import app, flags

from alignuser_jax.evaluation import suite
from alignuser_jax.evaluation.protocol import EvaluationConfig
from alignuser_jax.personas import read_personas
from alignuser_jax.runs.evaluate import TABLES_FILE, EvaluationSettings, evaluate
from alignuser_jax.runs.flags import (
    backend_choice,
    backend_flags,
    experiment_flags,
    open_experiment,
)
from alignuser_jax.runs.flags import run as run_program
from alignuser_jax.sampling import RequestsFailed

FLAGS = flags.FLAGS
experiment_flags(run_required=False)
backend_flags(adapter_flag=False)
flags.DEFINE_list("what", list(suite.NAMES), f"Some of {', '.join(suite.NAMES)}.")
flags.DEFINE_list("adapters", [], "NAME=FOLDER of other policies; NAME= is the first stage.")
flags.DEFINE_string("out", None, "Folder of the tables (default: the run's).")
flags.DEFINE_integer("agents", 1000, "Users of the rating and preference tests, at most.")
flags.DEFINE_integer("cap", 20, "Ratings per user, at most.")
flags.DEFINE_integer("reasoning_samples", 0, "Also rate after reasoning, this many samples.")
flags.DEFINE_integer("reasoning_tokens", 64, "Tokens of that reasoning, at most.")
flags.DEFINE_bool("swap_history", False, "Also rate with another user's history: a control.")
flags.DEFINE_integer("next_states", 200, "Held-out transitions of the next-state test.")
flags.DEFINE_string("personas", None, "File of personas that replace the computed ones.")
flags.DEFINE_integer("seed", 0, "Seed of draws and bootstraps.")

SETTINGS = (
    *("cap", "reasoning_samples", "reasoning_tokens", "swap_history"),
    *("next_states", "seed"),
)


def adapters() -> dict[str, str | None]:
    """The adapter folder of every policy, by the policy's name."""
    if not FLAGS.adapters:
        return {"agents": None}
    pairs = [text.partition("=") for text in FLAGS.adapters]
    folders = {name: folder for name, equals, folder in pairs if name and equals}
    if len(folders) < len(pairs):
        raise app.UsageError(f"--adapters={FLAGS.adapters}: expected different NAME=FOLDER")
    return folders


def main() -> None:
    try:
        protocols = suite.choose(FLAGS.what)
    except ValueError as error:
        raise app.UsageError(f"--what: {error}") from error
    needing = [p.name for p in protocols if "transitions" in p.needs]
    if not FLAGS.run and (needing or not FLAGS.out):
        without = f", and --what without {', '.join(needing)}" if needing else ""
        raise app.UsageError(f"without --run: give --out{without}")
    out = Path(FLAGS.out or FLAGS.run)
    choice = backend_choice(out / "answers")
    config = EvaluationConfig(**{name: FLAGS[name].value for name in SETTINGS})
    personas = read_personas(FLAGS.personas) if FLAGS.personas else None
    settings = EvaluationSettings(out, adapters(), FLAGS.agents, personas, config)
    say = partial(print, flush=True)
    outcomes = evaluate(*open_experiment(), choice, protocols, settings, say)
    accepting = [outcome for outcome in outcomes if outcome.failures is not None]
    failures = [failure for outcome in accepting for failure in outcome.failures or ()]
    errors = [outcome.error for outcome in outcomes if outcome.error]
    if failures:
        print("\n".join(["NOT ACCEPTED:", *failures]))
    if errors:
        made = f"{len(errors)} of {len(protocols)} tests are not made"
        raise RequestsFailed("\n".join([*errors, made]))
    if failures:
        sys.exit(1)
    verdict = (
        "accepted" if accepting else "neither accepted nor refused: no rating test was made"
    )
    print(f"{verdict}; tables: {out}/{TABLES_FILE}")


if __name__ == "__main__":
    run_program(main)
