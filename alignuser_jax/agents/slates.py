"""Answer the recommendation requests of sessions: one call per arm, and only valid slates."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from alignuser_jax.agents.session import RecommendationFailed
from alignuser_jax.driver import Answered, Job
from alignuser_jax.durable.answers import Answer
from alignuser_jax.records import (
    RecommendationRequest,
    Recommender,
    RecommenderUnavailable,
    Slate,
)


class RecommenderError(RuntimeError):
    """A recommender failed in every session of its arm."""


class SlateAnswerer:
    """Puts waiting recommendation requests to the recommender of their arm.

    A valid slate holds k different items, none of them excluded; if `catalogue` is given, all
    are in it, and there are fewer than k only if it holds no more.

    Args:
        recommenders: The recommender of each arm.
        sessions: How many sessions each arm has.
        catalogue: The ids of all items; `None` skips the checks that need it.
        count_pages: Called with the number of slates that were made.
    """

    def __init__(
        self,
        recommenders: Mapping[str, Recommender],
        sessions: Mapping[str, int],
        catalogue: Collection[str] | None = None,
        count_pages: Callable[[int], None] = lambda count: None,
    ):
        self._recommenders = recommenders
        self._sessions = sessions
        self._catalogue = None if catalogue is None else frozenset(catalogue)
        self._count_pages = count_pages
        self._without_slates: Counter[str] = Counter()

    def answer(self, waiting: Sequence[tuple[Job[Any], RecommendationRequest]]) -> Answered:
        """Answer each request with a slate, or with `RecommendationFailed`.

        The run stops if a recommender says that it is unavailable, or if it has failed in every
        session of its arm (`RecommenderError`).
        """
        by_arm: dict[str, list[int]] = defaultdict(list)
        for n, (job, _) in enumerate(waiting):
            by_arm[job.arm].append(n)
        slates: dict[int, Answer | Exception] = {}
        problems: dict[int, str] = {}
        stop: Exception | None = None
        for arm, places in by_arm.items():
            answers, stop = self._answers(arm, [waiting[n][1] for n in places])
            for n, answer in zip(places, answers, strict=True):
                if isinstance(answer, str):
                    problems[n] = f"{self._name(arm)} {answer}"
                elif answer is not None:
                    slates[n] = answer
            if stop:
                break
        self._count_pages(len(slates))
        if stop is None:
            stop = self._hopeless([(waiting[n][0].arm, text) for n, text in problems.items()])
        failures = {n: RecommendationFailed(text) for n, text in problems.items()}
        return Answered(slates | failures, stop)

    def _name(self, arm: str) -> str:
        url = getattr(self._recommenders[arm], "url", "")
        return f"recommender of arm {arm!r}" + (f" at {url}" if url else "")

    def _hopeless(self, problems: Sequence[tuple[str, str]]) -> RecommenderError | None:
        """Count failures; return an error if an arm has failed in all its sessions."""
        for arm, text in problems:
            self._without_slates[arm] += 1
            if self._without_slates[arm] == self._sessions[arm]:
                return RecommenderError(f"no session got its slates: {text}")
        return None

    def _answers(
        self, arm: str, requests: Sequence[RecommendationRequest]
    ) -> tuple[list[Slate | str | None], Exception | None]:
        """Return a slate per request, or what went wrong, or `None`; and what stops the run."""
        stop = None
        answers: list[Slate | str | None]
        try:
            answers = list(self._slates(arm, requests))
        except RecommenderUnavailable as error:
            stop = error
            answers = [error.answered.get(n) for n in range(len(requests))]
        for n, (answer, request) in enumerate(zip(answers, requests, strict=True)):
            if isinstance(answer, Slate):
                answers[n] = self._problem(answer, request) or answer
        return answers, stop

    def _slates(
        self, arm: str, requests: Sequence[RecommendationRequest]
    ) -> Sequence[Slate | str]:
        """Ask for all slates in one call, and one by one if that fails."""
        try:
            slates = [
                Slate(tuple(slate.item_ids), _floats(slate.scores), _floats(slate.propensities))
                for slate in self._recommenders[arm].recommend(requests)
            ]
        except RecommenderUnavailable:
            raise
        except Exception as error:
            if len(requests) > 1:
                return self._one_by_one(arm, requests)
            return [f"raised {type(error).__name__}: {error} ({_which(requests[0])})"]
        if len(slates) != len(requests):
            return [f"gave {len(slates)} slates for {len(requests)} requests"] * len(requests)
        return slates

    def _one_by_one(
        self, arm: str, requests: Sequence[RecommendationRequest]
    ) -> list[Slate | str]:
        """Ask for each slate in a call of its own, so that a bad request spoils no other."""
        slates: list[Slate | str] = []
        for request in requests:
            try:
                slates += self._slates(arm, [request])
            except RecommenderUnavailable as error:
                good = {n: slate for n, slate in enumerate(slates) if isinstance(slate, Slate)}
                raise RecommenderUnavailable(str(error), good) from error
        return slates

    def _problem(self, slate: Slate, request: RecommendationRequest) -> str:
        """Return what is wrong with the slate, "" if nothing."""
        ids, expected = slate.item_ids, request.k
        if self._catalogue is not None and len(ids) < expected:
            expected = min(expected, len(self._catalogue - request.exclude))
        if len(ids) != expected or len(set(ids)) != len(ids):
            wrong = f"gave {ids}, expected {expected} different ids"
        elif excluded := sorted(set(ids) & request.exclude):
            wrong = f"gave {excluded}, which were excluded"
        elif self._catalogue is not None and (unknown := sorted(set(ids) - self._catalogue)):
            wrong = f"gave {unknown}, which are not in the catalogue"
        else:
            return ""
        return f"{wrong} ({_which(request)})"


def _floats(values: Sequence[float] | None) -> tuple[float, ...] | None:
    return None if values is None else tuple(float(value) for value in values)


def _which(request: RecommendationRequest) -> str:
    return f"user {request.user_id!r}, page {request.page}"
