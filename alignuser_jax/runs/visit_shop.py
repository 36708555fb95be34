"""Send agents through a web shop; what happens is a table of events."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
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
from alignuser_jax.datasets import Dataset
from alignuser_jax.durable.journal import Journal
from alignuser_jax.randomness import stable_key
from alignuser_jax.records import Generator
from alignuser_jax.runs.experiment import Experiment
from alignuser_jax.views import View
from alignuser_jax.world import GeneratedShop, WebShop

SHOP_ARM = "shop"


SHOP_AUTOMATA = {"states": 4096, "edges": 64}
"""What an engine needs for the some hundred actions of a shop's page (DEFAULT)."""


def visit_shop(
    experiment: Experiment,
    dataset: Dataset,
    view: View,
    shop: WebShop | GeneratedShop,
    generator: Generator,
    count_tokens: Callable[[str], int],
    out: str | Path,
    *,
    users: Sequence[str],
    policy_id: str,
    engine: Mapping[str, Any],
    note: str,
    concurrency: int,
    about: Mapping[str, Any],
    max_actions: int = 60,
    seed: int = 0,
    progress: bool = True,
) -> pa.Table:
    """One visit of every user to a web shop (`agents.shop_session`); the event table, also
    written to `out/events.parquet`. Run again, it goes on from the journal in `out`. `about`
    names the shop in the manifest."""
    out = Path(out)
    config = replace(experiment.session, max_actions=max_actions)

    def spec(user: str) -> SessionSpec:
        def make():
            return shop_session(
                AgentUser(view.personas[user]),
                shop,
                config,
                arm=SHOP_ARM,
                number=0,
                seed=seed,
                count_tokens=count_tokens,
            )

        return SessionSpec(SHOP_ARM, user, 0, make)

    manifest = {
        "experiment": experiment.name,
        "note": note,
        "dataset": dataset.name,
        "dataset_hash": dataset.hash,
        "synthetic": dataset.synthetic or isinstance(shop, GeneratedShop),
        "policy": policy_id,
        "engine": dict(engine),
        "dtype": experiment.dtype,
        "shop": dict(about),
        "session": dataclasses.asdict(config),
        "seed": seed,
        "users": len(users),
        "users_hash": f"{stable_key(*users):x}",
        **({"personas": view.given} if view.given else {}),
    }
    with Journal.open(out / "journal", manifest) as journal:
        events = run_population(
            [spec(user) for user in users],
            generator,
            {SHOP_ARM: None},
            journal,
            concurrency=concurrency,
            progress=progress,
        )
    write_events(events, out / "events.parquet")
    return to_table(events)
