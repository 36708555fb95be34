"""Match a persona to each user: a model proposes who it may be and judges whose ratings fit.

    alignuser match-personas --config=configs/qwen3_8b.py --dataset=runs/ml-1m/data \
        --run=runs/ml-1m --output=runs/ml-1m/personas
    alignuser match-personas --config=… --dataset=… --output=… \
        --server=http://HOST:8000/v1 --model=Qwen/Qwen3-8B
    alignuser match-personas … --estimate        what it will take, and nothing else
    alignuser match-personas … --baselines       what simple predictors reach, without a model

The method is that of docs/method.md section 4.4: m candidates, each judged on j subsets of the
user's ratings and j of others'. A program that was killed goes on when it is started again.
`--personas=OUTPUT` gives the result to build-shards and simulate. If the data have ages or
occupations, a table says how often the matched ones are right; no prompt ever holds the true
ones.
"""

from dataclasses import replace
from pathlib import Path

from absl import app, flags

from alignuser_jax.datasets import Dataset
from alignuser_jax.driver import Backend
from alignuser_jax.evaluation import demographics
from alignuser_jax.personas import GivenPersonas, Match, MatchConfig
from alignuser_jax.personas.given import PARTS, persona_row
from alignuser_jax.personas.match_dataset import (
    MatchPlan,
    closed_lists,
    match_dataset,
    matching_part,
)
from alignuser_jax.runs.backend import open_backend
from alignuser_jax.runs.experiment import Experiment
from alignuser_jax.runs.flags import (
    backend_choice,
    backend_flags,
    experiment_flags,
    open_experiment,
)
from alignuser_jax.runs.flags import run as run_program
from alignuser_jax.views import policy_and_agent_users

STATES = 1024
"""The states that the automaton of a proposal needs; it holds the ages and occupations."""
FLAGS = flags.FLAGS
experiment_flags(run_required=False)
backend_flags(adapter="")
flags.DEFINE_string("output", None, "Folder of the personas.")
flags.DEFINE_enum(
    "part", "profile", list(PARTS), "Ratings to match by: what training may show, or all train."
)
flags.DEFINE_enum(
    "users", "all", ["all", "policy", "agents"], "Whom to match; see build-shards, simulate."
)
flags.DEFINE_integer("limit", None, "At most so many users.")
flags.DEFINE_integer("candidates", 5, "Personas proposed per user (m).")
flags.DEFINE_integer("subsets", 3, "Subsets of the user's and of others' ratings (j).")
flags.DEFINE_integer("subset_items", 50, "Ratings in a subset (rho).")
flags.DEFINE_integer("taste_items", 50, "Ratings that candidates are proposed from.")
flags.DEFINE_integer(
    "reasoning_tokens", 200, "Tokens before a proposal; 0: a server constrains its answers."
)
flags.DEFINE_integer("fit_reasoning_tokens", 0, "Tokens before a judgement, at most.")
flags.DEFINE_list("ages", None, "Closed list; default: the data's, else MovieLens-1M's.")
flags.DEFINE_list("occupations", None, "Closed list; default as for ages.")
flags.DEFINE_integer("seed", 0, "Names every draw.")
flags.DEFINE_bool("estimate", False, "Only say what it will take.")
flags.DEFINE_integer("sample", 8, "Users matched and timed for the estimate; 0: no time.")
flags.DEFINE_bool("baselines", False, "Only the table of majority and regression.")


def main() -> None:
    choice = None if FLAGS.baselines else backend_choice()
    if not (FLAGS.baselines or FLAGS.output):
        raise app.UsageError("--output must be given (except with --baselines)")
    if FLAGS.sample < 0:
        raise app.UsageError(f"--sample={FLAGS.sample}: expected 0 or more")
    if FLAGS.limit is not None and FLAGS.limit < 1:
        raise app.UsageError(f"--limit={FLAGS.limit}: expected 1 or more")
    experiment, dataset, run = open_experiment()
    refuse_without_ratings(dataset)
    users = users_to_match(dataset, experiment)
    plan = match_plan(experiment)
    if choice is None:
        print_baselines(dataset, users, plan)
        return
    engine = replace(experiment.engine, states=max(experiment.engine.states, STATES))
    experiment = replace(experiment, engine=engine)
    with open_backend(choice, experiment, dataset, run, say=print) as (backend, experiment):
        config = match_config(dataset, experiment, backend)
        if choice.server:
            prices = (choice.server.prompt_price, choice.server.generated_price)
            plan = replace(plan, prices=prices)
        print(backend.note)
        result = match_dataset(dataset, users, config, backend, FLAGS.output, plan)
    if result is not None:
        print_result(dataset, users, plan, backend, *result)


