"""Let trained agents visit every arm's recommender; the event table is the result.

    alignuser simulate --config=configs/small.py --dataset=runs/ml-1m/data --run=runs/ml-1m \
        --arms=random=runs/ml-1m/random,als=runs/ml-1m/als --agents=200 --out=runs/ml-1m/ab

An arm is NAME=FOLDER of a saved recommender, NAME=http://… (cornac+http://…), NAME=FILE of
recommendations, NAME=module:attr or NAME=plugin; NAME@1=... is an independent repetition (for
A/A tests). Killed and started again, it goes on; the table comes out the same.
What the back end did (prefix reuse, seconds) is printed and added to OUT/metrics.jsonl.

--refresh=frozen ranks once per session, from the history; session (the default) sends the live
session along; retrain fits the recommenders again between the visits of --rounds.

    alignuser simulate --config=… --dataset=… --arms=… --out=… \
        --server=http://HOST:8000/v1 --model=Qwen/Qwen3-8B [--record=answers.log]

lets a model behind an OpenAI-compatible server act instead, without a --run.
"""

import os
from pathlib import Path

from absl import app, flags

from alignuser_jax.personas import read_personas
from alignuser_jax.recommenders import load_recommender
from alignuser_jax.runs.backend import METRICS_FILE, open_backend
from alignuser_jax.runs.experiment import HORIZON
from alignuser_jax.runs.flags import (
    backend_choice,
    backend_flags,
    experiment_flags,
    open_experiment,
)
from alignuser_jax.runs.flags import run as run_program
from alignuser_jax.runs.folder import Stopwatch
from alignuser_jax.runs.simulate import SimulationSettings, failures, simulate
from alignuser_jax.views import policy_and_agent_users, simulation_view

FLAGS = flags.FLAGS
experiment_flags(run_required=False)
backend_flags()
flags.DEFINE_string("out", None, "Folder of this simulation.", required=True)
flags.DEFINE_list(
    "arms", None, "NAME=FOLDER, URL, file or module:attr, two or more.", required=True
)
flags.DEFINE_integer("agents", None, "How many of the experiment's agents (default all).")
flags.DEFINE_integer("horizon", HORIZON, "Pages of every visit.")
flags.DEFINE_bool("show_means", True, "Show items' mean ratings on the pages.")
flags.DEFINE_string("personas", None, "File of personas over those computed from the log.")
flags.DEFINE_integer("seed", 0, "Seed of the agents' randomness.")
flags.DEFINE_enum(
    "refresh", "session", ("frozen", "session", "retrain"), "When recommenders learn."
)
flags.DEFINE_integer("rounds", 1, "Visits of every agent to every arm.", lower_bound=1)
flags.DEFINE_integer("shuffle", None, "Start the agents in another order (changes nothing).")


def main() -> None:
    choice = backend_choice()
    experiment, dataset, run = open_experiment()
    arms, numbers = {}, {}
    for text in FLAGS.arms:
        name, equals, spec = text.partition("=")
        if not equals or not name or name in arms:
            raise app.UsageError(
                f"--arms: {text!r} is not a new NAME=FOLDER, URL, file or module:attr"
            )
        arms[name] = load_recommender(spec)
        numbers[name] = int(name.partition("@")[2] or 0)
    users = policy_and_agent_users(dataset, experiment.agents, experiment.seed)[1]
    if FLAGS.agents is not None and not 2 <= FLAGS.agents <= len(users):
        raise app.UsageError(
            f"--agents={FLAGS.agents}: {len(users)} users are kept out of training: "
            f"ask for 2 to {len(users)}"
        )
    personas = read_personas(FLAGS.personas) if FLAGS.personas else None
    view = simulation_view(dataset, personas)
    if personas:
        print(personas.told(users[: FLAGS.agents]))
    settings = SimulationSettings(
        users[: FLAGS.agents],
        seed=FLAGS.seed,
        horizon=FLAGS.horizon,
        show_means=FLAGS.show_means,
        visit_numbers=numbers,
        shuffle=FLAGS.shuffle,
        refresh=FLAGS.refresh,
        rounds=FLAGS.rounds,
    )
    watch = Stopwatch()
    with (
        open_backend(
            choice, experiment, dataset, run, say=print, metrics=Path(FLAGS.out) / METRICS_FILE
        ) as (backend, experiment),
        watch.stage("simulation"),
    ):
        events = simulate(experiment, dataset, view, arms, backend, FLAGS.out, settings)
    pages = len(events.group_by(["arm", "user_id", "session", "page"]).aggregate([]))
    seconds = watch.seconds["simulation"]
    print(backend.note)
    print(f"{pages} pages in {seconds:.0f} s ({pages / seconds:.1f} pages/s)")
    print(f"invalid or failed actions: {failures(events)} of {len(events)} events")
    print(f"events: {os.path.join(FLAGS.out, 'events.parquet')}")


if __name__ == "__main__":
    run_program(main)
