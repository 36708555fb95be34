"""Test 1:m preference: does the agent pick what its human really interacted with?

Positives come from validation and test, negatives from items that the user never interacted
with (docs/method.md section 12.1). Uniform negatives mostly test popularity, so
popularity-matched ones stand beside them (docs/evidence.md, "Held-out truth").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from alignuser_jax.agents import probabilities, session
from alignuser_jax.datasets import Dataset, Log
from alignuser_jax.driver import waiting
from alignuser_jax.evaluation.protocol import OpenPolicy, Protocol, ProtocolResult, Subject, ask
from alignuser_jax.randomness import named_generator
from alignuser_jax.recommenders import ALS, Popularity
from alignuser_jax.records import Completion, RecommendationRequest, Request, Slate
from alignuser_jax.statistics.paired import Interval, ratio_interval
from alignuser_jax.text import markdown_table
from alignuser_jax.views import View, simulation_view
from alignuser_jax.views.sites import Sites, agent_user

Negatives = Literal["uniform", "popularity"]
NEGATIVES: tuple[Negatives, ...] = ("uniform", "popularity")


# --- what is asked ---


@dataclass(frozen=True)
class PreferenceCase:
    """One user's shuffled list of items.

    Attributes:
        user: The user's code.
        items: int[n], item codes.
        interacted: bool[n], whether the user interacted with the item in validation or test.
    """

    user: int
    items: np.ndarray
    interacted: np.ndarray


def preference_cases(
    log: Log,
    users: Sequence[int],
    *,
    items: int = 20,
    m: int = 1,
    negatives: Negatives = "uniform",
    page: int = 4,
    seed: int = 0,
) -> list[PreferenceCase]:
    """Draw a list of items for each user: one interacted with to `m` that never were.

    Popularity-matched negatives are the never-observed items whose train count is nearest to
    each positive's, each used once.

    Args:
        log: The whole log with its splits.
        users: Codes of the users. One without enough held-out interactions to fill a page has
            no case.
        items: Items of a list, at most.
        m: Negatives per positive.
        negatives: How the negatives are drawn.
        page: Items of a page. A list fills whole pages, so that a site can show it.
        seed: Names the draws, together with the user's code.
    """
    for name, number in (("items", items), ("m", m), ("page", page)):
        if number < 1:
            raise ValueError(f"{name} is {number}, expected at least 1")
    held_out, train = log.of_split("validation", "test"), log.of_split("train")
    counts = np.bincount(train.item, minlength=log.n_items)
    cases = []
    for user in users:
        rng = named_generator("preference", seed, user)
        positives = np.unique(held_out.item[held_out.user == user])
        observed = np.unique(log.item[log.user == user])
        never = np.setdiff1d(np.arange(log.n_items), observed)
        n = min(len(positives), items // (m + 1), len(never) // m)
        n -= next(drop for drop in range(n + 1) if (n - drop) * (m + 1) % page == 0)
        if n == 0:
            continue
        positives = rng.choice(positives, n, replace=False)
        if negatives == "uniform":
            drawn = rng.choice(never, n * m, replace=False)
        else:
            drawn = _nearest(rng.permutation(never), counts, np.repeat(counts[positives], m))
        order = rng.permutation(n * (m + 1))
        listed = np.concatenate([positives, drawn])[order]
        cases.append(PreferenceCase(int(user), listed, (np.arange(n * (m + 1)) < n)[order]))
    return cases


def _nearest(items: np.ndarray, counts: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """For each wanted count the item whose count is nearest, each item used once."""
    drawn = []
    for count in wanted:
        nearest = int(np.argmin(np.abs(counts[items] - count)))
        drawn.append(items[nearest])
        items = np.delete(items, nearest)
    return np.array(drawn)


def requests(
    dataset: Dataset,
    view: View,
    cases: Sequence[PreferenceCase],
    policy: OpenPolicy,
    *,
    seed: int = 0,
) -> list[Request]:
    """Return the agents' own screening requests: every page of every case, as a first page."""
    world = Sites(dataset.items, view, policy.site).site()
    screening = []
    for case in cases:
        user = agent_user(view, dataset.user_ids[case.user], policy.session)
        for start in range(0, len(case.items), policy.site.items_per_page):
            page = case.items[start : start + policy.site.items_per_page]
            visit = session(
                user,
                world,
                policy.session,
                arm="",
                number=start,
                seed=seed,
                count_tokens=policy.backend.count_tokens,
            )
            next(visit)
            request = visit.send(Slate(tuple(dataset.item_ids[item] for item in page)))
            assert isinstance(request, Request), "a session screens its first page"
            screening.append(request)
            visit.close()
    return screening


def watch_probabilities(
    completions: Sequence[Completion], cases: Sequence[PreferenceCase]
) -> list[np.ndarray]:
    """Return P(watch) of every item of every case, float[n] per case.

    `completions` are the answers to `requests` for the same cases.
    """
    watched = np.array(
        [
            probabilities(completion, line, choice)[0]
            for completion in completions
            for line, choice in enumerate(completion.choices)
        ]
    )
    sizes = [len(case.items) for case in cases]
    return np.split(watched, np.cumsum(sizes)[:-1])


# --- the score ---


