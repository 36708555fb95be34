"""Match personas to many users at once: the driver, put to work for persona matching.

A request that failed is no answer. It is used, but not recorded, and neither is what its user
is asked in later batches, since another answer may lead to other questions. So a run that is
started again asks those questions again.
"""

from __future__ import annotations

from collections.abc import Sequence

from alignuser_jax.driver import Backend, FailurePolicy, Job, Progress, drive
from alignuser_jax.durable.journal import Journal
from alignuser_jax.personas.matching import Match, MatchConfig, match
from alignuser_jax.personas.user_ratings import UserRatings

ARM = "match"
"""Stands for the arm in the journal's question ids."""


def match_users(
    users: Sequence[str],
    ratings: UserRatings,
    config: MatchConfig,
    backend: Backend,
    journal: Journal,
    *,
    progress: bool = False,
) -> list[Match]:
    """Match a persona to every user and return the matches in the order of `users`.

    A match does not depend on the other users, on how many are matched at once, on the order in
    which answers arrive, or on how often the run was killed.

    Args:
        users: User ids, each once.
        ratings: The ratings to match by.
        config: How personas are matched.
        backend: Answers; its `concurrency` users are matched at once.
        journal: Holds the answers of an earlier, killed run; new answers are added to it.
        progress: Whether to show on standard error how far the run is.

    Raises:
        JournalError: A question is not the one that the journal recorded.
        KeyError: A user is unknown.
        ValueError: A user is given twice, or `concurrency` is below 1.

    Example:
        >>> def match_all(dataset, log, backend):
        ...     ratings = UserRatings(dataset, log)
        ...     config = MatchConfig(ages=("18-24", "25-34"), occupations=("artist", "lawyer"))
        ...     with Journal.open("runs/personas/journal", {"seed": config.seed}) as journal:
        ...         return match_users(dataset.user_ids, ratings, config, backend, journal)
    """

    def job(user: str) -> Job[Match]:
        return Job(ARM, user, 0, lambda: match(user, ratings, config, backend.count_tokens))

    return drive(
        [job(user) for user in users],
        backend.generator,
        journal,
        failures=FailurePolicy(record=False, in_result=lambda match: match.persona is None),
        concurrency=backend.concurrency,
        progress=Progress(len(users), progress, unit="user"),
    )
