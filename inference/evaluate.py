"""How far to believe the agents: ratings, preferences and next states against held-out logs.

    alignuser evaluate --config=configs/small.py --dataset=runs/ml-1m/data --run=runs/ml-1m \
        --what=ratings,preference,next_state
    alignuser evaluate ... --what=ratings --reasoning_samples=8 --out=runs/ml-1m/ablation \
        --adapters=imitation@0=FOLDER,imitation@1=FOLDER,reflection@0=FOLDER,...

Baselines fitted on the same data stand in the same tables; policies NAME@SEED are also
averaged over their seeds and held against the first name. Exits 1 where the acceptance of the
rating test fails for the first policy (below user mean and item mean with intervals that
exclude 0; no leak). With --server --model=NAME a served model is tested instead; servers tell
no distributions, so its ratings are draws: --reasoning_samples=8 takes the mean of eight.
--record and --replay name files by what is tested: FILE.ratings, FILE.preference, …; what a
server answered is kept in OUT/answers also without --record. Where requests fail, that test is
left out, the others are made, and the exit code is 2: the same command asks what is missing.
"""

import itertools
import sys
from collections import defaultdict
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from absl import app, flags

from alignuser_jax.evaluation import asking as policy
from alignuser_jax.evaluation import next_state
from alignuser_jax.evaluation.preference import preference_cases, score_preferences
from alignuser_jax.evaluation.rating_baselines import BASELINES
from alignuser_jax.evaluation.ratings import (
    acceptance,
    held_out_ratings,
    score_over_seeds,
    score_ratings,
)
from alignuser_jax.personas import GivenPersonas, read_personas
from alignuser_jax.recommenders import ALS, Popularity
from alignuser_jax.records import RecommendationRequest
from alignuser_jax.report import tables
from alignuser_jax.runs.backend import METRICS, open_backend
from alignuser_jax.runs.flags import (
    backend_choice,
    backend_flags,
    experiment_flags,
    open_experiment,
)
from alignuser_jax.runs.flags import run as run_program
from alignuser_jax.sampling import RequestsFailed
from alignuser_jax.shards import read_examples
from alignuser_jax.views import policy_and_agent_users, simulation_view, test_view

WHAT = ("ratings", "preference", "next_state")
FLAGS = flags.FLAGS
experiment_flags(run_required=False)
backend_flags()
flags.DEFINE_list("what", list(WHAT), f"Some of {', '.join(WHAT)}.")
flags.DEFINE_list("adapters", [], "NAME=FOLDER of other policies; NAME= is the first stage.")
flags.DEFINE_string("out", None, "Folder of the tables (default: the run's).")
flags.DEFINE_integer("agents", 1000, "Users of the rating and preference tests, at most.")
flags.DEFINE_integer("cap", 20, "Ratings per user, at most.")
flags.DEFINE_integer("reasoning_samples", 0, "Also rate after reasoning, this many samples.")
flags.DEFINE_integer("reasoning_tokens", 64, "Tokens of that reasoning, at most.")
flags.DEFINE_integer("next_states", 200, "Held-out transitions of the next-state test.")
flags.DEFINE_string("personas", None, "File of personas over those computed from the log.")
flags.DEFINE_integer("seed", 0, "Seed of draws and bootstraps.")


def given() -> GivenPersonas | None:
    return read_personas(FLAGS.personas) if FLAGS.personas else None


def ratings(dataset, users, backends) -> tuple[str, list[str]]:
    view = test_view(dataset, given())
    truth = held_out_ratings(dataset.log, users, cap=FLAGS.cap)
    points = {
        name: fit(view.profile)(truth.user, truth.item) for name, fit in BASELINES.items()
    }
    ways = {"": ({}, 1)}
    if FLAGS.reasoning_samples:
        thinking = {"rate_reasoning_tokens": FLAGS.reasoning_tokens}
        ways[", after reasoning"] = (thinking, FLAGS.reasoning_samples)
    distributions, groups = {}, defaultdict(list)
    for name, opened in backends.items():
        with opened() as backend:
            for way, (thinking, samples) in ways.items():
                session = replace(backend.experiment.session, **thinking)
                asked = policy.rating_requests(
                    dataset, view, truth, backend.experiment.site, session,
                    backend.count_tokens, seed=FLAGS.seed, samples=samples,
                )  # fmt: skip
                done = policy.ask(backend.generator, list(asked), name + way, print)
                distributions[name + way] = policy.rating_distributions(done)
                groups[name.partition("@")[0] + way].append(distributions[name + way])
    scores = score_ratings(truth, points, distributions, seed=FLAGS.seed)
    failures = acceptance(next(s for s in scores if s.name == next(iter(backends))))
    title = f"Ratings: {len(truth)} test interactions of {len(np.unique(truth.user))} users"
    parts = [title, tables.ratings_table(scores)]
    if len(groups) < len(distributions):
        over_seeds = score_over_seeds(truth, groups, seed=FLAGS.seed)
        parts += ["Mean over seeds", tables.seeds_table(over_seeds)]
    return "\n\n".join(parts), failures


