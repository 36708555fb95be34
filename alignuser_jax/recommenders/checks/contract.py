"""The contract check: what a simulation relies on, tried on somebody's recommender.

A recommender is asked as the simulator asks it and every answer is looked at; nothing that it
does, an exception included, stops the check, unless it is away (`RecommenderUnavailable`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from alignuser_jax.randomness import stable_key
from alignuser_jax.recommenders.checks.contract_checks import Broken, Trial
from alignuser_jax.records import (
    Interaction,
    RecommendationRequest,
    Recommender,
    RecommenderUnavailable,
)


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    passed: bool
    seen: str


@dataclass(frozen=True, slots=True)
class ContractReport:
    """`latency_ms` maps p50, p95 and p99 to milliseconds of one request asked alone, and
    `batched_ms` to milliseconds per request in a whole batch; empty where asking failed."""

    recommender: str
    checks: tuple[Check, ...]
    latency_ms: Mapping[str, float]
    batched_ms: Mapping[str, float]
    batch: int

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    @property
    def failures(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if not check.passed)

    def __str__(self) -> str:
        width = max(len(check.name) for check in self.checks)
        lines = [f"contract of {self.recommender}"]
        for check in self.checks:
            verdict = "pass" if check.passed else "FAIL"
            lines.append(f"  {verdict}  {check.name:<{width}}  {check.seen}")
        for label, found in (
            ("one request", self.latency_ms),
            (f"per request, {self.batch} at a time", self.batched_ms),
        ):
            if found:
                values = "  ".join(f"{name} {value:.2f}" for name, value in found.items())
                lines.append(f"  latency in ms, {label}: {values}")
        failed = len(self.failures)
        lines.append(f"{len(self.checks) - failed} of {len(self.checks)} checks passed")
        return "\n".join(lines)


def check_contract(
    recommender: Recommender,
    item_ids: Collection[str],
    histories: Mapping[str, Sequence[Interaction]],
    *,
    k: int = 4,
    batch: int = 64,
    rounds: int = 20,
) -> ContractReport:
    """Try `recommender` on up to `batch` of the users in `histories`.

    `item_ids` is the catalogue; `rounds` batches are timed. Each request excludes its history.
    """
    known = frozenset(item_ids)
    if len(known) < k:
        raise ValueError(
            f"a contract check with slates of {k} needs {k} items, not {len(known)}"
        )
    if not histories:
        raise ValueError("a contract check needs the history of at least one user")
    requests = [_request(user, tuple(history), k) for user, history in histories.items()]
    requests = [r for r in requests if len(known - r.exclude) >= k][:batch]
    if not requests:
        raise ValueError(f"every user's history leaves fewer than {k} of {len(known)} items")
    trial = Trial(recommender, known, requests, k)
    checks = [_run(name, check) for name, check in trial.checks()]
    latency: dict[str, float] = {}
    batched: dict[str, float] = {}

    def under_load() -> str:
        latency.update(_percentiles(recommender, [[r] for r in requests]))
        repeats = [
            [replace(r, seed=stable_key("latency", n, r.user_id)) for r in requests]
            for n in range(rounds)
        ]
        batched.update(_percentiles(recommender, repeats))
        return f"{len(requests)} requests alone, {rounds} batches of {len(requests)}"

    checks.append(_run("answers under load", under_load))
    name = str(getattr(recommender, "name", "") or type(recommender).__name__)
    version = str(getattr(recommender, "version", ""))
    return ContractReport(
        f"{name} {version}".strip(), tuple(checks), latency, batched, len(requests)
    )


def _request(user: str, history: tuple[Interaction, ...], k: int) -> RecommendationRequest:
    return RecommendationRequest(
        user_id=user,
        history=history,
        k=k,
        exclude=frozenset(i.item_id for i in history),
        seed=stable_key("contract", user),
    )


def _percentiles(
    recommender: Recommender, batches: Sequence[Sequence[RecommendationRequest]]
) -> dict[str, float]:
    took = []
    for requests in batches:
        start = time.perf_counter()
        recommender.recommend(requests)
        took.append(1e3 * (time.perf_counter() - start) / len(requests))
    return {f"p{q}": float(np.percentile(took, q)) for q in (50, 95, 99)}


def _run(name: str, check: Callable[[], str]) -> Check:
    try:
        return Check(name, True, check())
    except Broken as broken:
        return Check(name, False, str(broken))
    except RecommenderUnavailable:
        raise
    except Exception as error:  # theirs: reported, whatever it is
        return Check(name, False, f"recommend raised {type(error).__name__}: {error}")
