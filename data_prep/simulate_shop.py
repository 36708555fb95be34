"""Simulate scripted shoppers in the generated shop, and compare their sessions with human ones.

    alignuser simulate-shop --out=runs/shop [--goals=DIR] [--compare=UCI.csv]

--goals names a folder with WebShop's files (human_goals, goal_query_map, items_ins_v2_1000);
the products are synthetic with and without it. Writes `sessions.jsonl`, one session per line,
in OPeRA's wire form. The same command again goes on where it stopped, and with more --sessions
adds to them. --compare prints page counts and purchase rates beside those of UCI's
online_shoppers_intention.csv. --shards also writes epsilon-greedy rollouts to a folder, as
world-model shards to train on (docs/method.md section 7; the greedy actions are the scripted
shopper's).
"""

from collections.abc import Iterable
from pathlib import Path

from absl import flags
from tqdm import tqdm

from alignuser_jax.alignment.rollouts import RolloutConfig
from alignuser_jax.alignment.shop_rollouts import write_shop_rollouts
from alignuser_jax.runs.flags import run as run_program
from alignuser_jax.world.generated_shop.catalogue import CatalogueConfig, make_catalogue
from alignuser_jax.world.generated_shop.goals import read_shop_goals
from alignuser_jax.world.generated_shop.session_shapes import (
    compare_shapes,
    read_online_shoppers,
)
from alignuser_jax.world.generated_shop.sessions import write_sessions
from alignuser_jax.world.generated_shop.shop import GeneratedShop

FLAGS = flags.FLAGS
flags.DEFINE_string("out", None, "Folder to write into.", required=True)
flags.DEFINE_string("goals", None, "Folder of WebShop's goals (default: generated goals).")
flags.DEFINE_string("compare", None, "UCI's online_shoppers_intention.csv, or .csv.gz.")
flags.DEFINE_integer("sessions", 500, "Sessions to simulate.", lower_bound=1)
flags.DEFINE_integer("catalogue_goals", 120, "Goals in the shop.", lower_bound=1)
flags.DEFINE_integer("seed", 0, "Names the catalogue, the goals and the shoppers.")
flags.DEFINE_string("shards", None, "Folder of world-model shards of rollouts (default: none).")
flags.DEFINE_integer("episodes", 1000, "Rollouts in the shards.", lower_bound=1)
flags.DEFINE_float("epsilon_start", 1.0, "Share of random actions in the first rollout.", 0, 1)
flags.DEFINE_float("epsilon_end", 0.1, "Share of random actions in the last.", 0, 1)
flags.DEFINE_integer("max_actions", 30, "Actions per rollout, at most.", lower_bound=1)
flags.DEFINE_bool("progress", True, "Show progress bars.")


def main() -> None:
    human = read_online_shoppers(FLAGS.compare) if FLAGS.compare else None
    goals = read_shop_goals(FLAGS.goals) if FLAGS.goals else None
    config = CatalogueConfig(goals=FLAGS.catalogue_goals, seed=FLAGS.seed)
    shop = GeneratedShop(make_catalogue(goals, config))

    def with_bar(things: Iterable, done: int, total: int, unit: str) -> Iterable:
        return tqdm(things, initial=done, total=total, unit=unit, disable=not FLAGS.progress)

    def progress(sessions: Iterable, done: int) -> Iterable:
        return with_bar(sessions, done, FLAGS.sessions, "session")

    if FLAGS.shards and Path(FLAGS.shards).resolve() == Path(FLAGS.out).resolve():
        raise ValueError(f"--shards={FLAGS.shards} is also --out: give another folder")
    shapes = write_sessions(shop, FLAGS.out, FLAGS.sessions, FLAGS.seed, progress)
    where = f"{FLAGS.out}/sessions.jsonl"
    print(f"{FLAGS.sessions} synthetic sessions ({shop.catalogue.source}): {where}")
    if FLAGS.shards:
        schedule = RolloutConfig(
            FLAGS.episodes, FLAGS.epsilon_start, FLAGS.epsilon_end, FLAGS.max_actions
        )
        manifest = write_shop_rollouts(
            shop,
            FLAGS.shards,
            schedule,
            FLAGS.seed,
            lambda episodes: with_bar(episodes, 0, FLAGS.episodes, "rollout"),
        )
        count = manifest["tasks"]["world_model"]["count"]
        print(f"{count} synthetic transitions of {FLAGS.episodes} rollouts: {FLAGS.shards}")
    if human is not None:
        print(compare_shapes(human, shapes))


if __name__ == "__main__":
    run_program(main)
