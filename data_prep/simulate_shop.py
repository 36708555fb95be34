"""Simulate scripted shoppers in the generated shop and hold their sessions against human ones.

    alignuser simulate-shop --out=runs/shop [--goals=DIR] [--compare=UCI.csv]

--goals names a folder with WebShop's files (human_goals, goal_query_map, items_ins_v2_1000);
the products are synthetic with and without it. Writes `sessions.jsonl`, one session a line, in
OPeRA's wire form. --compare prints page counts and purchase rates beside those of UCI's
online_shoppers_intention.csv.
"""

import json
from pathlib import Path

from absl import flags
from tqdm import tqdm

from alignuser_jax.datasets.session_shapes import compare_shapes, read_online_shoppers
from alignuser_jax.datasets.shop_goals import read_shop_goals
from alignuser_jax.programs import run as run_program
from alignuser_jax.world.catalogue import CatalogueConfig, make_catalogue
from alignuser_jax.world.generated_shop import GeneratedShop
from alignuser_jax.world.shop_sessions import session_record, shapes_of, simulate_sessions

FLAGS = flags.FLAGS
flags.DEFINE_string("out", None, "Folder to write into.", required=True)
flags.DEFINE_string("goals", None, "Folder of WebShop's goals (default: generated goals).")
flags.DEFINE_string("compare", None, "UCI's online_shoppers_intention.csv, or .csv.gz.")
flags.DEFINE_integer("sessions", 500, "Sessions to simulate.", lower_bound=1)
flags.DEFINE_integer("catalogue_goals", 120, "Goals in the shop.", lower_bound=1)
flags.DEFINE_integer("seed", 0, "Names catalogue, goals and shoppers.")
flags.DEFINE_bool("progress", True, "Show how far it is.")


def main() -> None:
    human = read_online_shoppers(FLAGS.compare) if FLAGS.compare else None
    goals = read_shop_goals(FLAGS.goals) if FLAGS.goals else None
    config = CatalogueConfig(goals=FLAGS.catalogue_goals, seed=FLAGS.seed)
    shop = GeneratedShop(make_catalogue(goals, config))
    out = Path(FLAGS.out)
    out.mkdir(parents=True, exist_ok=True)
    path = out / "sessions.jsonl"
    part = path.with_suffix(".part")
    shapes = []
    with part.open("w", encoding="utf-8") as file:
        sessions = simulate_sessions(shop, FLAGS.sessions, FLAGS.seed)
        total, quiet = FLAGS.sessions, not FLAGS.progress
        for session in tqdm(sessions, total=total, unit="session", disable=quiet):
            file.write(json.dumps(session_record(session), ensure_ascii=False) + "\n")
            shapes.append(session.shape)
    part.replace(path)
    print(f"{FLAGS.sessions} synthetic sessions ({shop.catalogue.source}): {path}")
    if human is not None:
        print(compare_shapes(human, shapes_of(shapes)))


if __name__ == "__main__":
    run_program(main)
