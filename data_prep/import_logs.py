"""Import human logs: clean them, split them by time and write one folder of Parquet.

    alignuser import-logs --format=movielens --input=../shared/data/ml-1m \
        --descriptions=../shared/data/ml-1m-text/movies_extrainfos.dat.gz --output=runs/ml-1m
    alignuser import-logs --format=steam --input=../shared/data/steam --crawl_year=2016 \
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
"""

import sys

import numpy as np
from absl import app, flags
from tabulate import tabulate

from alignuser_jax.datasets import Dataset, Filters, check_leaks, filtered
from alignuser_jax.datasets.filters import SAMPLE_SEED
from alignuser_jax.datasets.formats import (
    amazon,
    movielens,
    opera,
    recbole,
    steam,
    synthetic,
    tabular,
    usermirrorer,
)
from alignuser_jax.datasets.log import SPLITS
from alignuser_jax.datasets.sessions import check_session_leaks, sessions
from alignuser_jax.runs.flags import run as run_program

_TABULAR = ("columns", "items", "item_columns", "users", "user_columns")
FORMATS = {
    "movielens": ("descriptions",),
    "steam": ("descriptions", "items", "steam_rating", "crawl_year"),
    "amazon": ("descriptions", "items"),
    "opera": ("opera_tables",),
    "usermirrorer": ("descriptions", "behavior"),
    "recbole": ("descriptions", "columns"),
    "tabular": ("descriptions", *_TABULAR),
    "synthetic": (),
}
"""Which flags each format has a use for, beside those that all have."""
FLAGS = flags.FLAGS
flags.DEFINE_enum("format", "movielens", list(FORMATS), "What the input is.")
flags.DEFINE_string(
    "input",
    None,
    "The folder with the log's files; steam, amazon, recbole: or the file of reviews or "
    "interactions; tabular: a CSV, TSV or Parquet file.",
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
    "80/10/10 of each user, or at two moments for all.",
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
    "steam: what becomes 1 to 5: the recommendation (5 or 1) or the quintile of the hours "
    "played; auto: the recommendation where there is one. A DEFAULT, not the paper's.",
)
flags.DEFINE_integer(
    "crawl_year",
    None,
    "steam: the year of dates that show none; without it they are dropped and counted.",
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
    "seed", None, f"Of synthetic (default 0) and --sample_users (default {SAMPLE_SEED})."
)
flags.DEFINE_list("shares", [], "Train, validation and test shares; default 0.8,0.1,0.1.")
flags.DEFINE_integer(
    "k_core", 0, "Keep the part in which every user and item has so many interactions."
)
flags.DEFINE_integer("sample_users", 0, "Then keep so many users, drawn by --seed.")
flags.DEFINE_bool("check_leaks", True, "Refuse (exit code 1) a split that leaks.")


def mapping(flag: str, roles: dict[str, str]) -> dict[str, str]:
    """`role=column` pairs as a dictionary."""
    pairs = dict(text.partition("=")[::2] for text in FLAGS[flag].value)
    if bad := [role for role, column in pairs.items() if role not in roles or not column]:
        raise app.UsageError(
            f"--{flag} has {', '.join(map(repr, bad))}: expected role=column, with a role of "
            f"{', '.join(roles)}",
            exitcode=2,
        )
    return pairs


def read() -> Dataset:
    if FLAGS.format == "synthetic":
        return synthetic.generate(
            synthetic.SyntheticConfig(
                users=FLAGS.synthetic_users,
                items=FLAGS.synthetic_items,
                ratings_per_user=FLAGS.synthetic_ratings,
                seed=FLAGS.seed or 0,
            ),
            split=FLAGS.split,
        )
    common = {"strict": FLAGS.strict, "split": FLAGS.split}
    if FLAGS.format == "opera":
        return opera.read(FLAGS.input, tables=FLAGS.opera_tables, strict=FLAGS.strict)
    common |= {"descriptions": FLAGS.descriptions}
    if FLAGS.format == "movielens":
        return movielens.read(FLAGS.input, **common)
    if FLAGS.format == "steam":
        return steam.read(
            FLAGS.input,
            games=FLAGS.items,
            rating=FLAGS.steam_rating,
            crawl_year=FLAGS.crawl_year,
            **common,
        )
    if FLAGS.format == "amazon":
        return amazon.read(FLAGS.input, metadata=FLAGS.items, **common)
    if FLAGS.format == "usermirrorer":
        return usermirrorer.read(FLAGS.input, rating=FLAGS.behavior, **common)
    if FLAGS.format == "recbole":
        columns = mapping("columns", recbole.COLUMNS)
        return recbole.read(FLAGS.input, columns=columns, **common)
    return tabular.read(
        FLAGS.input,
        columns=mapping("columns", tabular.COLUMNS),
        items=FLAGS.items,
        item_columns=mapping("item_columns", tabular.ITEM_COLUMNS),
        users=FLAGS.users,
        user_columns=mapping("user_columns", tabular.USER_COLUMNS),
        **common,
    )


