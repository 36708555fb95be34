"""The rules of the contract between a simulation and a recommender, each tried on requests.

Each rule asks for slates, looks at every one and returns what it saw in one line, or raises
`Violation` with what is wrong and what to do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from alignuser_jax.records import Interaction, RecommendationRequest, Recommender, Slate

UNKNOWN_USER = "a user that no log has seen"
"""The id of a user that no recommender was fitted on."""
THREADS = 4
"""Threads that ask at the same time."""


class Violation(Exception):
    """What a recommender does wrong, in words for the person who wrote it."""


@dataclass
class ContractRules:
    """The rules, and what they are tried on.

    Attributes:
        recommender: what is tried.
        item_ids: the ids of the catalogue.
        requests: what it is asked; each leaves at least k items.
        k: items on a slate.
        version: the recommender's version before it was asked.
    """

    recommender: Recommender
    item_ids: frozenset[str]
    requests: list[RecommendationRequest]
    k: int
    version: object = None

    def __post_init__(self) -> None:
        self.version = getattr(self.recommender, "version", "")

    def rules(self) -> list[tuple[str, Callable[[], str]]]:
        """Return the name of each rule and the function that tries it."""
        return [
            ("one slate per request", self._answers),
            ("k items", self._size),
            ("no repeats", self._no_repeats),
            ("known items", self._catalogue_items),
            ("scores and propensities", self._numbers),
            ("respects exclude", self._exclude),
            ("other k", self._other_k),
            ("few items left", self._few_left),
            ("unknown user", self._unknown_user),
            ("empty history", self._empty_history),
            ("same seed, same slate", self._repeatable),
            ("batch does not matter", self._batch_free),
            ("keeps no state", self._stateless),
            ("many threads", self._threads),
            ("version", self._versions),
        ]

    def _ask(self, requests: Sequence[RecommendationRequest]) -> list[Slate]:
        """Return the slates after a check of their form."""
        slates = self.recommender.recommend(tuple(requests))
        if not isinstance(slates, Sequence) or len(slates) != len(requests):
            what = type(slates).__name__
            if isinstance(slates, Sequence):
                what += f" of {len(slates)}"
            raise Violation(
                f"{len(requests)} requests were answered by a {what}: return a list with one "
                "Slate per request, in their order"
            )
        for request, slate in zip(requests, slates, strict=True):
            if not isinstance(slate, Slate):
                raise Violation(
                    f"user {request.user_id!r} got a {type(slate).__name__}, not a Slate: "
                    "return alignuser_jax.records.Slate(item_ids=(…))"
                )
            if not isinstance(slate.item_ids, tuple) or not all(
                isinstance(i, str) for i in slate.item_ids
            ):
                raise Violation(
                    f"user {request.user_id!r} got item_ids={slate.item_ids!r}: expected a "
                    "tuple of strings"
                )
        return list(slates)

    def _ask_for_sound(self, requests: Sequence[RecommendationRequest]) -> list[Slate]:
        """Return the slates after a check that each has k distinct, known, allowed items."""
        slates = self._ask(requests)
        for request, slate in zip(requests, slates, strict=True):
            _check_size(request, slate)
            _check_distinct(request, slate)
            self._check_catalogue(request, slate)
            _check_exclude(request, slate)
        return slates

    def _check_catalogue(self, request: RecommendationRequest, slate: Slate) -> None:
        strange = [i for i in slate.item_ids if i not in self.item_ids]
        if strange:
            raise Violation(
                f"user {request.user_id!r} was shown {strange[0]!r}, which is no id of the "
                f"catalogue (they look like {min(self.item_ids)!r})"
            )

    def _answers(self) -> str:
        self._ask(self.requests)
        return f"{len(self.requests)} requests, {len(self.requests)} slates"

    def _size(self) -> str:
        for request, slate in zip(self.requests, self._ask(self.requests), strict=True):
            _check_size(request, slate)
        return f"{self.k} items on each slate"

    def _no_repeats(self) -> str:
        for request, slate in zip(self.requests, self._ask(self.requests), strict=True):
            _check_distinct(request, slate)
        return "every item once"

    def _catalogue_items(self) -> str:
        slates = self._ask(self.requests)
        for request, slate in zip(self.requests, slates, strict=True):
            self._check_catalogue(request, slate)
        items = {i for slate in slates for i in slate.item_ids}
        return (
            f"{len(items)} different items shown, all of the catalogue of {len(self.item_ids)}"
        )

    def _numbers(self) -> str:
        slates = self._ask(self.requests)
        for request, slate in zip(self.requests, slates, strict=True):
            for label, values in (
                ("scores", slate.scores),
                ("propensities", slate.propensities),
            ):
                if values is None:
                    continue
                if len(values) != len(slate.item_ids):
                    raise Violation(
                        f"user {request.user_id!r} got {len(values)} {label} for "
                        f"{len(slate.item_ids)} items"
                    )
                if not all(math.isfinite(v) for v in values):
                    raise Violation(f"user {request.user_id!r} got {label} {values!r}")
                if label == "propensities" and not all(0 < v <= 1 for v in values):
                    raise Violation(
                        f"user {request.user_id!r} got propensities {values!r}: they are "
                        "probabilities above 0"
                    )
        labels = ("scores", "propensities")
        present = [label for label in labels if getattr(slates[0], label) is not None]
        return f"{' and '.join(present)} given" if present else "none given (they are optional)"

    def _exclude(self) -> str:
        pages = 3
        requests = [
            r for r in self.requests if len(self.item_ids - r.exclude) >= pages * self.k
        ]
        if not requests:
            return "not tried: no user has three pages of items left"
        for page in range(1, pages + 1):
            requests = [replace(r, page=page) for r in requests]
            slates = self._ask(requests)
            for request, slate in zip(requests, slates, strict=True):
                _check_exclude(request, slate)
            requests = [
                replace(r, exclude=r.exclude.union(s.item_ids))
                for r, s in zip(requests, slates, strict=True)
            ]
        most = max(len(r.exclude) for r in requests)
        return f"{pages} pages each without repeats, up to {most} ids excluded"

    def _other_k(self) -> str:
        sizes = sorted({1, 20} - {self.k})
        tried = []
        for size in sizes:
            requests = [
                replace(r, k=size)
                for r in self.requests
                if len(self.item_ids - r.exclude) >= size
            ]
            if requests:
                self._ask_for_sound(requests[:8])
                tried.append(str(size))
        return f"k = {' and '.join(tried)}" if tried else "not tried: too few items"

    def _few_left(self) -> str:
        left = sorted(self.item_ids)[: max(1, self.k - 1)]
        request = replace(self.requests[0], exclude=self.item_ids.difference(left))
        [slate] = self._ask([request])
        _check_distinct(request, slate)
        self._check_catalogue(request, slate)
        _check_exclude(request, slate)
        return f"{len(left)} not excluded, {len(slate.item_ids)} shown for k = {self.k}"

    def _unknown_user(self) -> str:
        first = self.requests[0]
        self._ask_for_sound([replace(first, user_id=UNKNOWN_USER)])
        self._ask_for_sound(
            [replace(first, user_id=UNKNOWN_USER, history=(), exclude=frozenset())]
        )
        return "answered, with a history and without"

    def _empty_history(self) -> str:
        self._ask_for_sound(
            [replace(r, history=(), exclude=frozenset()) for r in self.requests[:8]]
        )
        return "answered"

    def _repeatable(self) -> str:
        first, again = self._ask(self.requests), self._ask(self.requests)
        for request, one, two in zip(self.requests, first, again, strict=True):
            if one.item_ids != two.item_ids:
                raise Violation(
                    f"user {request.user_id!r} with seed {request.seed} was shown "
                    f"{one.item_ids} and then {two.item_ids}: draw from request.seed, nothing "
                    "else"
                )
        return "the same requests twice, the same slates"

    def _batch_free(self) -> str:
        together = self._ask(self.requests)
        backwards = self._ask(self.requests[::-1])[::-1]
        some = range(0, len(self.requests), max(1, len(self.requests) // 8))
        alone = {n: self._ask([self.requests[n]])[0] for n in some}
        for n, request in enumerate(self.requests):
            for how, slate in (("in another order", backwards[n]), ("alone", alone.get(n))):
                if slate is not None and slate.item_ids != together[n].item_ids:
                    raise Violation(
                        f"user {request.user_id!r} was shown {together[n].item_ids} in a batch "
                        f"and {slate.item_ids} when asked {how}: a slate may depend on its own "
                        "request only"
                    )
        return "the same slates alone, together and in another order"

    def _stateless(self) -> str:
        if getattr(self.recommender, "stateful", False):
            raise Violation(
                "declares stateful = True: pages that are only imagined (counterfactuals) "
                "cannot be asked of it; take what it needs from request.history and "
                "request.session"
            )
        before = self._ask(self.requests)
        self._ask([self._imagined(r, s) for r, s in zip(self.requests, before, strict=True)])
        after = self._ask(self.requests)
        for request, one, two in zip(self.requests, before, after, strict=True):
            if one.item_ids != two.item_ids:
                raise Violation(
                    f"user {request.user_id!r} was shown {one.item_ids}, and {two.item_ids} "
                    "for the same request after another page was asked for: it keeps state; "
                    "take what it needs from request.history and request.session"
                )
        return "other pages asked in between, the same slates"

    def _threads(self) -> str:
        alone = {
            r.user_id: s for r, s in zip(self.requests, self._ask(self.requests), strict=True)
        }

        def ask(turn: int) -> list[tuple[RecommendationRequest, Slate]]:
            first = turn * len(self.requests) // (2 * THREADS)
            mine = self.requests[first:] + self.requests[:first]
            return list(zip(mine, self._ask(mine), strict=True))

        with ThreadPoolExecutor(THREADS) as pool:
            for answers in pool.map(ask, range(2 * THREADS)):
                for request, slate in answers:
                    if slate.item_ids != alone[request.user_id].item_ids:
                        raise Violation(
                            f"user {request.user_id!r} was shown "
                            f"{alone[request.user_id].item_ids}, and {slate.item_ids} while "
                            "other threads asked: hold a lock, or keep nothing between calls"
                        )
        return f"{2 * THREADS} batches over {THREADS} threads, the same slates"

    def _versions(self) -> str:
        now = getattr(self.recommender, "version", "")
        if not isinstance(now, str):
            raise Violation(f"version is {now!r}: expected text that names what it has learned")
        if now != self.version:
            raise Violation(
                f"version was {self.version!r} and is {now!r} after it was only asked: it may "
                "change when the recommender is fitted, not before"
            )
        if not now:
            return "none (a run that is resumed cannot tell whether it is the same recommender)"
        return f"{now!r}, unchanged"

    def _imagined(self, request: RecommendationRequest, slate: Slate) -> RecommendationRequest:
        return replace(
            request,
            page=2,
            session=tuple(Interaction(i, 5.0) for i in slate.item_ids),
            exclude=request.exclude.union(slate.item_ids),
            purpose="counterfactual",
        )


def _check_size(request: RecommendationRequest, slate: Slate) -> None:
    if len(slate.item_ids) != request.k:
        raise Violation(
            f"user {request.user_id!r} was shown {len(slate.item_ids)} items, "
            f"not k = {request.k}"
        )


def _check_distinct(request: RecommendationRequest, slate: Slate) -> None:
    if len(set(slate.item_ids)) != len(slate.item_ids):
        raise Violation(f"user {request.user_id!r} was shown an item twice: {slate.item_ids}")


def _check_exclude(request: RecommendationRequest, slate: Slate) -> None:
    back = [i for i in slate.item_ids if i in request.exclude]
    if back:
        raise Violation(
            f"user {request.user_id!r} was shown {back[0]!r} on page {request.page} although "
            f"request.exclude has it ({len(request.exclude)} ids)"
        )
