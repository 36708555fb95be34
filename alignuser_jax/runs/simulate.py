"""Agents visit every arm of an A/B test, or a web shop: what happens is a table of events."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from alignuser_jax.agents import (
    SessionSpec,
    run_population,
    session,
    write_events,
)
from alignuser_jax.agents.events import to_table
from alignuser_jax.datasets import Dataset
from alignuser_jax.durable.journal import Journal
from alignuser_jax.randomness import generator_of, stable_key
from alignuser_jax.recommenders.rounds import (
    check_fittable,
    ratings_of,
    snapshot,
    with_ratings,
)
from alignuser_jax.records import Event, Generator, Recommender
from alignuser_jax.runs.experiment import HORIZON, Experiment
from alignuser_jax.views import View
from alignuser_jax.views.sites import agent_user
from alignuser_jax.world import RecommendationSite

Refresh = Literal["frozen", "session", "retrain"]


def simulate(
    experiment: Experiment,
    dataset: Dataset,
    view: View,
    arms: Mapping[str, Recommender],
    generator: Generator,
    count_tokens: Callable[[str], int],
    out: str | Path,
    *,
    users: Sequence[str],
    policy_id: str,
    engine: Mapping[str, Any] | None = None,
    note: str | None = None,
    concurrency: int | None = None,
    seed: int = 0,
    horizon: int = HORIZON,
    show_means: bool = True,
    visit_numbers: Mapping[str, int] | None = None,
    shuffle: int | None = None,
    refresh: Refresh = "session",
    rounds: int = 1,
    progress: bool = True,
) -> pa.Table:
    """Every user's `rounds` visits to every arm over a fixed horizon; the event table, also
    written to `out/events.parquet`. Run again, it goes on from the journal in `out`.

    `refresh`: what a recommender learns of a visit while it lasts. "frozen": nothing, its
    ranking is that of the history; "session": the live session is in every request;
    "retrain": that, and between rounds it is fitted on the view's profile and what was
    simulated in its own arm (snapshots in `out/recommenders`). In later rounds a user's history
    at the site holds what they rated in earlier ones; personas and what agents are told of
    themselves stay those of the log.

    `visit_numbers`: arm -> visit number; arms with one number share their randomness, another
    number is an independent repetition (for an A/A test). `shuffle` starts the sessions in
    another order, which changes nothing. `engine`, `note` and `concurrency` (sessions at once)
    are the experiment's where not given: `backend.Backend` has those of another back end.
    """
    out = Path(out)
    if refresh not in (known := typing.get_args(Refresh)):
        raise ValueError(f"refresh is {refresh!r}, expected one of {', '.join(known)}")
    if rounds < 1 or (refresh == "retrain" and rounds < 2):
        raise ValueError(
            f"rounds is {rounds}: expected at least 1, and 2 to retrain in between"
        )
    if refresh == "retrain":
        check_fittable(arms)
    site_config = replace(experiment.site, horizon=horizon, show_mean_rating=show_means)
    numbers = visit_numbers or {}
    people = {user: agent_user(view, user, experiment.session) for user in users}

    def site(ratings: Mapping[str, tuple]) -> RecommendationSite:
        histories = dict(view.histories)
        for user, rated in ratings.items():
            histories[user] = (*histories[user], *rated)
        return RecommendationSite(
            dataset.items, histories, view.mean_ratings, site_config, refresh == "frozen"
        )

    def spec(arm: str, user: str, world: RecommendationSite, turn: int) -> SessionSpec:
        number = numbers.get(arm, 0) * rounds + turn

        def make():
            return session(
                people[user],
                world,
                experiment.session,
                arm=arm,
                number=number,
                seed=seed,
                count_tokens=count_tokens,
            )

        return SessionSpec(arm, user, number, make)

    def specs(turn: int, sites: Mapping[str, RecommendationSite]) -> list[SessionSpec]:
        made = [spec(arm, user, sites[arm], turn) for user in users for arm in arms]
        if shuffle is None:
            return made
        order = generator_of(shuffle).permutation(len(made))
        return [made[n] for n in order]

    manifest = {
        "experiment": experiment.name,
        "note": experiment.note if note is None else note,
        "dataset": dataset.name,
        "dataset_hash": dataset.hash,
        "synthetic": dataset.synthetic,
        "policy": policy_id,
        "engine": dataclasses.asdict(experiment.engine) if engine is None else dict(engine),
        "dtype": experiment.dtype,
        "site": dataclasses.asdict(site_config),
        "session": dataclasses.asdict(experiment.session),
        "seed": seed,
        "refresh": refresh,
        "rounds": rounds,
        "arms": {
            arm: [getattr(r, "name", arm), getattr(r, "version", ""), numbers.get(arm, 0)]
            for arm, r in arms.items()
        },
        "users": len(users),
        "users_hash": f"{stable_key(*users):x}",
        **({"personas": view.given} if view.given else {}),
    }
    events: list[Event] = []
    with Journal.open(out / "journal", manifest) as journal:
        for turn in range(rounds):
            rated = ratings_of(events)
            if turn and refresh == "retrain":
                logs = {a: with_ratings(dataset, view.profile, rated.get(a, {})) for a in arms}
                arms = {
                    arm: snapshot(r, dataset, logs[arm], out / "recommenders", arm, turn)
                    for arm, r in arms.items()
                }
            unchanged = site({})
            events += run_population(
                specs(turn, {a: site(rated[a]) if a in rated else unchanged for a in arms}),
                generator,
                arms,
                journal,
                concurrency=concurrency or experiment.engine.slots,
                catalogue=dataset.item_ids,
                progress=progress,
            )
    write_events(events, out / "events.parquet")
    return to_table(events)


def failures(events: pa.Table) -> int:
    """How many calls ended in an explicit failure; 0 says that every action was valid."""
    return int(pa.compute.sum(pa.compute.equal(events["kind"], "failure")).as_py() or 0)
