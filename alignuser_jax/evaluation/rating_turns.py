"""Test ratings that are given one after another in one conversation, as a session gives them.

An agent rates its user's held-out items in the order of time and sees its own earlier answers,
never the true ones. A policy may be right on its first answer and drift, or the other way
round: a small pretrained model's first answer is often its worst. So the turns are scored
apart.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from alignuser_jax.agents.rating import rate_items
from alignuser_jax.datasets import Dataset, Log
from alignuser_jax.driver import waiting
from alignuser_jax.evaluation.protocol import OpenPolicy, Protocol, ProtocolResult, Subject, ask
from alignuser_jax.evaluation.rating_baselines import BASELINES
from alignuser_jax.evaluation.ratings import distributions, held_out_ratings
from alignuser_jax.records import RATINGS, Completion, Request
from alignuser_jax.statistics.paired import Interval, ratio_interval
from alignuser_jax.text import Say, markdown_table
from alignuser_jax.views import View, test_view
from alignuser_jax.views.sites import Sites, agent_user

TURNS = {"1": (1, 1), "2 to 4": (2, 4), "5 and later": (5, None)}
"""First and last turn of the groups that are scored together."""

BASELINE = "user + item bias"


# --- what is asked ---


def conversations(
    dataset: Dataset, view: View, truth: Log, policy: OpenPolicy, *, seed: int = 0
) -> list[Generator[Request, Completion, object]]:
    """Return one coroutine per user of `truth` that asks for all of the user's ratings.

    Args:
        dataset: The log that `truth` is a part of.
        view: What the prompts may show; nothing of `truth`.
        truth: The interactions to predict, sorted by user, then time.
        policy: How the agents ask.
        seed: Names the draws.
    """
    world = Sites(dataset.items, view, policy.site).of_one_item()
    return [
        rate_items(
            agent_user(view, dataset.user_ids[user], policy.session),
            [dataset.item_ids[item] for item in truth.item[truth.user == user].tolist()],
            world,
            policy.session,
            seed=seed,
            count_tokens=policy.backend.count_tokens,
        )
        for user in np.unique(truth.user).tolist()
    ]


def answers(
    talks: Sequence[Generator[Request, Completion, object]],
    policy: OpenPolicy,
    what: str,
    say: Say,
) -> list[list[Completion]]:
    """Ask turn by turn, all conversations together; return the completions of each.

    An item whose first reply could not be read is asked for again; the last completion stands.
    """
    asked = {number: next(talk) for number, talk in enumerate(talks)}
    done: list[dict[str, Completion]] = [{} for _ in talks]
    rounds = 0
    while asked:
        rounds += 1
        completions = ask(policy.backend, list(asked.values()), f"{what}, {rounds}", say)
        following = {}
        for (number, request), completion in zip(asked.items(), completions, strict=True):
            done[number][request.subject] = completion
            with suppress(StopIteration):
                following[number] = talks[number].send(completion)
        asked = following
    return [list(by_item.values()) for by_item in done]


# --- the score ---


@dataclass(frozen=True)
class TurnScores:
    """One policy's scores on a group of turns.

    Attributes:
        name: The policy.
        turns: The turns, in words.
        ratings: How many ratings there are.
        rmse: RMSE of the expected rating.
        bias: Mean of (expected - true rating): what the answers are too high by.
        gain: Paired interval of (this RMSE - that of user + item bias); below 0 is better.
    """

    name: str
    turns: str
    ratings: int
    rmse: Interval
    bias: float
    gain: Interval


def score(
    name: str, truth: Log, predicted: np.ndarray, baseline: np.ndarray, *, seed: int = 0
) -> list[TurnScores]:
    """Score a policy on each group of turns that has ratings.

    Args:
        name: The policy.
        truth: The interactions with their true ratings, n of them, sorted by user, then time.
        predicted: Distributions over 1 to 5, float[n, 5], in the same order.
        baseline: Ratings that a baseline predicts, float[n].
        seed: Names the bootstrap's resamples of users.
    """
    actual = truth.rating.astype(np.float64)
    expected, other = predicted @ np.array(RATINGS, float), np.clip(baseline, 1, 5)
    turn = np.arange(len(truth)) - np.searchsorted(truth.user, truth.user) + 1
    scores = []
    for words, (first, last) in TURNS.items():
        chosen = (turn >= first) & (turn <= (last or len(truth)))
        if not chosen.any():
            continue
        _, user = np.unique(truth.user[chosen], return_inverse=True)
        counts = np.bincount(user).astype(float)
        errors, others = (
            np.bincount(user, (guess - actual)[chosen] ** 2) for guess in (expected, other)
        )
        scores.append(
            TurnScores(
                name,
                words,
                int(chosen.sum()),
                ratio_interval(errors, counts, transform=np.sqrt, seed=seed),
                float((expected - actual)[chosen].mean()),
                ratio_interval(
                    errors, counts, transform=np.sqrt, minus=(others, counts), seed=seed
                ),
            )
        )
    return scores


# --- the table ---


def table(scores: Sequence[TurnScores]) -> str:
    """Return a Markdown table with one row per policy and group of turns."""
    rows = [
        [
            s.name,
            s.turns,
            str(s.ratings),
            s.rmse.text(),
            f"{s.bias:+.3f}",
            s.gain.text(sign="+"),
        ]
        for s in scores
    ]
    headers = ["policy", "turns", "ratings", "RMSE expected", "too high by"]
    return markdown_table(rows, [*headers, f"RMSE - {BASELINE}"])


# --- the protocol ---


def run(subject: Subject) -> ProtocolResult:
    """Let every policy rate each user's held-out items in one conversation."""
    dataset, config = subject.dataset, subject.config
    view = test_view(dataset, subject.personas)
    truth = held_out_ratings(dataset.log, subject.users, cap=config.cap)
    with waiting("rating turns: fitting the baseline", subject.say):
        baseline = BASELINES[BASELINE](view.profile)(truth.user, truth.item)
    scores: list[TurnScores] = []
    for name in subject.policies:
        with subject.open(name, PROTOCOL.name, 0) as policy:
            talks = conversations(dataset, view, truth, policy, seed=config.seed)
            done = answers(talks, policy, name, subject.say)
        predicted = distributions([completion for talk in done for completion in talk])
        scores += score(name, truth, predicted, baseline, seed=config.seed)
    title = f"Ratings one after another: {len(truth)} of {len(np.unique(truth.user))} users"
    return ProtocolResult(f"{title}\n\n{table(scores)}")


PROTOCOL = Protocol("rating_turns", needs=(), run=run)
