"""Import human logs: clean them, split them by time, and write one folder of Parquet.

    alignuser import-logs --format=movielens --input=ml-1m \
        --descriptions=movies_extrainfos.dat.gz --output=runs/ml-1m
    alignuser import-logs --format=steam --input=steam --crawl_year=2016 \
        --output=runs/steam
    alignuser import-logs --format=amazon --input=reviews_Books_5.json.gz \
        --items=meta_Books.json.gz --output=runs/books
    alignuser import-logs --format=opera --input=OPeRA --output=runs/opera
    alignuser import-logs --format=usermirrorer --input=raws --output=runs/mind
    alignuser import-logs --format=recbole --input=ml-100k --output=runs/ml-100k
    alignuser import-logs --format=tabular --input=log.csv --columns=user=uid,timestamp=ts \
        --items=items.parquet --item_columns=item=asin --output=runs/mine
    alignuser import-logs --format=movielens --input=downloads/ml-1m --output=runs/ml-1m-part \
        --k_core=20 --sample_users=1000 --seed=101 --split=global --shares=0.8,0.1,0.1
    alignuser import-logs --format=synthetic --output=runs/synthetic

Prints counts and what was dropped. A split that leaks is not written (exit code 1).
"""

import sys

from absl import app, flags

from alignuser_jax.datasets import Filters
from alignuser_jax.datasets.filters import SAMPLE_SEED
from alignuser_jax.datasets.formats.synthetic import SyntheticConfig
from alignuser_jax.datasets.formats.tabular import ITEM_COLUMNS, USER_COLUMNS
from alignuser_jax.datasets.importing import (
    FORMATS,
    ImportSettings,
    column_mapping,
    import_log,
    import_summary,
    split_faults,
)
from alignuser_jax.datasets.reading.cleaning import INTERACTION_COLUMNS
from alignuser_jax.runs.flags import run as run_program

FLAGS = flags.FLAGS
flags.DEFINE_enum("format", "movielens", list(FORMATS), "What the input is.")
flags.DEFINE_string(
    "input",
    None,
    "The folder with the log's files; for steam, amazon and recbole also the file of reviews "
    "or interactions; for tabular a CSV, TSV or Parquet file.",
)
flags.DEFINE_string("output", None, "Folder to write the dataset in.", required=True)
flags.DEFINE_string("name", None, "Name of the dataset; by default the layout's or the file's.")
flags.DEFINE_string(
    "descriptions", None, "CSV, Parquet, JSON or MovieLens .dat with texts by item id."
)
flags.DEFINE_bool("strict", False, "Stop at dirty input instead of dropping and counting it.")
flags.DEFINE_enum(
    "split",
    "per_user",
    ("per_user", "global"),
    "Cut each user's log for itself, or all users' logs at the same two moments.",
)
flags.DEFINE_list(
    "columns", [], "tabular, recbole: role=column for user, item, rating, timestamp."
)
flags.DEFINE_string(
    "items", None, "tabular: file of items; steam: of games; amazon: of metadata."
)
flags.DEFINE_list(
    "item_columns", [], "tabular: role=column for item, title, genres, description."
)
flags.DEFINE_string("users", None, "tabular: file of users.")
flags.DEFINE_list("user_columns", [], "tabular: role=column for user, age, occupation.")
flags.DEFINE_enum(
    "steam_rating",
    "auto",
    ("auto", "recommend", "playtime"),
    "steam: what becomes the rating: the recommendation (5 or 1), or the quintile of the hours "
    "played; auto: the recommendation if there is one. A DEFAULT, not the paper's.",
)
flags.DEFINE_integer(
    "crawl_year",
    None,
    "steam: the year of dates that show none; without it such reviews are dropped.",
)
flags.DEFINE_enum(
    "opera_tables", "filtered", ("filtered", "full"), "opera: which of its tables."
)
flags.DEFINE_string(
    "behavior", "rating", "usermirrorer: the behaviour feature that is the rating."
)
flags.DEFINE_integer("synthetic_users", 240, "synthetic: users.")
flags.DEFINE_integer("synthetic_items", 160, "synthetic: items.")
flags.DEFINE_float("synthetic_ratings", 40.0, "synthetic: ratings per user.")
flags.DEFINE_integer(
    "seed", None, f"Seed of synthetic (default 0) or --sample_users (default {SAMPLE_SEED})."
)
flags.DEFINE_list("shares", [], "Train, validation and test shares; default 0.8,0.1,0.1.")
flags.DEFINE_integer(
    "k_core", 0, "Keep the part in which every user and item has this many interactions."
)
flags.DEFINE_integer("sample_users", 0, "Then keep this many users, drawn by --seed.")
flags.DEFINE_bool("check_leaks", True, "Refuse (exit code 1) a split that leaks.")


def check_flags() -> None:
    log_format = FORMATS[FLAGS.format]
    if log_format.has_files and not FLAGS.input:
        raise app.UsageError(f"--format={FLAGS.format} needs --input", exitcode=2)
    special = {flag for other in FORMATS.values() for flag in other.uses}
    unused = sorted(special - set(log_format.uses))
    unused += [] if log_format.has_files else ["input"]
    unused += ["split"] if log_format.has_split else []
    if useless := [f"--{f}" for f in unused if FLAGS[f].present and FLAGS[f].value]:
        raise app.UsageError(
            f"--format={FLAGS.format} has no use for {', '.join(useless)}", exitcode=2
        )


def settings() -> ImportSettings:
    return ImportSettings(
        FLAGS.input or "",
        FLAGS.strict,
        FLAGS.split,
        FLAGS.descriptions,
        FLAGS.items,
        FLAGS.users,
        column_mapping(FLAGS.columns, INTERACTION_COLUMNS, "--columns"),
        column_mapping(FLAGS.item_columns, ITEM_COLUMNS, "--item_columns"),
        column_mapping(FLAGS.user_columns, USER_COLUMNS, "--user_columns"),
        FLAGS.steam_rating,
        FLAGS.crawl_year,
        FLAGS.opera_tables,
        FLAGS.behavior,
        SyntheticConfig(
            users=FLAGS.synthetic_users,
            items=FLAGS.synthetic_items,
            ratings_per_user=FLAGS.synthetic_ratings,
            seed=FLAGS.seed or 0,
        ),
    )


def shares() -> tuple[float, ...] | None:
    try:
        return tuple(map(float, FLAGS.shares)) or None
    except ValueError:
        raise app.UsageError(
            f"--shares={','.join(FLAGS.shares)}: expected three numbers, as 0.8,0.1,0.1",
            exitcode=2,
        ) from None


def main() -> None:
    check_flags()
    seed = SAMPLE_SEED if FLAGS.seed is None else FLAGS.seed
    filters = Filters(FLAGS.k_core, FLAGS.sample_users, seed)
    dataset = import_log(FLAGS.format, settings(), filters, shares())
    if FLAGS.name:
        dataset.manifest["name"] = FLAGS.name
    faults = split_faults(dataset) if FLAGS.check_leaks else []
    if not faults:
        dataset.save(FLAGS.output)
    print(import_summary(dataset))
    if faults:
        print("\nleaks found, nothing written:", *faults, sep="\n  ")
        sys.exit(1)
    if FLAGS.check_leaks:
        print("no leak found")
    print(FLAGS.output)


if __name__ == "__main__":
    run_program(main)