def check_flags() -> None:
    if FLAGS.format != "synthetic" and not FLAGS.input:
        raise app.UsageError(f"--format={FLAGS.format} needs --input", exitcode=2)
    special = {flag for used in FORMATS.values() for flag in used} - set(FORMATS[FLAGS.format])
    unused = sorted(special | ({"input"} if FLAGS.format == "synthetic" else set()))
    if FLAGS.format == "opera" and FLAGS["split"].present:
        unused.append("split")
    if given := [f"--{f}" for f in unused if FLAGS[f].present and FLAGS[f].value]:
        raise app.UsageError(
            f"--format={FLAGS.format} has no use for {', '.join(given)}", exitcode=2
        )


def shares() -> tuple[float, ...] | None:
    try:
        return tuple(map(float, FLAGS.shares)) or None
    except ValueError:
        raise app.UsageError(
            f"--shares={','.join(FLAGS.shares)}: expected three numbers, as 0.8,0.1,0.1",
            exitcode=2,
        ) from None


def filters() -> Filters:
    seed = SAMPLE_SEED if FLAGS.seed is None else FLAGS.seed
    return Filters(FLAGS.k_core, FLAGS.sample_users, seed)


def steps(dataset: Dataset) -> str:
    """What each filter left, a line each."""
    lines = []
    for step in dataset.manifest.get("filters", []):
        what = f"{step['k_core']}-core" if "k_core" in step else (
            f"sample of users, seed {step['sample']['seed']}"
        )  # fmt: skip
        lines.append(
            f"{what}: {step['left_interactions']} interactions, {step['left_users']} users and "
            f"{step['left_items']} items are left\n"
        )
    return "".join(lines)


def counts(dataset: Dataset) -> str:
    """Interactions, users, items and the mean rating of the whole and of each part."""
    log = dataset.log
    parts = {"all": log} | {split: log.of_split(split) for split in SPLITS}
    rows = [
        (name, len(p), len(np.unique(p.user)), len(np.unique(p.item)),
         f"{p.rating.mean():.3f}" if len(p) else "")
        for name, p in parts.items()
    ]  # fmt: skip
    head = ("part", "interactions", "users", "rated items", "mean rating")
    return tabulate(
        rows, head, "pipe", disable_numparse=True, colalign=("left",) + 4 * ("right",)
    )


def session_counts(dataset: Dataset) -> str:
    """Sessions, steps, users, rationales and purchases of the whole and of each part, and how
    many human actions their pages show."""
    found = list(sessions(dataset))
    rows = []
    for part in ("all", *SPLITS):
        own = [s for s in found if part in ("all", s.split)]
        steps = [step for session in own for step in session.steps]
        rows.append(
            (
                part,
                len(own),
                len(steps),
                len({session.user_id for session in own}),
                sum(bool(step.rationale) for step in steps),
                sum(session.outcome == "purchase" for session in own),
            )
        )
    head = ("part", "sessions", "steps", "users", "rationales", "purchases")
    coverage = dataset.manifest["coverage"]
    return (
        tabulate(rows, head, "pipe")
        + f"\n\n{coverage['target_on_page']} of {coverage['steps_with_target']} actions with a "
        f"target are on their page ({coverage['share']:.2%}); the others cannot be chosen from "
        f"it\n{coverage['pages_without_elements']} pages without elements, "
        f"{coverage['sessions_with_other_than_stated_steps']} sessions with another number of "
        f"steps than stated, {dataset.extra_tables['surveys'].num_rows} surveys"
    )


def main() -> None:
    check_flags()
    wanted, split_shares = filters(), shares()
    dataset = filtered(read(), wanted, split_shares)
    if FLAGS.name:
        dataset.manifest["name"] = FLAGS.name
    check = check_session_leaks if "sessions" in dataset.extra_tables else check_leaks
    problems = check(dataset) if FLAGS.check_leaks else []
    if not problems:
        dataset.save(FLAGS.output)
    label = " (SYNTHETIC: generated, no human made these ratings)" if dataset.synthetic else ""
    kind = dataset.manifest["split"]["kind"]
    print(f"{dataset.name}{label}: {len(dataset.item_ids)} items, {kind} split\n")
    table = session_counts if "sessions" in dataset.extra_tables else counts
    print(table(dataset), steps(dataset) + str(dataset.report), sep="\n\n")
    if problems:
        print("\nleaks found, nothing written:", *problems, sep="\n  ")
        sys.exit(1)
    if FLAGS.check_leaks:
        print("no leak found")
    print(FLAGS.output)


if __name__ == "__main__":
    run_program(main)
