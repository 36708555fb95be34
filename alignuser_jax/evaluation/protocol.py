"""Describe an evaluation protocol as a value, and what it is run on.

A protocol is one test of how far a policy behaves like the humans of a log. Each stands in a
file of its own with the same three verbs: `requests` (what the policy is asked), `score` (how
its answers compare with held-out data, beside baselines) and `table` (the result as Markdown).
`suite.PROTOCOLS` lists them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import numpy as np

from alignuser_jax.agents import SessionConfig
from alignuser_jax.datasets import Dataset
from alignuser_jax.driver import Backend, Progress, waiting
from alignuser_jax.personas import GivenPersonas
from alignuser_jax.records import Completion, Example, Request
from alignuser_jax.sampling import generate
from alignuser_jax.sampling.generate import check_answered
from alignuser_jax.text import Say
from alignuser_jax.world import SiteConfig

CHUNK = 1024
"""Requests that are submitted together."""


@dataclass(frozen=True)
class EvaluationConfig:
    """The settings of all protocols.

    Attributes:
        cap: Ratings of one user, at most. 20 is a DEFAULT (docs/method.md section 12.2).
        reasoning_samples: Also ask for ratings after reasoning, this many samples of each;
            0 for never.
        reasoning_tokens: Tokens of that reasoning, at most.
        swap_history: Also ask for ratings with another user's persona, history and memory.
        next_states: Transitions of the next-state test, at most.
        seed: Names draws and bootstraps.
    """

    cap: int = 20
    reasoning_samples: int = 0
    reasoning_tokens: int = 64
    swap_history: bool = False
    next_states: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"cap": 1, "reasoning_samples": 0, "reasoning_tokens": 1, "next_states": 1}
        for name, low in least.items():
            if (number := getattr(self, name)) < low:
                raise ValueError(f"{name} is {number}, expected {low} or more")


@dataclass(frozen=True)
class OpenPolicy:
    """A policy under test, with its back end open.

    Attributes:
        backend: Answers the requests.
        site: The site whose pages the policy is shown.
        session: How the agents ask it, with the context length of what answers.
    """

    backend: Backend
    site: SiteConfig
    session: SessionConfig


@dataclass(frozen=True)
class Subject:
    """What a protocol is run on: the policies under test and the data they are tested with.

    Attributes:
        dataset: The log.
        users: int[n], codes of the agents: users whose ratings no policy was trained on.
        policies: Names of the policies. The first is the one to accept or not; protocols that
            test one policy only test that one.
        open: Opens a policy's back end for the block of a `with` statement. Called with the
            policy's name, the protocol's name and the tokens of a reply for which the context
            needs room beyond a session's.
        transitions: Held-out world-model examples of the run; `None` without a run.
        personas: Personas that replace those computed from the log, if any.
        config: The settings.
        say: Prints a line of progress.
    """

    dataset: Dataset
    users: np.ndarray
    policies: tuple[str, ...]
    open: Callable[[str, str, int], AbstractContextManager[OpenPolicy]]
    transitions: Callable[[], Iterator[Example]] | None = None
    personas: GivenPersonas | None = None
    config: EvaluationConfig = field(default_factory=EvaluationConfig)
    say: Say = print


@dataclass(frozen=True)
class ProtocolResult:
    """What a protocol found.

    Attributes:
        text: The tables, with their titles.
        failures: Why the first policy is not accepted, one sentence each; empty if it is
            accepted, `None` if this protocol accepts or refuses nothing.
        error: Why the protocol has no result, where requests failed; "" if it has one.
    """

    text: str
    failures: tuple[str, ...] | None = None
    error: str = ""


@dataclass(frozen=True)
class Protocol:
    """An evaluation protocol as a value.

    Attributes:
        name: The name by which `alignuser evaluate --what` chooses it.
        needs: Optional attributes of `Subject` that `run` reads; they must not be `None`.
        run: Asks, scores and formats. May raise `RequestsFailed`.

    Example:
        A new protocol is a file with a `run` function and a line in `suite.PROTOCOLS`:

        >>> def run(subject: Subject) -> ProtocolResult:
        ...     return ProtocolResult(f"{len(subject.users)} users")
        >>> PROTOCOL = Protocol("size", needs=(), run=run)
    """

    name: str
    needs: tuple[str, ...]
    run: Callable[[Subject], ProtocolResult]


def ask(
    backend: Backend, requests: Sequence[Request], what: str, say: Say | None = None
) -> list[Completion]:
    """Return the completions of all requests, in order.

    Args:
        backend: Answers.
        requests: What to ask.
        what: Names the requests in progress lines and errors.
        say: Prints what was asked at the end; without it no progress is shown either.

    Raises:
        RequestsFailed: Some requests have no answer. It is raised after all were asked, so
            that a recording holds the others, and names the reasons.
    """
    done: list[Completion] = []
    progress = Progress(len(requests), say is not None, unit="reply", label=what)
    for start in range(0, len(requests), CHUNK):
        part = requests[start : start + CHUNK]
        with waiting(f"{what}: {len(part)} requests are with the model", say, seconds=60.0):
            done += generate(backend.generator, part, progress.finished)
    progress.close()
    if say:
        say(f"{what}: {len(done)}/{len(requests)}")
    check_answered(done, what)
    return done
