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
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from absl import app, flags

from alignuser_jax.evaluation import suite
from alignuser_jax.evaluation.protocol import EvaluationConfig, OpenPolicy, Subject
from alignuser_jax.personas import read_personas
from alignuser_jax.runs.backend import METRICS_FILE, open_backend
from alignuser_jax.runs.flags import (
    backend_choice,
    backend_flags,
    experiment_flags,
    open_experiment,
)
from alignuser_jax.runs.flags import run as run_program
from alignuser_jax.sampling import RequestsFailed
from alignuser_jax.shards import read_examples
from alignuser_jax.views import policy_and_agent_users

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
flags.DEFINE_integer("next_states", 200, "Held-out transitions of the next-state test.")
flags.DEFINE_string("personas", None, "File of personas over those computed from the log.")
flags.DEFINE_integer("seed", 0, "Seed of draws and bootstraps.")

SETTINGS = ("cap", "reasoning_samples", "reasoning_tokens", "next_states", "seed")


def adapters() -> dict[str, str | None]:
    """The adapter folder of every policy, by the policy's name."""
    if not FLAGS.adapters:
        return {"agents": None}
    pairs = [text.partition("=") for text in FLAGS.adapters]
    folders = {name: folder for name, equals, folder in pairs if name and equals}
    if len(folders) < len(pairs):
        raise app.UsageError(f"--adapters={FLAGS.adapters}: expected different NAME=FOLDER")
    return folders


def held_out_transitions(run: Path):
    examples = read_examples(run / "shards" / "align" / "validation")
    return (example for example in examples if example.task == "world_model")


def main() -> None:
    try:
        protocols = suite.choose(FLAGS.what)
    except ValueError as error:
        raise app.UsageError(f"--what: {error}") from error
    needing = [p.name for p in protocols if "transitions" in p.needs]
    if not FLAGS.run and (needing or not FLAGS.out):
        without = f", and --what without {', '.join(needing)}" if needing else ""
        raise app.UsageError(f"without --run: give --out{without}")
    config = EvaluationConfig(**{name: FLAGS[name].value for name in SETTINGS})
    out = Path(FLAGS.out or FLAGS.run)
    choice, folders = backend_choice(out / "answers"), adapters()
    experiment, dataset, run = open_experiment()
    agents = policy_and_agent_users(dataset, experiment.agents, experiment.seed)[1]
    codes = {user: code for code, user in enumerate(dataset.user_ids)}

    @contextmanager
    def opened(name: str, protocol: str, reply: int):
        """The policy's back end; answers of each are recorded in a file of their own."""
        part = choice.of_part(protocol if name == "agents" else f"{protocol}.{name}")
        part = replace(part, adapter=folders[name], reply_tokens=reply)
        with open_backend(
            part, experiment, dataset, run, say=print, metrics=out / METRICS_FILE
        ) as (backend, fitted):
            yield OpenPolicy(backend, fitted.site, fitted.session)

    subject = Subject(
        dataset,
        np.array([codes[user] for user in agents[: FLAGS.agents]]),
        tuple(folders),
        opened,
        partial(held_out_transitions, run) if run else None,
        read_personas(FLAGS.personas) if FLAGS.personas else None,
        config,
    )
    out.mkdir(parents=True, exist_ok=True)
    parts, failures, errors = [experiment.note], [], []
    for outcome in suite.run_protocols(protocols, subject):
        parts.append(outcome.text)
        failures += outcome.failures
        errors += [outcome.error] if outcome.error else []
        print(f"\n{outcome.text}\n", flush=True)
        (out / "evaluation.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    if failures:
        print("\n".join(["NOT ACCEPTED:", *failures]))
    if errors:
        made = f"{len(errors)} of {len(protocols)} tests are not made"
        raise RequestsFailed("\n".join([*errors, made]))
    if failures:
        sys.exit(1)
    print(f"accepted; tables: {out}/evaluation.md")


if __name__ == "__main__":
    run_program(main)
