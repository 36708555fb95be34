"""The contract check passes what is here and catches each way of breaking the contract."""

import time

import pytest

from alignuser_jax.recommenders import (
    ALS,
    Degraded,
    Popularity,
    Random,
    ShuffledAcrossUsers,
    check_contract,
)
from alignuser_jax.records import Interaction, RecommenderUnavailable, Slate

ITEMS = tuple(f"i{n:03d}" for n in range(60))
HISTORIES = {
    f"u{n}": tuple(Interaction(ITEMS[(7 * n + m) % 60], 4.0, m) for m in range(9))
    for n in range(10)
}


class Good:
    name, version = "good", "1"

    def recommend(self, requests):
        return [self.answer(r) for r in requests]

    def answer(self, request):
        return Slate(tuple(i for i in ITEMS if i not in request.exclude)[: request.k])


class Duplicates(Good):
    def answer(self, request):
        return Slate(tuple(i for i in ITEMS if i not in request.exclude)[:1] * request.k)


class IgnoresExclude(Good):
    def answer(self, request):
        return Slate(ITEMS[: request.k])


class NonDeterministic(Good):
    calls = 0

    def recommend(self, requests):
        self.calls += 1
        turned = ITEMS[self.calls % 7 :] + ITEMS[: self.calls % 7]
        return [Slate(tuple(i for i in turned if i not in r.exclude)[: r.k]) for r in requests]


class UnknownIds(Good):
    def answer(self, request):
        return Slate(tuple(f"movie {n}" for n in range(request.k)))


class CrashesOnEmptyHistory(Good):
    def answer(self, request):
        if request.history[-1]:
            return super().answer(request)


class CrashesOnUnknownUser(Good):
    def answer(self, request):
        return super().answer(request) if HISTORIES[request.user_id] else None


class WrongK(Good):
    def answer(self, request):
        return Slate(tuple(i for i in ITEMS if i not in request.exclude)[:10])


class OnlyFour(Good):
    def answer(self, request):
        return Slate(tuple(i for i in ITEMS if i not in request.exclude)[:4])


class Stateful(Good):
    """Never shows a user again what an imagined page said they watched."""

    def __init__(self):
        self.watched = {}

    def answer(self, request):
        seen = self.watched.setdefault(request.user_id, set())
        seen.update(i.item_id for i in request.session)
        return Slate(
            tuple(i for i in ITEMS if i not in request.exclude and i not in seen)[: request.k]
        )


class DeclaredStateful(Good):
    stateful = True


class LooksAtTheBatch(Good):
    def recommend(self, requests):
        slates = [self.answer(r) for r in requests]
        return [Slate(s.item_ids[::-1]) for s in slates] if len(slates) == 1 else slates


class OneSlateShort(Good):
    def recommend(self, requests):
        return super().recommend(requests)[1:]


class ReturnsLists(Good):
    def answer(self, request):
        return list(super().answer(request).item_ids)


class IntegerIds(Good):
    def answer(self, request):
        return Slate(tuple(range(request.k)))


class NanScores(Good):
    def answer(self, request):
        return Slate(super().answer(request).item_ids, scores=(float("nan"),) * request.k)


class RepeatsWhenFewAreLeft(Good):
    def answer(self, request):
        items = super().answer(request).item_ids
        return Slate((items * request.k)[: request.k])


class CrashesInTheLongRun(Good):
    calls = 0

    def recommend(self, requests):
        self.calls += 1
        if self.calls > 50:
            raise MemoryError("full")
        return super().recommend(requests)


class CrashesAlways(Good):
    def answer(self, request):
        raise RuntimeError("the model file is gone")


class NotForThreads(Good):
    """Scribbles on a list that all calls share."""

    def __init__(self):
        self.left = []

    def answer(self, request):
        self.left[:] = [i for i in ITEMS if i not in request.exclude]
        time.sleep(2e-4)
        return Slate(tuple(self.left[: request.k]))


class OtherVersionEachTime(Good):
    calls = 0

    @property
    def version(self):
        self.calls += 1
        return str(self.calls)


class NumberedVersion(Good):
    version = 3


