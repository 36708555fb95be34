"""A control of rating tests: the same questions, asked of somebody with another user's past.

An agent that does not change when its persona, history and memory are another user's is blind
to them, whatever its RMSE is: the item's mean rating on the page explains that alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import spearmanr

from alignuser_jax.agents.conversation import AgentUser
from alignuser_jax.datasets import Log
from alignuser_jax.randomness import named_generator
from alignuser_jax.records import RATINGS
from alignuser_jax.statistics.paired import Interval, ratio_interval
from alignuser_jax.text import markdown_table


def other_users(users: np.ndarray, seed: int) -> dict[int, int]:
    """Return for each user the one whose past it gets; nobody gets its own.

    Args:
        users: int[n], codes of at least two different users.
        seed: Names the draw.

    Raises:
        ValueError: There are fewer than two users.
    """
    if len(users) < 2:
        raise ValueError(
            f"{len(users)} user: another user's history needs at least two users; test more"
        )
    order = named_generator("another history", seed).permutation(users)
    return dict(zip(order.tolist(), np.roll(order, 1).tolist(), strict=True))


def with_past_of(user_id: str, other: AgentUser) -> AgentUser:
    """Return user `user_id` with the persona, history and memory of `other`.

    What the site shows stays that of `user_id`.
    """
    return replace(other, persona=replace(other.persona, user_id=user_id))


@dataclass(frozen=True)
class Reaction:
    """What another user's past changes in a policy's ratings.

    Attributes:
        name: The policy.
        change: Mean absolute change of the expected rating.
        rank_own: Spearman's correlation of expected and true ratings, with the own past.
        rank_other: The same with another user's past.
        rmse_loss: Paired interval of (RMSE with another's past - RMSE with the own); above 0
            says that the policy uses what it knows of its user.
    """

    name: str
    change: float
    rank_own: float
    rank_other: float
    rmse_loss: Interval


def reaction(
    name: str, truth: Log, own: np.ndarray, other: np.ndarray, *, seed: int = 0
) -> Reaction:
    """Compare a policy's ratings with the own and with another user's past.

    Args:
        name: The policy.
        truth: The interactions with their true ratings, n of them.
        own: Distributions over 1 to 5 with the own past, float[n, 5].
        other: The same with another user's.
        seed: Names the bootstrap's resamples of users.
    """
    actual, stars = truth.rating.astype(np.float64), np.array(RATINGS, float)
    expected, changed = own @ stars, other @ stars
    _, user = np.unique(truth.user, return_inverse=True)
    counts = np.bincount(user).astype(float)
    squared = [np.bincount(user, (e - actual) ** 2) for e in (expected, changed)]
    loss = ratio_interval(
        squared[1], counts, transform=np.sqrt, minus=(squared[0], counts), seed=seed
    )
    return Reaction(
        name,
        float(np.abs(expected - changed).mean()),
        _rank_correlation(expected, actual),
        _rank_correlation(changed, actual),
        loss,
    )


def _rank_correlation(expected: np.ndarray, actual: np.ndarray) -> float:
    """Return Spearman's correlation; NaN if one side is constant."""
    if not (np.ptp(expected) and np.ptp(actual)):
        return float("nan")
    return float(spearmanr(expected, actual).statistic)


def table(reactions: Sequence[Reaction]) -> str:
    """Return a Markdown table with one row per policy."""
    rows = [
        [
            r.name,
            f"{r.change:.3f}",
            f"{r.rank_own:.3f}",
            f"{r.rank_other:.3f}",
            r.rmse_loss.text(sign="+"),
        ]
        for r in reactions
    ]
    headers = ["policy", "mean change of the rating", "rank correlation, own past"]
    return markdown_table(rows, [*headers, "another user's past", "RMSE lost by it"])