@dataclass(frozen=True)
class PreferenceScores:
    """One predictor's scores.

    `accuracy` to `pooled_f1` are at the threshold 0.5 and NaN for a predictor whose scores are
    no probabilities.

    Attributes:
        name: The predictor.
        best_accuracy: Accuracy at the one threshold that is best over all users, the same
            freedom for every predictor.
        accuracy: Mean over users of the accuracy.
        precision: Mean over users of the precision.
        recall: Mean over users of the recall.
        f1: Mean over users of F1.
        pooled_f1: F1 over all items of all users.
    """

    name: str
    best_accuracy: Interval
    accuracy: float
    precision: float
    recall: float
    f1: float
    pooled_f1: float


def score(
    name: str,
    cases: Sequence[PreferenceCase],
    scores: Sequence[np.ndarray],
    *,
    probabilities: bool = True,
    seed: int = 0,
) -> PreferenceScores:
    """Score one predictor.

    Args:
        name: The predictor's name.
        cases: What was predicted.
        scores: float[n] per case; higher means more likely interacted with.
        probabilities: Whether the scores are probabilities, so that 0.5 is a threshold.
        seed: Names the resamples of the interval.

    Raises:
        ValueError: There are no cases.
    """
    if not cases:
        raise ValueError("no user has enough held-out interactions for a list: test more users")
    truth = np.concatenate([case.interacted for case in cases])
    flat = np.concatenate(scores)
    user = np.repeat(np.arange(len(cases)), [len(case.items) for case in cases])
    right = np.bincount(user, (flat >= _best_threshold(flat, truth)) == truth, len(cases))
    best = ratio_interval(
        right, np.bincount(user, minlength=len(cases)).astype(float), seed=seed
    )
    if not probabilities:
        return PreferenceScores(name, best, *[float("nan")] * 5)
    picked = flat >= 0.5
    n = len(cases)
    tp, fp = np.bincount(user, picked & truth, n), np.bincount(user, picked & ~truth, n)
    fn = np.bincount(user, ~picked & truth, n)
    size = np.bincount(user, minlength=n)
    precision = tp / np.maximum(tp + fp, 1)
    recall = tp / np.maximum(tp + fn, 1)
    f1 = 2 * tp / np.maximum(2 * tp + fp + fn, 1)
    pooled = 2 * tp.sum() / max(2 * tp.sum() + fp.sum() + fn.sum(), 1)
    return PreferenceScores(
        name,
        best,
        float(((size - fp - fn) / size).mean()),
        float(precision.mean()),
        float(recall.mean()),
        float(f1.mean()),
        float(pooled),
    )


def _best_threshold(scores: np.ndarray, truth: np.ndarray) -> float:
    """The score from which on to predict "interacted" so that most predictions are right."""
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.diff(scores[order]) != 0, True)  # between distinct scores only
    hits = np.cumsum(truth[order])
    correct = hits + (~truth).sum() - (np.arange(1, len(scores) + 1) - hits)
    return scores[order[int(np.argmax(np.where(last, correct, -1)))]]


# --- the table ---


def table(groups: Mapping[str, Sequence[PreferenceScores]]) -> str:
    """Return a Markdown table; `groups` maps a kind of negatives to the predictors' scores."""

    def number(value: float) -> str:
        return "" if np.isnan(value) else f"{value:.3f}"

    rows = [
        [
            negatives,
            s.name,
            s.best_accuracy.text(),
            *map(number, (s.accuracy, s.precision, s.recall, s.f1, s.pooled_f1)),
        ]
        for negatives, scores in groups.items()
        for s in scores
    ]
    headers = ["negatives", "predictor", "accuracy, best threshold", "accuracy at 0.5"]
    return markdown_table(rows, [*headers, "precision", "recall", "F1 per user", "F1 pooled"])


# --- the protocol ---


def run(subject: Subject) -> ProtocolResult:
    """Ask the first policy which items it would watch, and score it beside two baselines."""
    dataset, seed = subject.dataset, subject.config.seed
    view = simulation_view(dataset, subject.personas)
    name = subject.policies[0]
    groups: dict[str, list[PreferenceScores]] = {}
    with subject.open(name, PROTOCOL.name, 0) as policy:
        with waiting("preference: fitting the baselines", subject.say):
            als = ALS().fit(dataset, view.profile)
            popularity = Popularity().fit(dataset, view.profile)
        counts = np.bincount(view.profile.item, minlength=len(dataset.item_ids))
        for negatives in NEGATIVES:
            cases = preference_cases(
                dataset.log,
                subject.users.tolist(),
                negatives=negatives,
                page=policy.site.items_per_page,
                seed=seed,
            )
            with waiting("preference: writing the prompts", subject.say):
                prompts = requests(dataset, view, cases, policy, seed=seed)
            watch = watch_probabilities(
                ask(policy.backend, prompts, "preference", subject.say), cases
            )
            by_als = [
                als.scores([_request(dataset, view, case)])[0][case.items] for case in cases
            ]
            by_count = [counts[case.items] for case in cases]
            groups[negatives] = [
                score(popularity.name, cases, by_count, probabilities=False),
                score("als", cases, by_als, probabilities=False),
                score(name, cases, watch),
            ]
    return ProtocolResult(f"Preference 1:1, {len(cases)} users\n\n{table(groups)}")


def _request(dataset: Dataset, view: View, case: PreferenceCase) -> RecommendationRequest:
    user_id = dataset.user_ids[case.user]
    return RecommendationRequest(user_id, view.histories[user_id])


PROTOCOL = Protocol("preference", needs=(), run=run)
