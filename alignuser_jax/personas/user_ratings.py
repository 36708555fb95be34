"""The ratings that persona matching may use: one part of a log, titles and ratings only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from alignuser_jax.datasets import Dataset, Log
from alignuser_jax.memory import EpisodicMemory
from alignuser_jax.memory.episodic import RatedItem
from alignuser_jax.randomness import named_generator
from alignuser_jax.records import DISLIKED_TO, LIKED_FROM
from alignuser_jax.text import one_line

Rated = RatedItem
"""A title and its rating, as `EpisodicMemory` holds them."""


class UserRatings:
    """The ratings of every user in one part of a log, and random draws of them.

    Demographics are not read from `dataset`, and ratings outside `log` are not seen. The
    randomness of every draw is named by user and purpose, so a user's draws do not depend on
    who else is matched.

    Args:
        dataset: Gives titles and user ids.
        log: The ratings that may be used.
    """

    def __init__(self, dataset: Dataset, log: Log):
        self._titles = [one_line(dataset.items[item].title) for item in dataset.item_ids]
        self._codes = {user: code for code, user in enumerate(dataset.user_ids)}
        order = np.argsort(log.user, kind="stable")
        self._item, self._rating = log.item[order], log.rating[order]
        self._counts = np.bincount(log.user, minlength=len(self._codes))
        self._starts = np.concatenate([[0], np.cumsum(self._counts)])

    def of_user(self, user_id: str) -> tuple[Rated, ...]:
        """Return the ratings of a user, oldest first; raise `KeyError` for an unknown user."""
        return self._of_code(self._codes[user_id])

    def count(self, user_id: str) -> int:
        """Return how many ratings a user has; raise `KeyError` for an unknown user."""
        return int(self._counts[self._codes[user_id]])

    def taste(self, user_id: str, count: int, seed: int = 0) -> tuple[Rated, ...]:
        """Return the likes and dislikes among `count` random ratings of a user.

        They are in random order (docs/method.md section 4.4 step 1). If the user neither liked
        nor disliked any of them, all `count` ratings are returned.
        """
        drawn = self._draw(self.of_user(user_id), count, seed, user_id, "taste")
        strong = tuple(r for r in drawn if not DISLIKED_TO < r.score < LIKED_FROM)
        return strong or drawn

    def subsets(
        self, user_id: str, number: int, size: int, seed: int = 0, draw: int = 0
    ) -> tuple[tuple[Rated, ...], ...]:
        """Return `number` subsets of a user's ratings, then as many of other users' ratings.

        Each of the latter is of another user (DEFAULT: the paper does not say how they are
        drawn). These users have rated at least as much as a subset needs; if there are fewer
        than `number` such users, those who have rated most are taken instead.

        Args:
            user_id: The user.
            number: How many subsets of either kind.
            size: The most ratings of a subset.
            seed: Names the randomness.
            draw: Tells repeated draws apart.

        Raises:
            KeyError: The user is unknown.
            ValueError: Nobody else has ratings.
        """
        code, own = self._codes[user_id], self.of_user(user_id)
        name = (seed, user_id, "subset", draw)
        drawn = [self._draw(own, size, *name, n) for n in range(number)]
        size = min(size, len(own))
        enough = np.flatnonzero(self._counts >= size)
        enough = enough[enough != code]
        if len(enough) < number:
            most = np.argsort(-self._counts, kind="stable")
            enough = most[(most != code) & (self._counts[most] > 0)][:number]
        if not len(enough):
            raise ValueError(
                f"user {user_id!r} is the only one with ratings: a persona is matched by how "
                "the user differs from others, so the ratings of others are needed too"
            )
        others = _generator(*name, "others").permutation(enough)
        for n in range(number):
            other = int(others[n % len(others)])
            drawn.append(self._draw(self._of_code(other), size, *name, "other", n))
        return tuple(drawn)

    @staticmethod
    def summary(rated: Sequence[Rated]) -> str:
        """Return ratings as text, from best to worst."""
        return EpisodicMemory(tuple(rated)).summary(len(rated))

    def _of_code(self, code: int) -> tuple[Rated, ...]:
        part = slice(self._starts[code], self._starts[code + 1])
        items, ratings = self._item[part].tolist(), self._rating[part].tolist()
        return tuple(Rated(self._titles[i], r) for i, r in zip(items, ratings, strict=True))

    @staticmethod
    def _draw(rated: Sequence[Rated], count: int, *name: object) -> tuple[Rated, ...]:
        order = _generator(*name).permutation(len(rated))[:count]
        return tuple(rated[n] for n in order.tolist())


def _generator(*name: object) -> np.random.Generator:
    return named_generator("persona", *name)
