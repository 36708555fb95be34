r"""Let language-model agents shop, in the shop of a log or in a generated one.

    alignuser visit-shop --config=configs/qwen3_8b.py --dataset=OPERA --out=runs/visits \
        --server=http://HOST:8000/v1 --model=Qwen/Qwen3-8B

A dataset with sessions (OPeRA) is the shop: pages come from its training sessions, else from
rules, else the model writes them. For any other dataset its users shop in a generated shop
(SYNTHETIC; --goals=DIR takes WebShop's goals). Each page, action and purchase is an event in
OUT/events.parquet. Killed and started again, it goes on.

Pages are long: conversations have --context_tokens, with the policy of --run too.
"""

import os
from pathlib import Path

from absl import flags

from alignuser_jax.personas import read_personas
from alignuser_jax.runs.backend import METRICS_FILE, open_backend, with_room
from alignuser_jax.runs.flags import (
    backend_choice,
    backend_flags,
    experiment_flags,
    open_experiment,
)
from alignuser_jax.runs.flags import run as run_program
from alignuser_jax.runs.visit_shop import (
    SHOP_AUTOMATA,
    ShopSettings,
    open_shop,
    summary,
    visit_shop,
)
from alignuser_jax.views import simulation_view

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


def main() -> None:
    choice = backend_choice()
    experiment, dataset, run = open_experiment()
    if choice.needs_run:
        experiment = with_room(experiment, FLAGS.context_tokens, **SHOP_AUTOMATA)
    shop, about = open_shop(dataset, FLAGS.goals, FLAGS.catalogue_goals)
    users = dataset.user_ids[: FLAGS.agents]
    view = simulation_view(dataset, read_personas(FLAGS.personas) if FLAGS.personas else None)
    settings = ShopSettings(users, about, FLAGS.max_actions, FLAGS.seed)
    with open_backend(
        choice, experiment, dataset, run, say=print, metrics=Path(FLAGS.out) / METRICS_FILE
    ) as (backend, experiment):
        events = visit_shop(experiment, dataset, view, shop, backend, FLAGS.out, settings)
    print("\n".join([backend.note, *summary(events, dataset, about)]))
    print(f"events: {os.path.join(FLAGS.out, 'events.parquet')}")


if __name__ == "__main__":
    run_program(main)
