"""Personas matched for a dataset's users, by ratings that prompts may show: journal, cost and
result in one folder.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from alignuser_jax.datasets import Dataset, Log, profile_and_targets
from alignuser_jax.datasets.formats.movielens import AGES_1M, OCCUPATIONS_1M
from alignuser_jax.datasets.splits import PROFILE_SHARE
from alignuser_jax.durable.journal import Journal
from alignuser_jax.personas import (
    Evidence,
    GivenPersonas,
    Match,
    MatchConfig,
    estimate,
    match_users,
    save_matches,
)
from alignuser_jax.personas.given import PARTS
from alignuser_jax.records import Generator


def matching_part(dataset: Dataset, part: str, profile_share: float = PROFILE_SHARE) -> Log:
    """The ratings to match by. "profile": those that prompts of training show too, so that
    the personas fit training and simulation; "train": all that agents of a simulation know."""
    if part not in PARTS:
        raise ValueError(f"part is {part!r}, expected one of {', '.join(PARTS)}")
    if part == "profile":
        return profile_and_targets(dataset.log, profile_share)[0]
    return dataset.log.of_split("train")


def closed_lists(dataset: Dataset) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(ages, occupations) to choose from: the kinds that the dataset has, in MovieLens-1M's
    order where they are its own; for a dataset that knows none all of MovieLens-1M's."""
    lists = []
    for name, known in (("age", AGES_1M), ("occupation", OCCUPATIONS_1M)):
        usual = tuple(known.values())
        found = {row[name].strip() for row in dataset.demographics.values()} - {""}
        if found <= set(usual):
            lists.append(tuple(text for text in usual if text in found) or usual)
        else:
            lists.append(tuple(sorted(found)))
    return lists[0], lists[1]


def match_dataset(
    dataset: Dataset,
    users: Sequence[str],
    config: MatchConfig,
    generator: Generator,
    folder: str | Path,
    *,
    policy_id: str,
    part: str = "profile",
    profile_share: float = PROFILE_SHARE,
    engine: Mapping[str, Any] | None = None,
    note: str = "",
    count_tokens: Callable[[str], int],
    concurrency: int = 64,
    prices: tuple[float, float] = (0.0, 0.0),
    sample: int = 0,
    only_estimate: bool = False,
    say: Callable[[str], None] = print,
    progress: bool = False,
) -> tuple[list[Match], GivenPersonas] | None:
    """Says what it will take, matches `users` and writes `folder`; run again, it goes on from
    the journal there and writes the same bytes.

    The first user with ratings warms the generator up and the next `sample` are timed, so that
    the time for all can be told; their answers are kept. `only_estimate` ends there and returns
    `None`. Raises `ValueError` for unknown users and a negative `sample`, `JournalError` where
    the folder holds another run.
    """
    if sample < 0:
        raise ValueError(f"sample is {sample}, expected 0 or more")
    if unknown := sorted(set(users) - set(dataset.user_ids)):
        raise ValueError(f"{len(unknown)} unknown users, the first is {unknown[0]!r}")
    evidence = Evidence(dataset, matching_part(dataset, part, profile_share))
    cost = estimate(users, evidence, config, count_tokens)
    for line in cost.lines(prices=prices):
        say(line)
    about = {
        "dataset": dataset.name,
        "dataset_hash": dataset.hash,
        "synthetic": dataset.synthetic,
        "part": part,
        "profile_share": profile_share if part == "profile" else None,
        "policy": policy_id,
        "engine": dict(engine or {}),
        "note": note,
        "config": dataclasses.asdict(config),
    }
    folder = Path(folder)
    with Journal.open(folder / "journal", about) as journal:

        def matched(some: Sequence[str], shown: bool = False) -> list[Match]:
            return match_users(
                some,
                evidence,
                config,
                generator,
                journal,
                count_tokens=count_tokens,
                concurrency=concurrency,
                progress=progress and shown,
            )

        found: dict[str, Match] = {}
        if sample and not journal.recovered:
            able = [user for user in users if evidence.count(user)][: 1 + sample]
            first, timed = matched(able[:1]), able[1:]
            started = time.perf_counter()
            found = {match.user_id: match for match in (*first, *matched(timed))}
            if timed:
                seconds = (time.perf_counter() - started) / len(timed)
                say(cost.lines(seconds)[-1])
        elif sample:
            say(f"{journal.recovered} answers are there already, so no time is measured")
        if only_estimate:
            return None
        rest = matched([user for user in users if user not in found], shown=True)
        found |= {match.user_id: match for match in rest}
    matches = [found[user] for user in users]
    return matches, save_matches(folder, matches, about)
