"""Match personas to the users of a dataset: the estimate, the journal and the result's folder.

The ratings that users are matched by must be ones that prompts may show; `matching_part` cuts
them from the log.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignuser_jax.datasets.dataset import Dataset
from alignuser_jax.datasets.formats.movielens import AGES_1M, OCCUPATIONS_1M
from alignuser_jax.datasets.log import Log
from alignuser_jax.datasets.splits import PROFILE_SHARE, profile_and_targets
from alignuser_jax.driver import Backend
from alignuser_jax.durable.journal import Journal
from alignuser_jax.personas.cost import Cost, estimate
from alignuser_jax.personas.given import PARTS, GivenPersonas, save_matches
from alignuser_jax.personas.match_users import match_users
from alignuser_jax.personas.matching import Match, MatchConfig
from alignuser_jax.personas.user_ratings import UserRatings


@dataclass(frozen=True)
class MatchPlan:
    """What of a dataset is matched, and how its cost is told.

    Attributes:
        part: The ratings to match by (`PARTS`). "profile": those that training prompts show
            too, so that the personas fit training and simulation; "train": all that agents know
            in a simulation.
        profile_share: The share of the train part that is the profile.
        sample: How many users are matched and timed first, so that the time for all can be
            told; 0 for none.
        only_estimate: Whether to stop after the estimate.
        prices: Per million prompt tokens and per million generated tokens; 0 for no price.
        progress: Whether to show on standard error how far the run is.
    """

    part: str = "profile"
    profile_share: float = PROFILE_SHARE
    sample: int = 0
    only_estimate: bool = False
    prices: tuple[float, float] = (0.0, 0.0)
    progress: bool = False

    def __post_init__(self) -> None:
        if self.part not in PARTS:
            raise ValueError(f"part is {self.part!r}, expected one of {', '.join(PARTS)}")
        if not 0 < self.profile_share <= 1:
            raise ValueError(
                f"profile_share is {self.profile_share}, expected a share above 0, at most 1"
            )
        if self.sample < 0:
            raise ValueError(f"sample is {self.sample}, expected 0 or more")
        if not all(0 <= price < float("inf") for price in self.prices):
            raise ValueError(f"prices are {self.prices}, expected two numbers of 0 or more")


def matching_part(dataset: Dataset, part: str, profile_share: float = PROFILE_SHARE) -> Log:
    """Return the ratings to match by; see `MatchPlan.part`."""
    if part not in PARTS:
        raise ValueError(f"part is {part!r}, expected one of {', '.join(PARTS)}")
    if part == "profile":
        return profile_and_targets(dataset.log, profile_share)[0]
    return dataset.log.of_split("train")


def closed_lists(dataset: Dataset) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the (ages, occupations) to choose from.

    They are the kinds that the dataset has, in MovieLens-1M's order if they are its own. For a
    dataset that has none they are all of MovieLens-1M's.
    """
    lists = []
    for name, movielens in (("age", AGES_1M), ("occupation", OCCUPATIONS_1M)):
        usual = tuple(movielens.values())
        kinds = {row[name].strip() for row in dataset.demographics.values()} - {""}
        if kinds <= set(usual):
            lists.append(tuple(text for text in usual if text in kinds) or usual)
        else:
            lists.append(tuple(sorted(kinds)))
    return lists[0], lists[1]


def match_dataset(
    dataset: Dataset,
    users: Sequence[str],
    config: MatchConfig,
    backend: Backend,
    folder: str | Path,
    plan: MatchPlan | None = None,
    say: Callable[[str], None] = print,
) -> tuple[list[Match], GivenPersonas] | None:
    """Say what matching will take, match `users` and write the result into `folder`.

    Run again, it goes on from the journal in the folder and writes the same bytes. The first
    user with ratings warms the generator up and the next `plan.sample` are timed; their answers
    are kept.

    Args:
        dataset: Gives users and ratings.
        users: The ids of the users to match.
        config: How personas are matched.
        backend: Answers the requests.
        folder: For the journal, the personas and the manifest.
        plan: What is matched and told; `MatchPlan()` by default.
        say: Called with each line of text for the user.

    Returns:
        The matches in the order of `users` and the personas as `read_personas` reads them, or
        `None` if `plan.only_estimate`.

    Raises:
        ValueError: A user is unknown, or none has ratings.
        JournalError: The folder holds another run.

    Example:
        >>> def match_all(dataset, backend):
        ...     config = MatchConfig(*closed_lists(dataset))
        ...     users, plan = dataset.user_ids, MatchPlan(sample=8)
        ...     return match_dataset(dataset, users, config, backend, "runs/personas", plan)
    """
    plan = plan or MatchPlan()
    if unknown := sorted(set(users) - set(dataset.user_ids)):
        raise ValueError(f"{len(unknown)} unknown users, the first is {unknown[0]!r}")
    ratings = UserRatings(dataset, matching_part(dataset, plan.part, plan.profile_share))
    cost = estimate(users, ratings, config, backend.count_tokens)
    for line in cost.lines(prices=plan.prices):
        say(line)
    about = _manifest(dataset, config, backend, plan)
    folder = Path(folder)
    with Journal.open(folder / "journal", about) as journal:

        def match_some(some: Sequence[str], progress: bool = False) -> dict[str, Match]:
            matches = match_users(some, ratings, config, backend, journal, progress=progress)
            return {match.user_id: match for match in matches}

        matches: dict[str, Match] = {}
        if plan.sample and not journal.recovered:
            able = [user for user in users if ratings.count(user)][: 1 + plan.sample]
            matches = _timed(able, match_some, cost, say)
        elif plan.sample:
            say(f"{journal.recovered} answers are there already, so no time is measured")
        if plan.only_estimate:
            return None
        matches |= match_some([user for user in users if user not in matches], plan.progress)
    ordered = [matches[user] for user in users]
    return ordered, save_matches(folder, ordered, about)


def _manifest(
    dataset: Dataset, config: MatchConfig, backend: Backend, plan: MatchPlan
) -> dict[str, Any]:
    return {
        "dataset": dataset.name,
        "dataset_hash": dataset.hash,
        "synthetic": dataset.synthetic,
        "part": plan.part,
        "profile_share": plan.profile_share if plan.part == "profile" else None,
        "policy": backend.policy_id,
        "engine": dict(backend.engine),
        "note": backend.note,
        "config": dataclasses.asdict(config),
    }


def _timed(
    users: Sequence[str],
    match_some: Callable[[Sequence[str]], Mapping[str, Match]],
    cost: Cost,
    say: Callable[[str], None],
) -> dict[str, Match]:
    """Match the first user, then the others, and say how long all users will take."""
    matches = dict(match_some(users[:1]))
    started = time.perf_counter()
    timed = users[1:]
    matches |= match_some(timed)
    if timed:
        seconds = (time.perf_counter() - started) / len(timed)
        say(cost.lines(seconds)[-1])
    return matches
