"""Send agents through a web shop; what happens is a table of events."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from alignuser_jax.agents import (
    AgentUser,
    SessionSpec,
    run_population,
    shop_session,
    write_events,
)
from alignuser_jax.agents.events import to_table
from alignuser_jax.agents.session import SessionCoroutine
from alignuser_jax.datasets import Dataset
from alignuser_jax.driver.backend import Backend
from alignuser_jax.durable.journal import Journal
from alignuser_jax.runs.experiment import Experiment
from alignuser_jax.runs.simulate import population_manifest
from alignuser_jax.views import View
from alignuser_jax.world import GeneratedShop, WebShop

SHOP_ARM = "shop"
"""The arm of every event, since a shop has no recommender of its own to compare."""

SHOP_AUTOMATA = {"states": 4096, "edges": 64}
"""What an engine needs for the hundred or so actions of a shop's page (DEFAULT)."""


@dataclass(frozen=True)
class ShopSettings:
    """Who shops and for how long.

    Attributes:
        users: Ids of the users that become agents.
        about: What names the shop in the manifest, as plain values.
        max_actions: Actions of a visit, at most.
        seed: Seed of the agents' randomness.
        progress: Whether progress is shown.

    Raises:
        ValueError: If `max_actions` is below 1.
    """

    users: Sequence[str]
    about: Mapping[str, Any] = field(default_factory=dict)
    max_actions: int = 60
    seed: int = 0
    progress: bool = True

    def __post_init__(self) -> None:
        """Refuse a visit without actions."""
        if self.max_actions < 1:
            raise ValueError(f"max_actions is {self.max_actions}: expected at least 1")


def visit_shop(
    experiment: Experiment,
    dataset: Dataset,
    view: View,
    shop: WebShop | GeneratedShop,
    backend: Backend,
    out: str | Path,
    settings: ShopSettings,
) -> pa.Table:
    """Simulate one visit of every user to a web shop and return the event table.

    The table is also written to `OUT/events.parquet`; the same call goes on from the journal in
    `OUT`. `agents.shop_session` says what each kind of event holds.

    Args:
        experiment: Gives the session; its context is that of `backend`.
        dataset: The data set of the users.
        view: Their personas.
        shop: The shop of a log, or a generated one.
        backend: Who answers the agents.
        out: Folder of these visits.
        settings: Who shops and for how long.
    """
    out = Path(out)
    config = replace(experiment.session, max_actions=settings.max_actions)

    def spec(user: str) -> SessionSpec:
        def make() -> SessionCoroutine:
            return shop_session(
                AgentUser(view.personas[user]),
                shop,
                config,
                arm=SHOP_ARM,
                number=0,
                seed=settings.seed,
                count_tokens=backend.count_tokens,
            )

        return SessionSpec(SHOP_ARM, user, 0, make)

    manifest = population_manifest(experiment, dataset, view, backend, settings.users) | {
        "synthetic": dataset.synthetic or isinstance(shop, GeneratedShop),
        "shop": dict(settings.about),
        "session": dataclasses.asdict(config),
        "seed": settings.seed,
    }
    with Journal.open(out / "journal", manifest) as journal:
        events = run_population(
            [spec(user) for user in settings.users],
            backend.generator,
            {SHOP_ARM: None},
            journal,
            concurrency=backend.concurrency,
            progress=settings.progress,
        )
    write_events(events, out / "events.parquet")
    return to_table(events)
