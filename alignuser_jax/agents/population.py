"""Run many sessions at once and return their events: the driver, put to work for agents.

Recommendation requests go to the arm's recommender, language requests to the generator. Every
answer is in the journal before an agent sees it. The events do not depend on the order of the
sessions, on how many run at once or on how often the run was killed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from typing import Any, NamedTuple

from alignuser_jax import records
from alignuser_jax.agents.events import sort_events
from alignuser_jax.agents.session import SessionCoroutine
from alignuser_jax.agents.slates import SlateAnswerer
from alignuser_jax.driver import FailurePolicy, Job, Progress, drive
from alignuser_jax.durable.journal import Journal
from alignuser_jax.records import Event, RecommendationRequest, Recommender


class SessionSpec(NamedTuple):
    """One session to run.

    Attributes:
        arm: The name of the recommender.
        user_id: Whose session it is.
        number: The number of the user's session.
        make: Makes the session's coroutine, anew each time it is called.
    """

    arm: str
    user_id: str
    number: int
    make: Callable[[], SessionCoroutine]


def run_population(
    specs: Sequence[SessionSpec],
    generator: records.Generator,
    recommenders: Mapping[str, Recommender],
    journal: Journal,
    *,
    concurrency: int = 64,
    catalogue: Collection[str] | None = None,
    progress: bool = False,
) -> list[Event]:
    """Run all sessions and return their events, sorted.

    An agent that breaks (its coroutine raises, or its slate fails or is invalid) leaves a
    "failure" event, and the others go on. Interrupted, the run leaves a journal from which the
    same call goes on.

    Args:
        specs: The sessions; each (arm, user, number) may stand there once.
        generator: Answers language requests.
        recommenders: The recommender of each arm.
        journal: Holds the answers of an earlier, killed run; new answers are added to it.
        concurrency: How many sessions run at once.
        catalogue: The ids of all items; with it slates are checked against it.
        progress: Whether to show on standard error how far the run is.

    Raises:
        RecommenderError: A recommender has failed in every session of its arm.
        RecommenderUnavailable: A recommender says that it cannot be reached now.
        JournalError: A question is not the one that the journal recorded.
        ValueError: `concurrency` is below 1, a session is given twice, or an arm has no
            recommender.

    Example:
        >>> from alignuser_jax.agents import AgentUser, SessionConfig, session
        >>> def simulate(dataset, users, world, generator, recommender):
        ...     config = SessionConfig(max_actions=10)
        ...     specs = [
        ...         SessionSpec(
        ...             "als",
        ...             user.user_id,
        ...             0,
        ...             lambda user=user: session(
        ...                 user, world, config, arm="als", number=0, seed=0
        ...             ),
        ...         )
        ...         for user in users
        ...     ]
        ...     with Journal.open("runs/als/journal", {"seed": 0}) as journal:
        ...         return run_population(specs, generator, {"als": recommender}, journal)
    """
    arms = Counter(spec.arm for spec in specs)
    if unknown := arms.keys() - recommenders.keys():
        raise ValueError(
            f"no recommender for arm {', '.join(sorted(unknown))}; there are recommenders for "
            f"{', '.join(sorted(recommenders)) or 'no arm'}"
        )
    shown = Progress(len(specs), progress, unit="session", part="page")
    results = drive(
        [_job(spec) for spec in specs],
        generator,
        journal,
        answerers={
            RecommendationRequest: SlateAnswerer(recommenders, arms, catalogue, shown.add_parts)
        },
        failures=FailurePolicy(_failure),
        concurrency=concurrency,
        progress=shown,
    )
    return sort_events(event for events in results for event in events)


def _job(spec: SessionSpec) -> Job[tuple[Event, ...]]:
    def events() -> Generator[Any, Any, tuple[Event, ...]]:
        outcome = yield from spec.make()
        return outcome.events  # the rest of the outcome is dropped: there may be many sessions

    return Job(spec.arm, spec.user_id, spec.number, events)


def _failure(job: Job[tuple[Event, ...]], error: Exception) -> tuple[Event, ...]:
    """Return the events of a session that broke: one failure."""
    text = f"{type(error).__name__}: {error}"
    return (Event(job.arm, job.user_id, job.session, 0, "failure", text=text),)
