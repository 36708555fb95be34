"""What matching may know of users: titles and ratings of one part of a log, and no more."""

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
"""A title and its rating."""


class Evidence:
    """The ratings in `log`, by user id. Demographics are not taken from `dataset`, and ratings
    outside `log` are not seen. Every draw is named by user and purpose, so it does not depend
    on who else is matched."""

    def __init__(self, dataset: Dataset, log: Log):
        self._titles = [one_line(dataset.items[item].title) for item in dataset.item_ids]
        self._codes = {user: code for code, user in enumerate(dataset.user_ids)}
        order = np.argsort(log.user, kind="stable")
        self._item, self._rating = log.item[order], log.rating[order]
        self._counts = np.bincount(log.user, minlength=len(self._codes))
        self._starts = np.concatenate([[0], np.cumsum(self._counts)])

    def of_user(self, user_id: str) -> tuple[Rated, ...]:
        """All that is known of a user, oldest first. Raises `KeyError` for an unknown one."""
        return self._of_code(self._codes[user_id])

    def count(self, user_id: str) -> int:
        """How many ratings of a user are known. Raises `KeyError` for an unknown one."""
        return int(self._counts[self._codes[user_id]])

    def taste(self, user_id: str, count: int, seed: int = 0) -> tuple[Rated, ...]:
        """What was liked or disliked among `count` random ratings of the user, in random order
        (METHOD.md 4.4 step 1); of a user who rated everything in between, these ratings."""
        drawn = self._draw(self.of_user(user_id), count, seed, user_id, "taste")
        strong = tuple(r for r in drawn if not DISLIKED_TO < r.score < LIKED_FROM)
        return strong or drawn

    def subsets(
        self, user_id: str, number: int, size: int, seed: int = 0, draw: int = 0
    ) -> tuple[tuple[Rated, ...], ...]:
        """`number` subsets of at most `size` ratings of the user, then as many of other users,
        a different one for each (DEFAULT: the paper does not say how others are drawn). Others
        have rated as much as the subset needs where there are enough such users, else they are
        those who have rated most. `draw` names a repetition."""
        code, own = self._codes[user_id], self.of_user(user_id)
        name = (seed, user_id, "subset", draw)
        found = [self._draw(own, size, *name, n) for n in range(number)]
        size = min(size, len(own))
        enough = np.flatnonzero(self._counts >= size)
        enough = enough[enough != code]
        if len(enough) < number:
            most = np.argsort(-self._counts, kind="stable")
            enough = most[(most != code) & (self._counts[most] > 0)][:number]
        if not len(enough):
            raise ValueError(
                f"user {user_id!r} is the only one with ratings: a persona is matched by how "
                "the user differs from others, so give the ratings of others too"
            )
        others = _generator(*name, "others").permutation(enough)
        for n in range(number):
            other = int(others[n % len(others)])
            found.append(self._draw(self._of_code(other), size, *name, "other", n))
        return tuple(found)

    @staticmethod
    def summary(rated: Sequence[Rated]) -> str:
        """Ratings as text, from best to worst."""
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
