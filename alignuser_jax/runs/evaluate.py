"""Run evaluation protocols on the policies of a run and write their tables as they come."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from alignuser_jax.datasets import Dataset
from alignuser_jax.durable.whole import write_whole
from alignuser_jax.evaluation.protocol import (
    EvaluationConfig,
    OpenPolicy,
    Protocol,
    ProtocolResult,
    Subject,
)
from alignuser_jax.evaluation.suite import run_protocols
from alignuser_jax.personas import GivenPersonas
from alignuser_jax.records import Example
from alignuser_jax.runs.backend import METRICS_FILE, BackendChoice, open_backend
from alignuser_jax.runs.experiment import Experiment
from alignuser_jax.shards import read_examples
from alignuser_jax.text import Say
from alignuser_jax.views import policy_and_agent_users

TABLES_FILE = "evaluation.md"


@dataclass(frozen=True)
class EvaluationSettings:
    """Which policies are tested, on whom, and where the tables go.

    Attributes:
        out: Folder of the tables and of the figures of the back ends.
        adapters: The adapter folder of each policy, by the policy's name; "" is the first
            stage alone, `None` the run's own adapter.
        agents: Users of the rating and preference tests, at most.
        personas: Personas that replace those computed from the log.
        config: The settings of the protocols.
    """

    out: Path
    adapters: Mapping[str, str | None]
    agents: int = 1000
    personas: GivenPersonas | None = None
    config: EvaluationConfig = EvaluationConfig()

    def __post_init__(self) -> None:
        if self.agents < 1:
            raise ValueError(f"agents is {self.agents}, expected at least 1")
        if not self.adapters:
            raise ValueError("there is no policy to test: name at least one adapter")


def evaluate(
    experiment: Experiment,
    dataset: Dataset,
    run: Path | None,
    choice: BackendChoice,
    protocols: Sequence[Protocol],
    settings: EvaluationSettings,
    say: Say = print,
) -> list[ProtocolResult]:
    """Run the protocols, print each one's tables and write them to `OUT/evaluation.md`.

    Args:
        experiment: The run's experiment.
        dataset: The run's data set.
        run: The run folder; `None` if a server or a recording answers.
        choice: Who answers. Answers of each policy and protocol are recorded in files of
            their own.
        protocols: What is tested.
        settings: Which policies, on whom.
        say: Prints progress and tables.

    Returns:
        The outcome of each protocol.
    """
    notes: dict[str, str] = {}  # what answered, by the policy's name

    @contextmanager
    def opened(name: str, protocol: str, reply_tokens: int) -> Iterator[OpenPolicy]:
        part = choice.of_part(protocol if name == "agents" else f"{protocol}.{name}")
        part = replace(part, adapter=settings.adapters[name], reply_tokens=reply_tokens)
        metrics = settings.out / METRICS_FILE
        with open_backend(part, experiment, dataset, run, say=say, metrics=metrics) as (
            backend,
            fitted,
        ):
            notes[name] = backend.note
            yield OpenPolicy(backend, fitted.site, fitted.session)

    def transitions(folder: Path) -> Iterator[Example]:
        examples = read_examples(folder / "shards" / "align" / "validation")
        return (example for example in examples if example.task == "world_model")

    agents = policy_and_agent_users(dataset, experiment.agents, experiment.seed)[1]
    codes = {user: code for code, user in enumerate(dataset.user_ids)}
    subject = Subject(
        dataset,
        np.array([codes[user] for user in agents[: settings.agents]]),
        tuple(settings.adapters),
        opened,
        None if run is None else lambda: transitions(run),
        settings.personas,
        settings.config,
        say,
    )
    settings.out.mkdir(parents=True, exist_ok=True)
    outcomes: list[ProtocolResult] = []
    for outcome in run_protocols(protocols, subject):
        outcomes.append(outcome)
        say(f"\n{outcome.text}\n")
        about = notes or {"experiment": experiment.note}
        parts = ["\n".join(f"{name}: {note}" for name, note in about.items())]
        parts += [outcome.text for outcome in outcomes]
        write_whole(settings.out / TABLES_FILE, "\n\n".join(parts) + "\n")
    return outcomes
