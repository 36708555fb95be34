"""Send agents to every arm of an A/B test; what happens is a table of events."""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from alignuser_jax.agents import SessionSpec, run_population, session, write_events
from alignuser_jax.agents.events import to_table
from alignuser_jax.agents.session import SessionCoroutine
from alignuser_jax.datasets import Dataset
from alignuser_jax.driver.backend import Backend
from alignuser_jax.durable.journal import Journal
from alignuser_jax.randomness import generator_of, stable_key
from alignuser_jax.recommenders.rounds import (
    check_fittable,
    ratings_of,
    snapshot,
    with_ratings,
)
from alignuser_jax.records import Event, Recommender
from alignuser_jax.runs.experiment import HORIZON, Experiment
from alignuser_jax.views import View
from alignuser_jax.views.sites import agent_user
from alignuser_jax.world import RecommendationSite, readable

Refresh = Literal["frozen", "session", "retrain"]


@dataclass(frozen=True)
class SimulationSettings:
    """Who visits, how often, and what a recommender learns meanwhile.

    Attributes:
        users: Ids of the users that become agents.
        seed: Seed of the agents' randomness.
        horizon: Pages of every visit.
        show_means: Whether pages show an item's mean rating.
        visit_numbers: Arm to visit number (0 if absent). Arms with one number share their
            randomness; another number is an independent repetition, as an A/A test needs.
        shuffle: Seed of another order in which sessions start, which changes no result;
            `None` keeps the order of `users`.
        refresh: What a recommender learns. "frozen": nothing, it ranks once by the history.
            "session": every request carries the live session. "retrain": that, and between
            rounds it is fitted again on the view's profile and on what was simulated in its own
            arm (snapshots in `OUT/recommenders`). In later rounds a user's history at the site
            holds what they rated in earlier ones; personas, and what agents are told of
            themselves, stay those of the log.
        rounds: Visits of every user to every arm; at least 2 for "retrain".
        progress: Whether progress is shown.

    Raises:
        ValueError: If a value makes no sense; names it.

    Example:
        >>> SimulationSettings(users=("u1", "u2"), rounds=2, refresh="retrain").horizon
        5
    """

    users: Sequence[str]
    seed: int = 0
    horizon: int = HORIZON
    show_means: bool = True
    visit_numbers: Mapping[str, int] = field(default_factory=dict)
    shuffle: int | None = None
    refresh: Refresh = "session"
    rounds: int = 1
    progress: bool = True

    def __post_init__(self) -> None:
        """Refuse values that make no sense."""
        if self.refresh not in (names := typing.get_args(Refresh)):
            raise ValueError(f"refresh is {self.refresh!r}, expected one of {', '.join(names)}")
        if self.rounds < 1 or (self.refresh == "retrain" and self.rounds < 2):
            raise ValueError(
                f"rounds is {self.rounds}: expected at least 1, and 2 to retrain in between"
            )
        if self.horizon < 1:
            raise ValueError(f"horizon is {self.horizon}: expected at least 1 page")


def simulate(
    experiment: Experiment,
    dataset: Dataset,
    view: View,
    arms: Mapping[str, Recommender],
    backend: Backend,
    out: str | Path,
    settings: SimulationSettings,
) -> pa.Table:
    """Simulate every user's visits to every arm and return the event table.

    The table is also written to `OUT/events.parquet`. Every answer is in the journal in `OUT`
    before an agent sees it, so the same call goes on where an earlier one was stopped.

    Args:
        experiment: Gives the site and the session; its context is that of `backend`.
        dataset: The items.
        view: What is known of the users.
        arms: Arm name to recommender.
        backend: Who answers the agents.
        out: Folder of this simulation.
        settings: Who visits and how often.

    Raises:
        JournalError: If `OUT` holds another simulation.
        RecommenderError: If an arm's recommender failed in every session.
        RecommenderUnavailable: If a recommender cannot be asked now.
        ValueError: If a recommender cannot be fitted and `settings.refresh` is "retrain".
    """
    out = Path(out)
    if settings.refresh == "retrain":
        check_fittable(arms)
    visits = _Visits(experiment, dataset, view, backend, settings)
    events: list[Event] = []
    with Journal.open(out / "journal", visits.manifest(arms)) as journal:
        for turn in range(settings.rounds):
            rated = ratings_of(events)
            if turn and settings.refresh == "retrain":
                logs = {a: with_ratings(dataset, view.profile, rated.get(a, {})) for a in arms}
                arms = {
                    arm: snapshot(r, dataset, logs[arm], out / "recommenders", arm, turn)
                    for arm, r in arms.items()
                }
            events += run_population(
                visits.specs(turn, arms, rated),
                backend.generator,
                arms,
                journal,
                concurrency=backend.concurrency,
                catalogue=dataset.item_ids,
                progress=settings.progress,
            )
    write_events(events, out / "events.parquet")
    return to_table(events)