CASES = [
    (Duplicates, "no repeats", "an item twice"),
    (IgnoresExclude, "respects exclude", "although request.exclude has it"),
    (NonDeterministic, "same seed, same slate", "draw from request.seed"),
    (UnknownIds, "known items", "'movie 0', which is no id of the catalogue"),
    (CrashesOnEmptyHistory, "empty history", "raised IndexError"),
    (CrashesOnUnknownUser, "unknown user", "raised KeyError"),
    (WrongK, "k items", "10 items, not k = 4"),
    (OnlyFour, "other k", "4 items, not k = 1"),
    (Stateful, "keeps no state", "it keeps state"),
    (DeclaredStateful, "keeps no state", "declares stateful = True"),
    (LooksAtTheBatch, "batch does not matter", "its own request only"),
    (OneSlateShort, "one slate per request", "10 requests were answered by a list of 9"),
    (ReturnsLists, "one slate per request", "got a list, not a Slate"),
    (IntegerIds, "one slate per request", "expected a tuple of strings"),
    (NanScores, "scores and propensities", "scores (nan"),
    (RepeatsWhenFewAreLeft, "few items left", "an item twice"),
    (NotForThreads, "many threads", "while other threads asked"),
    (OtherVersionEachTime, "version", "after it was only asked"),
    (NumberedVersion, "version", "version is 3: expected text"),
    (CrashesInTheLongRun, "answers under load", "MemoryError: full"),
    (CrashesAlways, "one slate per request", "RuntimeError: the model file is gone"),
]


@pytest.mark.parametrize(("bad", "check", "text"), CASES, ids=[c[0].__name__ for c in CASES])
def test_a_broken_recommender_is_caught_in_plain_words(bad, check, text):
    report = check_contract(bad(), ITEMS, HISTORIES, rounds=2)
    assert not report.passed
    failed = {c.name: c.seen for c in report.failures}
    assert check in failed and text in failed[check]
    assert f"FAIL  {check}" in str(report) and text in str(report)


def test_the_table_of_a_good_one():
    report = check_contract(Good(), ITEMS, HISTORIES, rounds=3)
    assert report.passed and not report.failures
    table = str(report)
    assert table.startswith("contract of good 1\n") and "FAIL" not in table
    assert "16 of 16 checks passed" in table
    for latency in (report.latency_ms, report.batched_ms):
        assert list(latency) == ["p50", "p95", "p99"]
        assert 0 < latency["p50"] <= latency["p95"] <= latency["p99"]


def test_one_that_is_away_ends_the_check():
    class Away(Good):
        def answer(self, request):
            raise RecommenderUnavailable("http://x does not answer")

    with pytest.raises(RecommenderUnavailable, match="does not answer"):
        check_contract(Away(), ITEMS, HISTORIES)


def test_a_version_is_optional():
    class Plain:
        recommend, answer = Good.recommend, Good.answer

    report = check_contract(Plain(), ITEMS, HISTORIES, rounds=1)
    assert report.passed
    assert "cannot tell" in next(c.seen for c in report.checks if c.name == "version")


def test_latency_is_measured_per_request_in_milliseconds():
    class Slow(Good):
        def recommend(self, requests):
            time.sleep(0.004)
            return super().recommend(requests)

    report = check_contract(Slow(), ITEMS, HISTORIES, rounds=2)
    assert report.latency_ms["p50"] >= 4
    assert 0.4 <= report.batched_ms["p50"] < report.latency_ms["p50"]


def test_ours_keep_the_contract(tiny):
    log = tiny.log.of_split("train")
    histories = {u: tiny.history(log, u) for u in tiny.user_ids}
    als = ALS(factors=3).fit(tiny, log)
    for recommender in (
        Random(tiny.item_ids),
        Popularity().fit(tiny, log),
        als,
        Degraded(als, 0.5, tiny.item_ids),
        ShuffledAcrossUsers(als, histories),
    ):
        report = check_contract(recommender, tiny.item_ids, histories, rounds=1)
        assert report.passed, str(report)


def test_the_check_says_what_it_needs():
    with pytest.raises(ValueError, match="needs 4 items, not 2"):
        check_contract(Good(), ITEMS[:2], HISTORIES)
    with pytest.raises(ValueError, match="at least one user"):
        check_contract(Good(), ITEMS, {})
    everything = tuple(Interaction(i, 3.0) for i in ITEMS)
    with pytest.raises(ValueError, match="leaves fewer than 4 of 60"):
        check_contract(Good(), ITEMS, {"u0": everything})


def test_users_who_have_seen_nearly_everything_are_left_out():
    everything = tuple(Interaction(i, 3.0) for i in ITEMS)
    report = check_contract(Good(), ITEMS, {"sated": everything, **HISTORIES}, rounds=1)
    assert report.passed and report.batch == len(HISTORIES)
