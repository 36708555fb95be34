"""Let language-model agents shop, in the shop of a log or in a generated one.

    alignuser visit-shop --config=configs/qwen3_8b.py --dataset=OPERA --out=runs/visits \\
        --server=http://HOST:8000/v1 --model=Qwen/Qwen3-8B

A dataset with sessions (OPeRA) is the shop: pages come from its training sessions, else from
rules, else the model writes them. For any other dataset its users shop in a generated shop
(SYNTHETIC; --goals=DIR takes WebShop's goals). Each page, action and purchase is an event in
OUT/events.parquet. Killed and started again, it goes on.

Pages are long: conversations have --context_tokens, with the policy of --run too.
"""

import os
from collections import Counter
from pathlib import Path

import numpy as np
from absl import app, flags

from alignuser_jax.datasets.sessions import sessions
from alignuser_jax.personas import read_personas
from alignuser_jax.randomness import stable_key
from alignuser_jax.runs.backend import METRICS_FILE, open_backend, with_room
from alignuser_jax.runs.flags import (
    backend_choice,
    backend_flags,
    experiment_flags,
    open_experiment,
)
from alignuser_jax.runs.flags import run as run_program
from alignuser_jax.runs.visit_shop import SHOP_AUTOMATA, ShopSettings, visit_shop
from alignuser_jax.views import simulation_view
from alignuser_jax.world import (
    CatalogueConfig,
    GeneratedShop,
    WebShop,
    build_index,
    logged_steps,
    make_catalogue,
)
from alignuser_jax.world.generated_shop.goals import read_shop_goals

FLAGS = flags.FLAGS
experiment_flags(run_required=False)
backend_flags()
flags.DEFINE_string("out", None, "Folder of these visits.", required=True)
flags.DEFINE_integer("agents", None, "How many users shop (default: all).", lower_bound=1)
flags.DEFINE_integer("max_actions", 60, "Actions of a visit, at most.", lower_bound=1)
flags.DEFINE_string("goals", None, "Folder of WebShop's goals, for the generated shop.")
flags.DEFINE_integer("catalogue_goals", 120, "Goals in the generated shop.", lower_bound=1)
flags.DEFINE_string("personas", None, "File of personas over those computed from the log.")
flags.DEFINE_integer("seed", 0, "Seed of the agents' randomness.")


def open_shop(dataset):
    """(the shop, what it is)."""
    if "sessions" in dataset.extra_tables:
        if FLAGS.goals:
            raise app.UsageError(f"--goals is for the generated shop; {dataset.name} is a log")
        index = build_index(logged_steps(sessions(dataset, "train")))
        return WebShop(index), {"kind": "log", "sessions": len(index.session_ids)}
    goals = read_shop_goals(FLAGS.goals) if FLAGS.goals else None
    made = make_catalogue(goals, CatalogueConfig(goals=FLAGS.catalogue_goals))
    name = f"{stable_key(made.products, made.goals):016x}"
    return GeneratedShop(made), {"kind": "generated", "catalogue": name, "source": made.source}


def counted(kinds):
    return ", ".join(f"{name} {n}" for name, n in Counter(kinds).most_common())


def main() -> None:
    choice = backend_choice()
    experiment, dataset, run = open_experiment()
    if choice.needs_run:
        experiment = with_room(experiment, FLAGS.context_tokens, **SHOP_AUTOMATA)
    shop, about = open_shop(dataset)
    users = dataset.user_ids[: FLAGS.agents]
    view = simulation_view(dataset, read_personas(FLAGS.personas) if FLAGS.personas else None)
    settings = ShopSettings(users, about, FLAGS.max_actions, FLAGS.seed)
    with open_backend(
        choice, experiment, dataset, run, say=print, metrics=Path(FLAGS.out) / METRICS_FILE
    ) as (backend, experiment):
        table = visit_shop(experiment, dataset, view, shop, backend, FLAGS.out, settings)
    events = table.to_pylist()
    of_kind = {
        kind: [event for event in events if event["kind"] == kind]
        for kind in ("page", "act", "purchase", "exit", "failure")
    }
    if not of_kind["exit"]:
        why = of_kind["failure"][0]["text"] if of_kind["failure"] else "there are no users"
        raise RuntimeError(f"no agent visited the shop: {why}")
    lengths = [event["value"] for event in of_kind["exit"]]
    bought = len(of_kind["purchase"])
    print(backend.note)
    if about["kind"] == "generated":
        print(f"a generated shop, SYNTHETIC ({about['source']})")
    print(
        f"{len(of_kind['exit'])} visits, {bought} with a purchase; pages a visit: mean "
        f"{np.mean(lengths):.1f}, median {np.median(lengths):.0f}, most {max(lengths):.0f}"
    )
    if about["kind"] == "log":
        logged = list(sessions(dataset, "train"))
        human = sum(session.outcome == "purchase" for session in logged)
        steps = np.mean([len(session.steps) for session in logged])
        print(
            f"in the log: {len(logged)} training sessions, {human} with a purchase, "
            f"{steps:.1f} steps on average"
        )
    print(f"pages by kind: {counted(event['text'] for event in of_kind['page'])}")
    print(f"pages made by: {counted(event['item_id'] for event in of_kind['page'])}")
    clicks = counted(event["item_id"] or "no click" for event in of_kind["act"])
    print(f"actions by click type: {clicks}")
    print(f"failures: {len(of_kind['failure'])} of {len(events)} events")
    for text in dict.fromkeys(event["text"] for event in of_kind["failure"][:3]):
        print(f"failed: {text}")
    print(f"events: {os.path.join(FLAGS.out, 'events.parquet')}")


if __name__ == "__main__":
    run_program(main)
