"""Write a dataset, or what simulated users did, in another tool's format.

    alignuser export-logs --dataset=DATA --to=recbole --output=OUT --benchmark
    alignuser export-logs --dataset=DATA --to=datasets --output=OUT
    alignuser export-logs --dataset=DATA --to=obp --events=SIM/events.parquet --arm=als \
        --reward=liked --output=feedback.npz

Prints the path of what was written.
"""

import pyarrow.parquet as pq
from absl import app, flags

from alignuser_jax.datasets import exports, load_dataset
from alignuser_jax.runs.flags import run as run_program

FLAGS = flags.FLAGS
flags.DEFINE_string("dataset", None, "Folder of an imported dataset.", required=True)
flags.DEFINE_enum("to", None, ("recbole", "datasets", "obp"), "The format.", required=True)
flags.DEFINE_string(
    "output", None, "Folder to write; obp: a file that ends in .npz.", required=True
)
flags.DEFINE_bool("benchmark", False, "recbole: three .inter files, one for each split.")
flags.DEFINE_string("events", None, "obp: the events.parquet of a simulation.")
flags.DEFINE_string("arm", "", "obp: which arm of the events; not needed if there is only one.")
flags.DEFINE_enum("reward", "watched", ("watched", "liked", "rating"), "obp: the reward.")


def check_flags() -> None:
    if FLAGS.to == "obp" and not FLAGS.events:
        raise app.UsageError("--to=obp needs --events")
    if FLAGS.to == "obp" and not FLAGS.output.endswith(".npz"):
        raise app.UsageError(f"--output={FLAGS.output}: expected a file that ends in .npz")
    useless = [f"--{name}" for name in ("events", "arm") if FLAGS[name].value]
    if FLAGS.to != "obp" and useless:
        raise app.UsageError(f"--to={FLAGS.to} has no use for {', '.join(useless)}")
    if FLAGS.to != "recbole" and FLAGS.benchmark:
        raise app.UsageError(f"--to={FLAGS.to} has no use for --benchmark")


def main() -> None:
    check_flags()
    dataset = load_dataset(FLAGS.dataset)
    print(dataset.label)
    if FLAGS.to == "recbole":
        print(exports.write_recbole(dataset, FLAGS.output, benchmark=FLAGS.benchmark))
    elif FLAGS.to == "datasets":
        print(exports.write_datasets(dataset, FLAGS.output))
    else:
        events = pq.read_table(FLAGS.events)
        feedback = exports.bandit_feedback(dataset, events, arm=FLAGS.arm, reward=FLAGS.reward)
        scored = "with propensities"
        if feedback["pscore"] is None:
            scored = "without propensities (pscore is absent: the recommender gave none)"
        print(
            f"{feedback['n_rounds']} rounds, {feedback['n_actions']} actions, mean reward "
            f"{feedback['reward'].mean():.4f}, {scored}"
        )
        print(exports.write_feedback(feedback, FLAGS.output))


if __name__ == "__main__":
    run_program(main)
