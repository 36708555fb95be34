"""What held-out hits and held-out rankings share: the splits, and the requests to ask."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from alignuser_jax.datasets import Dataset
from alignuser_jax.randomness import stable_key
from alignuser_jax.records import RecommendationRequest


@dataclass(frozen=True)
class HeldOutSplits:
    """Which parts of the log are shown to a recommender and which judge it.

    Attributes:
        history: what a request's history holds; its items are excluded from the slate.
        skipped: parts whose items are excluded too, since the recommender was stopped by them.
        truth: parts that the slate should hit.
    """

    history: tuple[str, ...] = ("train",)
    skipped: tuple[str, ...] = ()
    truth: tuple[str, ...] = ("validation", "test")


def user_codes(dataset: Dataset, users: Sequence[str]) -> list[int]:
    """Return the users' codes in the dataset.

    Raises:
        ValueError: if a user is not in the dataset.
    """
    code_of = {user: code for code, user in enumerate(dataset.user_ids)}
    unknown = [user for user in users if user not in code_of]
    if unknown:
        raise ValueError(
            f"{len(unknown)} of {len(users)} users are not in the dataset, e.g. {unknown[0]!r}"
        )
    return [code_of[user] for user in users]


def request_batches(
    dataset: Dataset, users: Sequence[str], k: int, splits: HeldOutSplits, batch: int
) -> Iterator[tuple[int, list[RecommendationRequest]]]:
    """Yield the number of the first user of each batch, and a request for each of its users."""
    history_log = dataset.log.of_split(*splits.history)
    excluded_log = dataset.log.of_split(*splits.history, *splits.skipped)
    for start in range(0, len(users), batch):
        yield (
            start,
            [
                RecommendationRequest(
                    user,
                    tuple(dataset.history(history_log, user)),
                    k=k,
                    exclude=frozenset(i.item_id for i in dataset.history(excluded_log, user)),
                    seed=stable_key("held-out", user),
                )
                for user in users[start : start + batch]
            ],
        )
