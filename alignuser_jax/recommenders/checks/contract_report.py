"""Check that a recommender keeps the contract that a simulation relies on.

The recommender is asked as the simulator asks it, and every answer is looked at. Nothing that
it does stops the check, not even an exception, unless it is away (`RecommenderUnavailable`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from alignuser_jax.randomness import stable_key
from alignuser_jax.recommenders.base import label_of, version_of
from alignuser_jax.recommenders.checks.contract_rules import ContractRules, Violation
from alignuser_jax.records import (
    Interaction,
    RecommendationRequest,
    Recommender,
    RecommenderUnavailable,
)


@dataclass(frozen=True, slots=True)
class Check:
    """The outcome of one rule.

    Attributes:
        name: of the rule.
        passed: whether the recommender keeps it.
        seen: what was seen, or what is wrong and what to do.
    """

    name: str
    passed: bool
    seen: str


@dataclass(frozen=True, slots=True)
class ContractReport:
    """The outcome of a contract check; `str` of it is the table that the program prints.

    Attributes:
        recommender: its name and version.
        checks: one for each rule.
        latency_ms: p50, p95 and p99 to milliseconds of one request that is asked alone; empty
            when asking failed.
        batched_ms: the same, milliseconds per request in a whole batch.
        batch: requests in a batch.
    """

    recommender: str
    checks: tuple[Check, ...]
    latency_ms: Mapping[str, float]
    batched_ms: Mapping[str, float]
    batch: int

    @property
    def passed(self) -> bool:
        """Whether every rule is kept."""
        return all(check.passed for check in self.checks)

    @property
    def failures(self) -> tuple[Check, ...]:
        """The checks that did not pass."""
        return tuple(check for check in self.checks if not check.passed)

    def __str__(self) -> str:
        width = max(len(check.name) for check in self.checks)
        lines = [f"contract of {self.recommender}"]
        for check in self.checks:
            verdict = "pass" if check.passed else "FAIL"
            lines.append(f"  {verdict}  {check.name:<{width}}  {check.seen}")
        for label, percentiles in (
            ("one request", self.latency_ms),
            (f"per request, {self.batch} at a time", self.batched_ms),
        ):
            if percentiles:
                values = "  ".join(f"{name} {ms:.2f}" for name, ms in percentiles.items())
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
    """Try every rule of the contract on a recommender, and time it.

    Example:
        >>> log = dataset.log.of_split("train")
        >>> histories = {user: dataset.history(log, user) for user in dataset.user_ids[:64]}
        >>> report = check_contract(Random(dataset.item_ids), dataset.item_ids, histories)
        >>> assert report.passed, str(report)

    Args:
        recommender: what to try.
        item_ids: the catalogue.
        histories: user id to the user's interactions, which each request excludes; at most
            `batch` users are asked for.
        k: items on a slate.
        batch: requests in one call.
        rounds: batches to time.

    Raises:
        ValueError: if there are too few items or users to check with.
        RecommenderUnavailable: if the recommender cannot be reached.
    """
    catalogue = frozenset(item_ids)
    if len(catalogue) < k:
        raise ValueError(
            f"a contract check with slates of {k} needs {k} items, not {len(catalogue)}"
        )
    if not histories:
        raise ValueError("a contract check needs the history of at least one user")
    requests = [_request(user, tuple(history), k) for user, history in histories.items()]
    requests = [r for r in requests if len(catalogue - r.exclude) >= k][:batch]
    if not requests:
        raise ValueError(
            f"every user's history leaves fewer than {k} of {len(catalogue)} items: give users "
            "with shorter histories, or a smaller k"
        )
    rules = ContractRules(recommender, catalogue, requests, k).rules()
    checks = [_check(name, rule) for name, rule in rules]
    load = _Load(recommender, requests, rounds)
    checks.append(_check("answers under load", load))
    return ContractReport(
        f"{label_of(recommender)} {version_of(recommender)}".strip(),
        tuple(checks),
        load.latency_ms,
        load.batched_ms,
        len(requests),
    )


def _request(user: str, history: tuple[Interaction, ...], k: int) -> RecommendationRequest:
    return RecommendationRequest(
        user_id=user,
        history=history,
        k=k,
        exclude=frozenset(i.item_id for i in history),
        seed=stable_key("contract", user),
    )


@dataclass
class _Load:
    """The rule that times a recommender; what it measured stays in its two dictionaries."""

    recommender: Recommender
    requests: list[RecommendationRequest]
    rounds: int
    latency_ms: dict[str, float] = field(default_factory=dict)
    batched_ms: dict[str, float] = field(default_factory=dict)

    def __call__(self) -> str:
        self.latency_ms = _percentiles(self.recommender, [[r] for r in self.requests])
        repeats = [
            [replace(r, seed=stable_key("latency", n, r.user_id)) for r in self.requests]
            for n in range(self.rounds)
        ]
        self.batched_ms = _percentiles(self.recommender, repeats)
        count = len(self.requests)
        return f"{count} requests alone, {self.rounds} batches of {count}"


def _percentiles(
    recommender: Recommender, batches: Sequence[Sequence[RecommendationRequest]]
) -> dict[str, float]:
    milliseconds = []
    for requests in batches:
        start = time.perf_counter()
        recommender.recommend(requests)
        milliseconds.append(1e3 * (time.perf_counter() - start) / len(requests))
    return {f"p{q}": float(np.percentile(milliseconds, q)) for q in (50, 95, 99)}


def _check(name: str, rule: Callable[[], str]) -> Check:
    try:
        return Check(name, True, rule())
    except Violation as violation:
        return Check(name, False, str(violation))
    except RecommenderUnavailable:
        raise
    except Exception as error:  # theirs: reported, whatever it is
        return Check(name, False, f"recommend raised {type(error).__name__}: {error}")
