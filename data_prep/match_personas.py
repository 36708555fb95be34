"""Match a persona to each user: a model proposes who it may be and judges whose ratings fit.

    alignuser match-personas --config=configs/qwen3_8b.py --dataset=runs/ml-1m/data \
        --run=runs/ml-1m --output=runs/ml-1m/personas
    alignuser match-personas --config=… --dataset=… --output=… \
        --server=http://HOST:8000/v1 --model=Qwen/Qwen3-8B
    alignuser match-personas … --estimate        what it will take, and nothing else
    alignuser match-personas … --baselines       what simple predictors reach, without a model

METHOD.md 4.4: m candidates, each judged on j subsets of the user's ratings and j of others'.
Killed and started again, it goes on. `--personas=OUTPUT` gives the result to build-shards and
simulate. Where the data know age or occupation, a table says how often the matched ones are
right; no prompt ever holds the true ones.
"""

from dataclasses import replace
from pathlib import Path

from absl import app, flags

from alignuser_jax.evaluation import demographics
from alignuser_jax.personas import MatchConfig
from alignuser_jax.personas.given import PARTS, persona_row
from alignuser_jax.personas.match_dataset import closed_lists, match_dataset, matching_part
from alignuser_jax.runs.backend import open_backend
from alignuser_jax.runs.flags import (
    backend_choice,
    backend_flags,
    experiment_flags,
    open_experiment,
)
from alignuser_jax.runs.flags import run as run_program
from alignuser_jax.views import policy_and_agent_users

STATES = 1024
"""Bound of the automaton of a proposal, which holds the lists of ages and occupations."""
FLAGS = flags.FLAGS
experiment_flags(run_required=False)
backend_flags()
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
flags.DEFINE_string("adapter", "", "Folder of an adapter for the run's model; '' for none.")
flags.DEFINE_integer("seed", 0, "Names every draw.")
flags.DEFINE_bool("estimate", False, "Only say what it will take.")
flags.DEFINE_integer("sample", 8, "Users matched and timed for the estimate; 0: no time.")
flags.DEFINE_bool("baselines", False, "Only the table of majority and regression.")


def main() -> None:
    choice = None if FLAGS.baselines else backend_choice()
    if not (FLAGS.baselines or FLAGS.output):
        raise app.UsageError("--output must be given (but for --baselines)")
    experiment, dataset, run = open_experiment()
    if not len(dataset.log):
        surveys = Path(FLAGS.dataset) / "surveys.parquet"
        raise ValueError(
            f"{dataset.name} has no ratings to match personas by"
            + (f"; its surveys are personas: --personas={surveys}" if surveys.is_file() else "")
        )
    engine = replace(experiment.engine, states=max(experiment.engine.states, STATES))
    experiment = replace(experiment, engine=engine)
    share = experiment.align_shards.profile_share
    evidence = matching_part(dataset, FLAGS.part, share)
    users = dataset.user_ids
    if FLAGS.users != "all":
        policy, agents = policy_and_agent_users(dataset, experiment.agents, experiment.seed)
        users = policy if FLAGS.users == "policy" else agents
    if FLAGS.sample < 0:
        raise app.UsageError(f"--sample={FLAGS.sample}: expected 0 or more")
    if FLAGS.limit is not None and FLAGS.limit < 1:
        raise app.UsageError(f"--limit={FLAGS.limit}: expected 1 or more")
    users = users[: FLAGS.limit]
    if choice is None:
        baselines = demographics.score(dataset, evidence, {}, users, seed=FLAGS.seed)
        if not baselines:
            raise ValueError(
                f"{dataset.name} knows age and occupation of none of these users, or of fewer "
                f"than {demographics.FOLDS} in all: there is nothing to hold --baselines "
                "against"
            )
        print(demographics.table(baselines))
        return
    ages, occupations = closed_lists(dataset)
    server = choice.server
    with open_backend(
        choice, experiment, dataset, run, adapter=FLAGS.adapter, say=print
    ) as backend:
        session = backend.experiment.session
        config = MatchConfig(
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
        print(backend.note)
        result = match_dataset(
            dataset,
            users,
            config,
            backend.generator,
            FLAGS.output,
            policy_id=backend.policy_id,
            part=FLAGS.part,
            profile_share=share,
            engine=backend.engine,
            note=backend.note,
            count_tokens=backend.count_tokens,
            concurrency=backend.concurrency,
            prices=(server.prompt_price, server.generated_price) if server else (0.0, 0.0),
            sample=FLAGS.sample,
            only_estimate=FLAGS.estimate,
            progress=True,
        )
    if result is None:
        return
    matches, given = result
    told = [match.told for match in matches if match.persona]
    print(f"{len(told)} of {len(matches)} users matched")
    for reason in sorted({text for match in matches for text in match.failures})[:5]:
        print(f"failed: {reason}")
    if not told:
        raise RuntimeError(f"no user was matched; why is in {Path(FLAGS.output)}/matches.jsonl")
    taste, subset = (sum(counts) / len(told) for counts in zip(*told, strict=True))
    print(f"ratings told, on average: {taste:.1f} to propose, {subset:.1f} in a subset")
    said = {match.user_id: persona_row(match) for match in matches}
    scores = demographics.score(dataset, evidence, {"matched": said}, users, seed=FLAGS.seed)
    if scores:
        print(f"\nmatched by {backend.policy_id}: {backend.note}")
        print(demographics.table(scores))
    print(f"personas: {Path(given.name)}")


if __name__ == "__main__":
    run_program(main)
