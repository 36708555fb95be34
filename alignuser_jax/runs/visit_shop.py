"""Send agents through a web shop; what happens is a table of events."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
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
from alignuser_jax.datasets.sessions import sessions
from alignuser_jax.driver.backend import Backend
from alignuser_jax.durable.journal import Journal
from alignuser_jax.randomness import stable_key
from alignuser_jax.records import RecommendationRequest, Slate
from alignuser_jax.runs.experiment import Experiment
from alignuser_jax.runs.simulate import population_manifest
from alignuser_jax.views import View
from alignuser_jax.world import (
    CatalogueConfig,
    GeneratedShop,
    WebShop,
    build_index,
    logged_steps,
    make_catalogue,
)
from alignuser_jax.world.generated_shop.goals import read_shop_goals

SHOP_ARM = "shop"
"""The arm of every event, since a shop has no recommender of its own to compare."""

SHOP_AUTOMATA = {"states": 4096, "edges": 64}
"""What an engine needs for the hundred or so actions of a shop's page (DEFAULT)."""


class _NoRecommender:
    """Stands for the recommender of the shop's arm, which no session asks."""

    def recommend(self, requests: Sequence[RecommendationRequest]) -> list[Slate]:
        raise RuntimeError("a web shop has no recommender, and a session asked for one")


class OpenedShop(NamedTuple):
    """A shop to visit.

    Attributes:
        shop: The shop of a log, or a generated one.
        about: What names it in manifests, as plain values.
    """

    shop: WebShop | GeneratedShop
    about: dict[str, Any]


def open_shop(
    dataset: Dataset, goals: str | Path | None = None, catalogue_goals: int = 120
) -> OpenedShop:
    """Open the shop of a log with sessions, or generate one for any other data set.

    Args:
        dataset: A data set; one with sessions (OPeRA) is a shop of its training sessions.
        goals: Folder of WebShop's goals, for the generated shop; `None` generates goals too.
        catalogue_goals: Goals of a generated catalogue.

    Raises:
        ValueError: If `goals` is given for the shop of a log.
    """
    if "sessions" in dataset.extra_tables:
        if goals:
            raise ValueError(
                f"--goals is for the generated shop; {dataset.name} is a log with a shop of "
                "its own: leave it out"
            )
        index = build_index(logged_steps(sessions(dataset, "train")))
        return OpenedShop(WebShop(index), {"kind": "log", "sessions": len(index.session_ids)})
    catalogue = make_catalogue(
        read_shop_goals(goals) if goals else None, CatalogueConfig(goals=catalogue_goals)
    )
    name = f"{stable_key(catalogue.products, catalogue.goals):016x}"
    about = {"kind": "generated", "catalogue": name, "source": catalogue.source}
    return OpenedShop(GeneratedShop(catalogue), about)


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
            {SHOP_ARM: _NoRecommender()},
            journal,
            concurrency=backend.concurrency,
            progress=settings.progress,
        )
    write_events(events, out / "events.parquet")
    return to_table(events)


def summary(events: pa.Table, dataset: Dataset, about: Mapping[str, Any]) -> list[str]:
    """Say in a few lines what the visits were like, beside the sessions of the log.

    Args:
        events: The event table of `visit_shop`.
        dataset: The data set; the sessions of a log stand beside the visits.
        about: What the shop is (`OpenedShop.about`).

    Raises:
        RuntimeError: If no agent got through a visit; says why the first one did not.
    """
    rows = events.to_pylist()
    pages, actions, failures = (
        [event for event in rows if event["kind"] == kind]
        for kind in ("page", "act", "failure")
    )
    lengths = [event["value"] for event in rows if event["kind"] == "exit"]
    if not lengths:
        why = failures[0]["text"] if failures else "there are no users"
        raise RuntimeError(f"no agent visited the shop: {why}")
    purchases = sum(event["kind"] == "purchase" for event in rows)
    lines = []
    if about["kind"] == "generated":
        lines.append(f"a generated shop, SYNTHETIC ({about['source']})")
    lines.append(
        f"{len(lengths)} visits, {purchases} with a purchase; pages a visit: mean "
        f"{np.mean(lengths):.1f}, median {np.median(lengths):.0f}, most {max(lengths):.0f}"
    )
    if about["kind"] == "log":
        logged = list(sessions(dataset, "train"))
        bought = sum(session.outcome == "purchase" for session in logged)
        steps = np.mean([len(session.steps) for session in logged])
        lines.append(
            f"in the log: {len(logged)} training sessions, {bought} with a purchase, "
            f"{steps:.1f} steps on average"
        )
    lines += [
        f"pages by kind: {_counts(event['text'] for event in pages)}",
        f"pages made by: {_counts(event['item_id'] for event in pages)}",
        f"actions by click type: {_counts(e['item_id'] or 'no click' for e in actions)}",
        f"failures: {len(failures)} of {len(rows)} events",
    ]
    reasons = dict.fromkeys(event["text"] for event in failures[:3])
    return lines + [f"failed: {reason}" for reason in reasons]


def _counts(names: Iterable[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in Counter(names).most_common())
