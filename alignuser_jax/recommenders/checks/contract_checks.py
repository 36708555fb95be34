"""The single checks of the contract: each asks, looks at every answer, and says what it saw."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from alignuser_jax.records import Interaction, RecommendationRequest, Recommender, Slate

UNKNOWN_USER = "a user that no log has seen"
THREADS = 4


class Broken(Exception):
    """What a check found wrong, in words for the person who wrote the recommender."""


@dataclass
class Trial:
    """`known` are the ids of the catalogue; a check raises `Broken`."""

    recommender: Recommender
    known: frozenset[str]
    requests: list[RecommendationRequest]
    k: int
    version: object = None

    def __post_init__(self) -> None:
        self.version = getattr(self.recommender, "version", "")

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
            ("many threads", self.threads),
            ("version", self.versions),
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
        labels = ("scores", "propensities")
        given = [label for label in labels if getattr(slates[0], label) is not None]
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

    def threads(self) -> str:
        alone = {
            r.user_id: s for r, s in zip(self.requests, self.ask(self.requests), strict=True)
        }

        def ask(turn: int) -> list[tuple[RecommendationRequest, Slate]]:
            first = turn * len(self.requests) // (2 * THREADS)
            mine = self.requests[first:] + self.requests[:first]
            return list(zip(mine, self.ask(mine), strict=True))

        with ThreadPoolExecutor(THREADS) as pool:
            for answered in pool.map(ask, range(2 * THREADS)):
                for request, slate in answered:
                    if slate.item_ids != alone[request.user_id].item_ids:
                        raise Broken(
                            f"user {request.user_id!r} was shown "
                            f"{alone[request.user_id].item_ids}, and {slate.item_ids} while "
                            "other threads asked: hold a lock, or keep nothing between calls"
                        )
        return f"{2 * THREADS} batches over {THREADS} threads, the same slates"

    def versions(self) -> str:
        now = getattr(self.recommender, "version", "")
        if not isinstance(now, str):
            raise Broken(f"version is {now!r}: expected text that names what it has learned")
        if now != self.version:
            raise Broken(
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
