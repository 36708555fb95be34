"""The contract check: what a simulation relies on, tried on somebody's recommender.

A recommender is asked as the simulator asks it and every answer is looked at; nothing that it
does, an exception included, stops the check.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from alignuser_jax.records import (
    Interaction,
    RecommendationRequest,
    Recommender,
    Slate,
    stable_key,
)

UNKNOWN_USER = "a user that no log has seen"


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


class Broken(Exception):
    """What a check found wrong, in words for the person who wrote the recommender."""


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
    trial = _Trial(recommender, known, requests, k)
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
    except Exception as error:  # theirs: reported, whatever it is
        return Check(name, False, f"recommend raised {type(error).__name__}: {error}")


@dataclass
class _Trial:
    recommender: Recommender
    known: frozenset[str]
    requests: list[RecommendationRequest]
    k: int

    def checks(self) -> list[tuple[str, Callable[[], str]]]:
        return [
            ("one slate per request", self.answers),
            ("k items", self.size),
            ("no repeats", self.unique),
            ("known items", self.known_ids),
            ("scores and propensities", self.numbers),
            ("respects exclude", self.exclude),
            ("other k", self.other_k),
            ("few items left", self.few_left),
            ("unknown user", self.unknown_user),
            ("empty history", self.empty_history),
            ("same seed, same slate", self.repeatable),
            ("batch does not matter", self.batch_free),
            ("keeps no state", self.stateless),
        ]

    def ask(self, requests: Sequence[RecommendationRequest]) -> list[Slate]:
        """The slates, once they have the right form."""
        slates = self.recommender.recommend(tuple(requests))
        if not isinstance(slates, Sequence) or len(slates) != len(requests):
            what = type(slates).__name__
            if isinstance(slates, Sequence):
                what += f" of {len(slates)}"
            raise Broken(
                f"{len(requests)} requests were answered by a {what}: return a list with one "
                "Slate per request, in their order"
            )
        for request, slate in zip(requests, slates, strict=True):
            if not isinstance(slate, Slate):
                raise Broken(
                    f"user {request.user_id!r} got a {type(slate).__name__}, not a Slate: "
                    "return alignuser_jax.records.Slate(item_ids=(…))"
                )
            if not isinstance(slate.item_ids, tuple) or not all(
                isinstance(i, str) for i in slate.item_ids
            ):
                raise Broken(
                    f"user {request.user_id!r} got item_ids={slate.item_ids!r}: expected a "
                    "tuple of strings"
                )
        return list(slates)

    def sound(self, requests: Sequence[RecommendationRequest]) -> list[Slate]:
        """The slates, once each has k different known items and none excluded."""
        slates = self.ask(requests)
        for request, slate in zip(requests, slates, strict=True):
            _sized(request, slate)
            _unique(request, slate)
            self._known(request, slate)
            _not_excluded(request, slate)
        return slates

    def _known(self, request: RecommendationRequest, slate: Slate) -> None:
        strange = [i for i in slate.item_ids if i not in self.known]
        if strange:
            raise Broken(
                f"user {request.user_id!r} was shown {strange[0]!r}, which is no id of the "
                f"catalogue (they look like {min(self.known)!r})"
            )

    def answers(self) -> str:
        self.ask(self.requests)
        return f"{len(self.requests)} requests, {len(self.requests)} slates"

    def size(self) -> str:
        for request, slate in zip(self.requests, self.ask(self.requests), strict=True):
            _sized(request, slate)
        return f"{self.k} items on each slate"

    def unique(self) -> str:
        for request, slate in zip(self.requests, self.ask(self.requests), strict=True):
            _unique(request, slate)
        return "every item once"

    def known_ids(self) -> str:
        slates = self.ask(self.requests)
        for request, slate in zip(self.requests, slates, strict=True):
            self._known(request, slate)
        shown = {i for slate in slates for i in slate.item_ids}
        return f"{len(shown)} different items shown, all of the catalogue of {len(self.known)}"

    def numbers(self) -> str:
        slates = self.ask(self.requests)
        for request, slate in zip(self.requests, slates, strict=True):
            for label, values in (
                ("scores", slate.scores),
                ("propensities", slate.propensities),
            ):
                if values is None:
                    continue
                if len(values) != len(slate.item_ids):
                    raise Broken(
                        f"user {request.user_id!r} got {len(values)} {label} for "
                        f"{len(slate.item_ids)} items"
                    )
                if not all(math.isfinite(v) for v in values):
                    raise Broken(f"user {request.user_id!r} got {label} {values!r}")
                if label == "propensities" and not all(0 < v <= 1 for v in values):
                    raise Broken(
                        f"user {request.user_id!r} got propensities {values!r}: they are "
                        "probabilities above 0"
                    )
        given = [label for label in ("scores", "propensities") if getattr(slates[0], label)]
        return f"{' and '.join(given)} given" if given else "none given (they are optional)"

    def exclude(self) -> str:
        pages, asked = (
            3,
            [r for r in self.requests if len(self.known - r.exclude) >= 3 * self.k],
        )
        if not asked:
            return "not tried: no user has three pages of items left"
        for page in range(1, pages + 1):
            asked = [replace(r, page=page) for r in asked]
            slates = self.ask(asked)
            for request, slate in zip(asked, slates, strict=True):
                _not_excluded(request, slate)
            asked = [
                replace(r, exclude=r.exclude.union(s.item_ids))
                for r, s in zip(asked, slates, strict=True)
            ]
        most = max(len(r.exclude) for r in asked)
        return f"{pages} pages each without repeats, up to {most} ids excluded"

    def other_k(self) -> str:
        sizes = sorted({1, 20} - {self.k})
        tried = []
        for size in sizes:
            asked = [
                replace(r, k=size) for r in self.requests if len(self.known - r.exclude) >= size
            ]
            if asked:
                self.sound(asked[:8])
                tried.append(str(size))
        return f"k = {' and '.join(tried)}" if tried else "not tried: too few items"

    def few_left(self) -> str:
        left = sorted(self.known)[: max(1, self.k - 1)]
        request = replace(self.requests[0], exclude=self.known.difference(left))
        [slate] = self.ask([request])
        _unique(request, slate)
        self._known(request, slate)
        _not_excluded(request, slate)
        return f"{len(left)} not excluded, {len(slate.item_ids)} shown for k = {self.k}"

    def unknown_user(self) -> str:
        first = self.requests[0]
        self.sound([replace(first, user_id=UNKNOWN_USER)])
        self.sound([replace(first, user_id=UNKNOWN_USER, history=(), exclude=frozenset())])
        return "answered, with a history and without"

    def empty_history(self) -> str:
        self.sound([replace(r, history=(), exclude=frozenset()) for r in self.requests[:8]])
        return "answered"

    def repeatable(self) -> str:
        first, again = self.ask(self.requests), self.ask(self.requests)
        for request, one, two in zip(self.requests, first, again, strict=True):
            if one.item_ids != two.item_ids:
                raise Broken(
                    f"user {request.user_id!r} with seed {request.seed} was shown "
                    f"{one.item_ids} and then {two.item_ids}: draw from request.seed, nothing "
                    "else"
                )
        return "the same requests twice, the same slates"

    def batch_free(self) -> str:
        together = self.ask(self.requests)
        backwards = self.ask(self.requests[::-1])[::-1]
        some = range(0, len(self.requests), max(1, len(self.requests) // 8))
        alone = {n: self.ask([self.requests[n]])[0] for n in some}
        for n, request in enumerate(self.requests):
            for how, slate in (("in another order", backwards[n]), ("alone", alone.get(n))):
                if slate is not None and slate.item_ids != together[n].item_ids:
                    raise Broken(
                        f"user {request.user_id!r} was shown {together[n].item_ids} in a batch "
                        f"and {slate.item_ids} when asked {how}: a slate may depend on its own "
                        "request only"
                    )
        return "the same slates alone, together and in another order"

    def stateless(self) -> str:
        if getattr(self.recommender, "stateful", False):
            raise Broken(
                "declares stateful = True: pages that are only imagined (counterfactuals) "
                "cannot be asked of it; take what it needs from request.history and "
                "request.session"
            )
        before = self.ask(self.requests)
        self.ask([self._imagined(r, s) for r, s in zip(self.requests, before, strict=True)])
        after = self.ask(self.requests)
        for request, one, two in zip(self.requests, before, after, strict=True):
            if one.item_ids != two.item_ids:
                raise Broken(
                    f"user {request.user_id!r} was shown {one.item_ids}, and {two.item_ids} "
                    "for the same request after another page was asked for: it keeps state; "
                    "take what it needs from request.history and request.session"
                )
        return "other pages asked in between, the same slates"

    def _imagined(self, request: RecommendationRequest, slate: Slate) -> RecommendationRequest:
        return replace(
            request,
            page=2,
            session=tuple(Interaction(i, 5.0) for i in slate.item_ids),
            exclude=request.exclude.union(slate.item_ids),
            purpose="counterfactual",
        )


def _sized(request: RecommendationRequest, slate: Slate) -> None:
    if len(slate.item_ids) != request.k:
        raise Broken(
            f"user {request.user_id!r} was shown {len(slate.item_ids)} items, "
            f"not k = {request.k}"
        )


def _unique(request: RecommendationRequest, slate: Slate) -> None:
    if len(set(slate.item_ids)) != len(slate.item_ids):
        raise Broken(f"user {request.user_id!r} was shown an item twice: {slate.item_ids}")


def _not_excluded(request: RecommendationRequest, slate: Slate) -> None:
    back = [i for i in slate.item_ids if i in request.exclude]
    if back:
        raise Broken(
            f"user {request.user_id!r} was shown {back[0]!r} on page {request.page} although "
            f"request.exclude has it ({len(request.exclude)} ids)"
        )