class _Visits:
    """The sessions of a simulation, and what its manifest says of them."""

    def __init__(
        self,
        experiment: Experiment,
        dataset: Dataset,
        view: View,
        backend: Backend,
        settings: SimulationSettings,
    ):
        self.experiment, self.dataset, self.view = experiment, dataset, view
        self.backend, self.settings = backend, settings
        self.site_config = replace(
            experiment.site, horizon=settings.horizon, show_mean_rating=settings.show_means
        )
        self.items = readable(dataset.items)
        self.agents = {u: agent_user(view, u, experiment.session) for u in settings.users}

    def site(self, rated: Mapping[str, tuple]) -> RecommendationSite:
        """The site of an arm whose users have `rated` these items in earlier rounds."""
        histories = dict(self.view.histories)
        for user, ratings in rated.items():
            histories[user] = (*histories[user], *ratings)
        frozen = self.settings.refresh == "frozen"
        means = self.view.mean_ratings
        return RecommendationSite(self.items, histories, means, self.site_config, frozen)

    def specs(
        self, turn: int, arms: Mapping[str, Recommender], rated: Mapping[str, Mapping]
    ) -> list[SessionSpec]:
        """The sessions of round `turn` (from 0), in the order in which they start."""
        unchanged = self.site({})
        sites = {arm: self.site(rated[arm]) if arm in rated else unchanged for arm in arms}
        specs = [self.spec(a, u, sites[a], turn) for u in self.settings.users for a in arms]
        if self.settings.shuffle is None:
            return specs
        order = generator_of(self.settings.shuffle).permutation(len(specs))
        return [specs[n] for n in order]

    def spec(self, arm: str, user: str, site: RecommendationSite, turn: int) -> SessionSpec:
        """One user's visit to one arm in round `turn`."""
        settings = self.settings
        number = settings.visit_numbers.get(arm, 0) * settings.rounds + turn

        def make() -> SessionCoroutine:
            return session(
                self.agents[user],
                site,
                self.experiment.session,
                arm=arm,
                number=number,
                seed=settings.seed,
                count_tokens=self.backend.count_tokens,
            )

        return SessionSpec(arm, user, number, make)

    def manifest(self, arms: Mapping[str, Recommender]) -> dict[str, Any]:
        """Everything that decides the result, as plain values."""
        settings = self.settings
        about = population_manifest(
            self.experiment, self.dataset, self.view, self.backend, settings.users
        )
        return about | {
            "site": dataclasses.asdict(self.site_config),
            "session": dataclasses.asdict(self.experiment.session),
            "seed": settings.seed,
            "refresh": settings.refresh,
            "rounds": settings.rounds,
            "arms": {
                arm: [
                    getattr(recommender, "name", arm),
                    getattr(recommender, "version", ""),
                    settings.visit_numbers.get(arm, 0),
                ]
                for arm, recommender in arms.items()
            },
        }


def population_manifest(
    experiment: Experiment,
    dataset: Dataset,
    view: View,
    backend: Backend,
    users: Sequence[str],
) -> dict[str, Any]:
    """Return what the manifest of any simulated population says, as plain values."""
    return {
        "experiment": experiment.name,
        "note": backend.note,
        "dataset": dataset.name,
        "dataset_hash": dataset.hash,
        "synthetic": dataset.synthetic,
        "policy": backend.policy_id,
        "engine": dict(backend.engine),
        "dtype": experiment.dtype,
        "users": len(users),
        "users_hash": f"{stable_key(*users):x}",
        **({"personas": view.persona_source} if view.persona_source else {}),
    }


class Simulation(NamedTuple):
    """A finished simulation, as it stands in its folder.

    Attributes:
        events: The event table.
        manifest: What decided the result, as plain values.
    """

    events: pa.Table
    manifest: dict[str, Any]


def read_simulation(folder: str | Path) -> Simulation:
    """Read a finished simulation.

    Raises:
        FileNotFoundError: If the folder holds none, or one that is not finished.
    """
    path = Path(folder) / "events.parquet"
    if not path.is_file():
        raise FileNotFoundError(f"no {path}: finish `alignuser simulate --out={folder}` first")
    manifest = json.loads((Path(folder) / "journal" / "manifest.json").read_text())
    return Simulation(pq.read_table(path), manifest)


def failures(events: pa.Table) -> int:
    """Count the calls that ended in an explicit failure; 0 says that every action was valid."""
    return int(pa.compute.sum(pa.compute.equal(events["kind"], "failure")).as_py() or 0)