def refuse_without_ratings(dataset: Dataset) -> None:
    if not len(dataset.log):
        surveys = Path(FLAGS.dataset) / "surveys.parquet"
        raise ValueError(
            f"{dataset.name} has no ratings to match personas by"
            + (f"; its surveys are personas: --personas={surveys}" if surveys.is_file() else "")
        )


def users_to_match(dataset: Dataset, experiment: Experiment) -> tuple[str, ...]:
    users = dataset.user_ids
    if FLAGS.users != "all":
        policy, agents = policy_and_agent_users(dataset, experiment.agents, experiment.seed)
        users = policy if FLAGS.users == "policy" else agents
    return users[: FLAGS.limit]


def match_plan(experiment: Experiment) -> MatchPlan:
    return MatchPlan(
        part=FLAGS.part,
        profile_share=experiment.align_shards.profile_share,
        sample=FLAGS.sample,
        only_estimate=FLAGS.estimate,
        progress=True,
    )


def match_config(dataset: Dataset, experiment: Experiment, backend: Backend) -> MatchConfig:
    ages, occupations = closed_lists(dataset)
    session = experiment.session
    return MatchConfig(
        tuple(FLAGS.ages or ages),
        tuple(FLAGS.occupations or occupations),
        item_type=session.item_type,
        candidates=FLAGS.candidates,
        taste_items=FLAGS.taste_items,
        subsets=FLAGS.subsets,
        subset_items=FLAGS.subset_items,
        propose_reasoning_tokens=FLAGS.reasoning_tokens,
        fit_reasoning_tokens=FLAGS.fit_reasoning_tokens,
        temperature=session.temperature,
        top_p=session.top_p,
        context_tokens=backend.engine.get("context", session.context_tokens),
        seed=FLAGS.seed,
    )


def print_baselines(dataset: Dataset, users: tuple[str, ...], plan: MatchPlan) -> None:
    ratings = matching_part(dataset, plan.part, plan.profile_share)
    baselines = demographics.score(dataset, ratings, {}, users, seed=FLAGS.seed)
    if not baselines:
        raise ValueError(
            f"{dataset.name} has age and occupation of none of these users, or of fewer than "
            f"{demographics.FOLDS} in all: there is nothing to compare --baselines with"
        )
    print(demographics.table(baselines))


def print_result(
    dataset: Dataset,
    users: tuple[str, ...],
    plan: MatchPlan,
    backend: Backend,
    matches: list[Match],
    personas: GivenPersonas,
) -> None:
    counts = [match.told for match in matches if match.persona]
    print(f"{len(counts)} of {len(matches)} users matched")
    for reason in sorted({text for match in matches for text in match.failures})[:5]:
        print(f"failed: {reason}")
    if not counts:
        raise RuntimeError(
            f"no user was matched; the reasons are in {Path(FLAGS.output)}/matches.jsonl"
        )
    taste, subset = (sum(column) / len(counts) for column in zip(*counts, strict=True))
    print(f"ratings told, on average: {taste:.1f} to propose, {subset:.1f} in a subset")
    predicted = {match.user_id: persona_row(match) for match in matches}
    ratings = matching_part(dataset, plan.part, plan.profile_share)
    scores = demographics.score(
        dataset, ratings, {"matched": predicted}, users, seed=FLAGS.seed
    )
    if scores:
        print(f"\nmatched by {backend.policy_id}: {backend.note}")
        print(demographics.table(scores))
    print(f"personas: {Path(personas.name)}")


if __name__ == "__main__":
    run_program(main)
