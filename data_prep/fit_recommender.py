"""Fit a recommender on a dataset, save it, and print its held-out hits beside two controls.

    alignuser fit-recommender --dataset=runs/ml-1m --kind=als --output=runs/als
    alignuser fit-recommender --dataset=runs/ml-1m --kind=shuffled --inner=runs/als \
        --output=runs/als-shuffled
"""

from absl import app, flags

from alignuser_jax.datasets import load_dataset
from alignuser_jax.programs import run as run_program
from alignuser_jax.recommenders import (
    ALS,
    Degraded,
    Popularity,
    Random,
    ShuffledAcrossUsers,
    draw_users,
    held_out_hits,
    held_out_table,
    load_recommender,
)

KINDS = ("random", "popularity", "als", "degraded", "shuffled")
FLAGS = flags.FLAGS
flags.DEFINE_string("dataset", None, "Folder of an imported dataset.", required=True)
flags.DEFINE_enum("kind", None, KINDS, "What to fit.", required=True)
flags.DEFINE_string("output", None, "Folder to save it in.", required=True)
flags.DEFINE_list("splits", ["train"], "Parts of the log to fit on.")
flags.DEFINE_string("inner", None, "What degraded and shuffled wrap: a folder or module:attr.")
flags.DEFINE_float("random_share", 0.5, "degraded: share of the slots that become random.")
flags.DEFINE_integer("factors", 64, "als: factors.")
flags.DEFINE_float("regularization", 0.05, "als: L2 regularization.")
flags.DEFINE_float("alpha", 1.0, "als: confidence of an interaction.")
flags.DEFINE_integer("iterations", 15, "als: iterations.")
flags.DEFINE_integer("seed", 0, "als, degraded, shuffled: seed.")
flags.DEFINE_integer("users", 1000, "Users to count held-out hits on; 0 to skip.")


def main() -> None:
    if FLAGS.kind in ("degraded", "shuffled") and not FLAGS.inner:
        raise app.UsageError(f"--kind={FLAGS.kind} needs --inner, the recommender to wrap")
    dataset = load_dataset(FLAGS.dataset)
    log = dataset.log.of_split(*FLAGS.splits)
    match FLAGS.kind:
        case "random":
            recommender = Random(dataset.item_ids)
        case "popularity":
            recommender = Popularity().fit(dataset, log)
        case "als":
            recommender = ALS(
                FLAGS.factors,
                FLAGS.regularization,
                FLAGS.alpha,
                FLAGS.iterations,
                FLAGS.seed,
            ).fit(dataset, log)
        case "degraded":
            inner = load_recommender(FLAGS.inner)
            recommender = Degraded(inner, FLAGS.random_share, dataset.item_ids, FLAGS.seed)
        case "shuffled":
            inner = load_recommender(FLAGS.inner)
            recommender = ShuffledAcrossUsers.of(inner, dataset, log, FLAGS.seed)
    recommender.save(FLAGS.output)
    print(f"{recommender.name} {recommender.version}, {len(log)} interactions: {FLAGS.output}")
    if FLAGS.splits != ["train"]:
        print("no held-out hits: it was fitted on more than train")
    elif FLAGS.users:
        users = draw_users(dataset, FLAGS.users)
        beside = (recommender, Popularity().fit(dataset, log), Random(dataset.item_ids))
        results = {r.name: held_out_hits(r, dataset, users) for r in beside}
        if dataset.synthetic:
            print("synthetic data:")
        print(held_out_table(results))


if __name__ == "__main__":
    run_program(main)
