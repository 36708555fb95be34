"""Which recommender is better: paired differences, intervals, verdicts, from simulated events.

    alignuser ab-test --simulations=runs/ml-1m/ab --control=random
    alignuser ab-test --simulations=mixed=runs/a/ab,uniform=runs/b/ab --control=popularity \
        --dataset=runs/ml-1m/data --recommenders=als=runs/ml-1m/als,...

With several simulations (one per exposure assumption) a verdict that flips is printed as
"depends on the exposure assumption". With a dataset and the arms' recommenders, held-out
hit@20 stands beside the simulated likes, with Kendall's tau and its interval.
"""

import json
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from absl import app, flags

from alignuser_jax.datasets import item_statistics, load_dataset
from alignuser_jax.decision.compare import (
    VERDICTS_BY_HOLM,
    arm_metrics,
    arms_table,
    compare,
    comparison_table,
    not_validated_table,
)
from alignuser_jax.decision.held_out_order import agreement, agreement_table
from alignuser_jax.decision.synthetic_truth import true_lift
from alignuser_jax.randomness import generator_of, stable_key
from alignuser_jax.recommenders import held_out_hits, load_recommender
from alignuser_jax.report.plots import forest_plot
from alignuser_jax.runs.flags import run as run_program

FLAGS = flags.FLAGS
flags.DEFINE_list("simulations", None, "FOLDER or NAME=FOLDER of simulations.", required=True)
flags.DEFINE_string(
    "control", None, "The arm that the others are compared with.", required=True
)
flags.DEFINE_list("treatments", None, "The others (default: all).")
flags.DEFINE_string("dataset", None, "Dataset, for held-out hits.")
flags.DEFINE_list("recommenders", None, "NAME=FOLDER of the arms, for held-out hits.")
flags.DEFINE_string("out", None, "Folder for the tables and the plot (default: the first one).")
flags.DEFINE_integer("agents", None, "Draw so many of the agents (default: all).")
flags.DEFINE_integer("resamples", 2000, "Bootstrap resamples over users.")
flags.DEFINE_integer("seed", 0, "Seed of the bootstrap.")


def named(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    return (name, value) if equals else (Path(text).name, text)


def draw_agents(simulations: Iterable[pa.Table], count: int) -> pa.Array:
    """The same `count` users of every simulation, drawn by --seed."""
    users = sorted(set.intersection(*(set(t["user_id"].to_pylist()) for t in simulations)))
    if not 2 <= count <= len(users):
        raise app.UsageError(f"--agents={count}: the simulations share {len(users)} agents")
    key = stable_key("ab-test agents", FLAGS.seed)
    order = generator_of(key).permutation(len(users))
    return pa.array([users[n] for n in order[:count]])


def main() -> None:
    folders = dict(map(named, FLAGS.simulations))
    events, manifests = {}, {}
    for name, folder in folders.items():
        path = Path(folder) / "events.parquet"
        if not path.is_file():
            raise FileNotFoundError(
                f"no {path}: finish `alignuser simulate --out={folder}` first"
            )
        events[name] = pq.read_table(path)
        manifests[name] = json.loads((Path(folder) / "journal" / "manifest.json").read_text())
    if FLAGS.agents is not None:
        drawn = draw_agents(events.values(), FLAGS.agents)
        events = {
            name: table.filter(pc.is_in(table["user_id"], drawn))
            for name, table in events.items()
        }
    metrics = {name: arm_metrics(table) for name, table in events.items()}
    comparisons = {
        name: compare(
            m, FLAGS.control, FLAGS.treatments, resamples=FLAGS.resamples, seed=FLAGS.seed
        )
        for name, m in metrics.items()
    }
    first, *others = comparisons
    main_metrics, note = metrics[first], manifests[first]["note"]
    parts = [f"A/B test, {len(main_metrics.user_ids)} agents; {note}"]
    if others:
        parts.append(f"figures of {first!r}; verdicts of all: {', '.join(comparisons)}")
    lift = None
    dataset = load_dataset(FLAGS.dataset) if FLAGS.dataset else None
    if dataset is not None and dataset.truth:
        lift = true_lift(dataset, events[first], FLAGS.control)
    parts.append(
        comparison_table(comparisons[first], lift, {n: comparisons[n] for n in others})
    )
    parts.append(VERDICTS_BY_HOLM)
    for name, m in metrics.items():
        parts += [f"Means per arm, {name}", arms_table(m), not_validated_table(m)]
    if dataset is not None and FLAGS.recommenders:
        train = dataset.log.of_split("train")
        mean, count = item_statistics(train)
        known = [(i, c) for c, i in enumerate(dataset.item_ids) if count[c]]
        hits = {}
        for text in FLAGS.recommenders:
            arm, spec = named(text)
            found = held_out_hits(load_recommender(spec), dataset, main_metrics.user_ids)
            hits[arm] = dict(zip(found.user_ids, found.hits.tolist(), strict=True))
        for name, m in metrics.items():
            result = agreement(
                m,
                hits,
                events[name],
                {i: float(count[c]) for i, c in known},
                {i: float(mean[c]) for i, c in known},
                seed=FLAGS.seed,
            )
            parts += [f"Held-out behaviour, {name}", agreement_table(result)]
    out = Path(FLAGS.out or folders[first])
    out.mkdir(parents=True, exist_ok=True)
    text = "\n\n".join(parts)
    (out / "ab_test.md").write_text(text + "\n")
    forest_plot(comparisons[first], out / "ab_test.png", note)
    print(f"{text}\n\ntables and plot: {out}/ab_test.md, {out}/ab_test.png")


if __name__ == "__main__":
    run_program(main)