def preference(dataset, users, name, backend) -> tuple[str, list[str]]:
    experiment = backend.experiment
    view = simulation_view(dataset, given())
    als = ALS().fit(dataset, view.profile)
    count = Popularity().fit(dataset, view.profile)
    popularity = np.bincount(view.profile.item, minlength=len(dataset.item_ids))
    groups = {}
    for negatives in ("uniform", "popularity"):
        cases = preference_cases(
            dataset.log, users.tolist(), negatives=negatives,
            page=experiment.site.items_per_page, seed=FLAGS.seed,
        )  # fmt: skip
        requests = [
            RecommendationRequest(
                dataset.user_ids[c.user], view.histories[dataset.user_ids[c.user]]
            )
            for c in cases
        ]
        by_als = [als.scores([r])[0][c.items] for r, c in zip(requests, cases, strict=True)]
        watch = policy.watch_probabilities(
            dataset, view, cases, experiment.site, experiment.session, backend.generator,
            backend.count_tokens, seed=FLAGS.seed, say=print,
        )  # fmt: skip
        groups[negatives] = [
            score_preferences(count.name, cases, [popularity[c.items] for c in cases],
                              probabilities=False),
            score_preferences("als", cases, by_als, probabilities=False),
            score_preferences(name, cases, watch),
        ]  # fmt: skip
    return f"Preference 1:1, {len(cases)} users\n\n{tables.preference_table(groups)}", []


def next_states(run, backend) -> tuple[str, list[str]]:
    folder = run / "shards" / "align" / "validation"
    examples = (e for e in read_examples(folder) if e.task == "world_model")
    examples = list(itertools.islice(examples, FLAGS.next_states))
    done = policy.ask(
        backend.generator, policy.next_state_requests(examples), "next states", print
    )
    score = next_state.score_next_states(
        [policy.next_state_text(c.text) for c in done],
        [policy.next_state_text(e.messages[-1]) for e in examples],
        [policy.action_of(e) for e in examples],
    )
    row = [f"{score.model_f1:.3f}", f"{score.rule_f1:.3f}", f"{score.similarity:.3f}", score.n]
    headers = ["page-type F1, model", "rule that reads the action", "edit similarity", "n"]
    return f"Next states\n\n{tables.table([row], headers)}", []


def main() -> None:
    if unknown := sorted(set(FLAGS.what) - set(WHAT)):
        raise app.UsageError(f"--what: unknown {unknown}; choose from {', '.join(WHAT)}")
    if not FLAGS.run and ("next_state" in FLAGS.what or not FLAGS.out):
        raise app.UsageError("without --run: give --out, and --what without next_state")
    out = Path(FLAGS.out or FLAGS.run)
    choice = backend_choice(out / "answers")
    experiment, dataset, run = open_experiment()
    adapters = {"agents": None}
    if FLAGS.adapters:
        pairs = [text.partition("=") for text in FLAGS.adapters]
        adapters = {name: folder for name, equals, folder in pairs if name and equals}
        if len(adapters) < len(pairs):
            raise app.UsageError(f"--adapters={FLAGS.adapters}: expected different NAME=FOLDER")

    def opened(name, part, reply=0):
        """The policy's back end; answers of each are recorded in a file of their own."""
        own = choice.of_part(part if name == "agents" else f"{part}.{name}")
        return open_backend(
            own,
            experiment,
            dataset,
            run,
            adapter=adapters[name],
            reply=reply,
            say=print,
            metrics=out / METRICS,
        )

    first = next(iter(adapters))
    agents = policy_and_agent_users(dataset, experiment.agents, experiment.seed)[1]
    codes = {user: code for code, user in enumerate(dataset.user_ids)}
    users = np.array([codes[user] for user in agents[: FLAGS.agents]])

    def of_ratings():
        return ratings(
            dataset, users, {name: partial(opened, name, "ratings") for name in adapters}
        )

    def of_preference():
        with opened(first, "preference") as backend:
            return preference(dataset, users, first, backend)

    def of_next_states():
        with opened(first, "next_state", policy.NEXT_STATE_TOKENS) as backend:
            return next_states(run, backend)

    everything = {
        "ratings": of_ratings,
        "preference": of_preference,
        "next_state": of_next_states,
    }
    out.mkdir(parents=True, exist_ok=True)
    parts, failures, undone = [experiment.note], [], []
    for name in FLAGS.what:
        try:
            text, failed = everything[name]()
        except RequestsFailed as error:
            text, failed = f"NOT MEASURED: {error}", []
            undone.append(str(error))
        parts.append(text)
        failures += failed
        print(f"\n{text}\n", flush=True)
        (out / "evaluation.md").write_text("\n\n".join(parts) + "\n")
    if failures:
        print("\n".join(["NOT ACCEPTED:", *failures]))
    if undone:
        raise RequestsFailed(
            "\n".join([*undone, f"{len(undone)} of {len(FLAGS.what)} tests are not made"])
        )
    if failures:
        sys.exit(1)
    print(f"accepted; tables: {out}/evaluation.md")


if __name__ == "__main__":
    run_program(main)
