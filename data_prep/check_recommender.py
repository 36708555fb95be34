"""Check that a recommender keeps the contract that a simulation relies on; exit 1 if not.

    alignuser check-recommender my_module:MyRecommender --dataset=runs/ml-1m
    alignuser check-recommender http://localhost:8090 --dataset=runs/ml-1m

Also: the folder of a saved one, cornac+http://…, a file of recommendations, a plugin's name.
"""

import sys

import numpy as np
from absl import app, flags

from alignuser_jax.datasets import load_dataset
from alignuser_jax.recommenders import check_contract, load_recommender
from alignuser_jax.runs.flags import run as run_program

FLAGS = flags.FLAGS
flags.DEFINE_string("dataset", None, "Folder of an imported dataset.", required=True)
flags.DEFINE_integer(
    "users", 64, "Users to ask for, the first of the dataset; one batch.", lower_bound=1
)
flags.DEFINE_integer("k", 4, "Items on a slate.", lower_bound=1)
flags.DEFINE_integer("rounds", 20, "Batches to time.", lower_bound=1)


def main(specs: list[str]) -> None:
    """Print the report and exit with 1 if a rule is broken."""
    if len(specs) != 1:
        raise app.UsageError(
            "give one recommender: module:attr, a URL, a file or the folder of a saved one "
            f"(given: {specs or 'nothing'})"
        )
    recommender = load_recommender(specs[0])
    dataset = load_dataset(FLAGS.dataset)
    log = dataset.log.of_split("train")
    users = [dataset.user_ids[code] for code in np.unique(log.user)[: FLAGS.users]]
    report = check_contract(
        recommender,
        dataset.item_ids,
        {user: dataset.history(log, user) for user in users},
        k=FLAGS.k,
        batch=FLAGS.users,
        rounds=FLAGS.rounds,
    )
    print(report)
    sys.exit(0 if report.passed else 1)


if __name__ == "__main__":
    run_program(main, arguments=True)
