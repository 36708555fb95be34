"""Fit a recommender on a dataset, save it, and print how it ranks held-out items.

    alignuser fit-recommender --dataset=runs/ml-1m --kind=lightgcn --output=runs/lightgcn
    alignuser fit-recommender --dataset=runs/ml-1m --kind=shuffled --inner=runs/als \
        --output=runs/als-shuffled

mf, lightgcn and multvae are stopped by the validation part. A fit that was killed goes on when
the same command is run again.
"""

from dataclasses import fields
from pathlib import Path

from absl import app, flags

from alignuser_jax.datasets import Dataset, Log, load_dataset
from alignuser_jax.recommenders import (
    ALS,
    MF,
    Degraded,
    HeldOutSplits,
    LightGCN,
    MultVAE,
    Popularity,
    Random,
    ShuffledAcrossUsers,
    draw_users,
    held_out_hits,
    held_out_ranking,
    held_out_table,
    load_recommender,
    ranking_table,
)
from alignuser_jax.runs.flags import run as run_program

TRAINED = {"mf": MF, "lightgcn": LightGCN, "multvae": MultVAE}
KINDS = ("random", "popularity", "als", *TRAINED, "degraded", "shuffled")
FLAGS = flags.FLAGS
flags.DEFINE_string("dataset", None, "Folder of an imported dataset.", required=True)
flags.DEFINE_enum("kind", None, KINDS, "What to fit.", required=True)
flags.DEFINE_string("output", None, "Folder to save it in.", required=True)
flags.DEFINE_list("splits", ["train"], "Parts of the log to fit on.")
flags.DEFINE_string(
    "inner", None, "The recommender that degraded and shuffled wrap: a folder or module:attr."
)
flags.DEFINE_float("random_share", 0.5, "degraded: share of the slots that become random.")
flags.DEFINE_integer("factors", 64, "als, mf, lightgcn: factors.")
flags.DEFINE_float("regularization", 0.05, "als: L2 regularization.")
flags.DEFINE_float("alpha", 1.0, "als: confidence of an interaction.")
flags.DEFINE_integer("iterations", 15, "als: iterations.")
flags.DEFINE_integer("layers", 2, "lightgcn: steps of propagation.")
flags.DEFINE_integer("latent", 200, "multvae: dimension of the code.")
flags.DEFINE_integer("hidden", 600, "multvae: width of the hidden layers.")
flags.DEFINE_float("dropout", 0.5, "multvae: share of the input that is dropped.")
flags.DEFINE_float("kl_cap", 0.2, "multvae: largest weight of the KL term.")
flags.DEFINE_float("kl_epochs", 50, "multvae: epochs until that weight is reached.")
flags.DEFINE_integer("batch_size", None, "mf, lightgcn: 2048 pairs; multvae: 256 users.")
flags.DEFINE_float("learning_rate", 5e-4, "mf, lightgcn, multvae: Adam's rate.")
flags.DEFINE_float("l2", 1e-5, "mf, lightgcn, multvae: L2 regularization.")
flags.DEFINE_integer("epochs", None, "mf, lightgcn, multvae: most epochs (500).")
flags.DEFINE_integer("patience", 20, "mf, lightgcn, multvae: epochs without a better nDCG@20.")
flags.DEFINE_integer(
    "seed", None, "Seed; mf, lightgcn, multvae: 101, others: 0.", lower_bound=0
)
flags.DEFINE_integer("users", 1000, "Users to count held-out hits on; 0 to skip.")


def train(dataset: Dataset, log: Log) -> MF | LightGCN | MultVAE:
    """Fit mf, lightgcn or multvae with the flags that its settings name."""
    cls = TRAINED[FLAGS.kind]
    values = {f.name: getattr(FLAGS, f.name) for f in fields(cls.settings_class)}
    recommender = cls(**{name: value for name, value in values.items() if value is not None})
    validation = dataset.log.of_split("validation") if FLAGS.splits == ["train"] else None
    if validation is None and FLAGS.epochs is None:
        raise app.UsageError(
            "a fit on more than train has no validation part to stop by: give --epochs "
            "(a fit on train says which epoch was best)"
        )
    recommender.fit(dataset, log, validation, checkpoint=Path(FLAGS.output) / "unfinished.npz")
    summary = recommender.summary
    print(f"best epoch {summary['best_epoch']} of {summary['epochs']}")
    return recommender


def main() -> None:
    """Fit the recommender that the flags name, save it and print how it ranks."""
    if FLAGS.kind in ("degraded", "shuffled") and not FLAGS.inner:
        raise app.UsageError(f"--kind={FLAGS.kind} needs --inner, the recommender to wrap")
    dataset = load_dataset(FLAGS.dataset)
    log = dataset.log.of_split(*FLAGS.splits)
    if not len(log):
        raise ValueError(
            f"{dataset.name} has no interactions in {', '.join(FLAGS.splits)}: there is "
            "nothing to recommend by"
            + (" (it is a log of sessions)" if "sessions" in dataset.extra_tables else "")
        )
    seed = FLAGS.seed or 0
    match FLAGS.kind:
        case "random":
            recommender = Random(dataset.item_ids)
        case "popularity":
            recommender = Popularity().fit(dataset, log)
        case "als":
            recommender = ALS(
                FLAGS.factors, FLAGS.regularization, FLAGS.alpha, FLAGS.iterations, seed
            ).fit(dataset, log)
        case "degraded":
            inner = load_recommender(FLAGS.inner)
            recommender = Degraded(inner, FLAGS.random_share, dataset.item_ids, seed)
        case "shuffled":
            inner = load_recommender(FLAGS.inner)
            recommender = ShuffledAcrossUsers.of(inner, dataset, log, seed)
        case _:
            recommender = train(dataset, log)
    recommender.save(FLAGS.output)
    print(f"{recommender.name} {recommender.version}, {len(log)} interactions: {FLAGS.output}")
    if FLAGS.splits != ["train"]:
        print("no held-out hits: it was fitted on more than train")
    elif FLAGS.users:
        parts = ("test",) if FLAGS.kind in TRAINED else ("validation", "test")
        users = draw_users(dataset, FLAGS.users, held_out=parts)
        compared = (recommender, Popularity().fit(dataset, log), Random(dataset.item_ids))
        if dataset.synthetic:
            print("synthetic data:")
        splits = HeldOutSplits(truth=parts)
        hits = {r.name: held_out_hits(r, dataset, users, splits=splits) for r in compared}
        print(held_out_table(hits))
        print(ranking_table({r.name: held_out_ranking(r, dataset, users) for r in compared}))


if __name__ == "__main__":
    run_program(main)
