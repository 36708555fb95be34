"""Tell what the examples of an experiment cost in tokens, for its tokenizer or for others."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from alignuser_jax.alignment import ShardSource, build_shards
from alignuser_jax.datasets import Dataset
from alignuser_jax.language import TextTokenizer
from alignuser_jax.language.prompt_costs import costs_table, prompt_costs
from alignuser_jax.runs.experiment import Experiment
from alignuser_jax.runs.policy import tokenizer_of
from alignuser_jax.shards import read_examples
from alignuser_jax.views import policy_and_agent_users

SAMPLED_USERS, SAMPLED_EXAMPLES = 300, 60
"""From how many users, and at most how many examples of a task, the costs are counted."""


def prompt_report(
    experiment: Experiment, dataset: Dataset, tokenizers: Sequence[str | Path] = ()
) -> str:
    """Return tables of the tokens that the examples of each stage cost, by part of the prompt.

    The reflections are templates, whatever a real run has. Examples that a context limit cuts
    into windows are counted as the experiment's own tokenizer cuts them.

    Args:
        experiment: Whose examples are built, a sample of them.
        dataset: What they are built from.
        tokenizers: Directories of tokenizers to count with, instead of the experiment's own.

    Raises:
        FileNotFoundError: There is no tokenizer in a directory.
    """
    users = policy_and_agent_users(dataset, experiment.agents, experiment.seed)[0]
    source = ShardSource(dataset, users[:SAMPLED_USERS])
    stages = ("pretrain", "align") if experiment.pretrain else ("align",)
    parts = []
    with tempfile.TemporaryDirectory() as folder:
        own = tokenizer_of(experiment, dataset, Path(folder))
        counted: dict[str, TextTokenizer] = {
            str(path): TextTokenizer.load(path) for path in tokenizers
        }
        counted = counted or {"its own tokenizer": own}
        for stage in stages:
            train, config = experiment.stage(stage)
            limits = dict.fromkeys(config.tasks, SAMPLED_EXAMPLES)
            sample = replace(config, limits=limits, validation_share=0.0)
            shards = Path(folder) / f"sample-{stage}"
            build_shards(source, shards, sample, count_tokens=own.count)
            for name, tokenizer in counted.items():
                costs = prompt_costs(read_examples(shards), tokenizer)
                parts.append(f"Stage {stage}, {name}:\n\n{costs_table(costs)}")
                mix = train.mix or dict.fromkeys(costs, 1)
                rows = sum(share for task, share in mix.items() if task in costs)
                density = sum(
                    share * 1000 * costs[task].targets / costs[task].tokens
                    for task, share in mix.items()
                    if task in costs
                )
                parts.append(
                    f"In the mix of this stage ({_shares(mix)}), full rows of each task: "
                    f"{density / rows:.1f} targets per 1,000 tokens."
                )
    return "\n\n".join(parts)


def _shares(mix: Mapping[str, int]) -> str:
    return ", ".join(f"{task} {share}" for task, share in mix.items())
