"""Users without a language model: they watch, rate and leave by chance, by their tastes.

They serve to try and train recommenders fast. Nothing here is validated against people.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from alignuser_jax.datasets import Dataset, item_statistics
from alignuser_jax.randomness import stable_key
from alignuser_jax.records import LIKED_FROM, Action, Outcome, RecommendationRequest
from alignuser_jax.world.gym.recsys import VisitCoroutine
from alignuser_jax.world.site.page import local_id
from alignuser_jax.world.site.site import RecommendationSite

Taste = Callable[[str, str], tuple[float, float]]
"""(user id, item id) -> the chance that the user watches the item if it is shown, and the
rating (1 to 5) that is then expected."""
SHRINKAGE = 5.0
"""How many average ratings each mean of a log starts from, which shrinks it towards 0."""


@dataclass(frozen=True)
class BehaviouralUsers:
    """Users who act by chance; a `UserModel` for `RecSysEnv`.

    On each page a user watches each item with its chance, rates it (the expected rating,
    rounded up with the chance of its fraction), then leaves with a chance between `bored` (no
    item of the page was liked) and `pleased` (all were), and else goes to the next page.

    The seed, the user and the item name a draw. So a user watches and rates an item alike
    wherever it is shown, and two recommenders can be compared visit by visit.

    Attributes:
        site: The site that is visited.
        taste: What users like.
        bored: The chance to leave a page without a liked item; the default is no measurement.
        pleased: The chance to leave a page of liked items only; the default is no measurement.
    """

    site: RecommendationSite
    taste: Taste
    bored: float = 0.4
    pleased: float = 0.05

    def __post_init__(self) -> None:
        if not 0 <= self.pleased <= self.bored <= 1:
            raise ValueError(
                f"bored={self.bored}, pleased={self.pleased}: expected chances with "
                "0 <= pleased <= bored <= 1"
            )

    def __call__(self, user_id: str, seed: int) -> VisitCoroutine:
        """Yield the requests of one visit, be sent their slates and return the outcome."""
        site = self.site
        state = site.reset(user_id, seed)
        while True:
            while isinstance(state.needs, RecommendationRequest):
                state = site.resolve(state, (yield state.needs))
            if state.terminal:
                return Outcome((), state)
            liked = 0
            for position, item_id in enumerate(state.slate, 1):
                watch, expected = self.taste(user_id, item_id)
                if _chance("watch", seed, user_id, item_id) >= watch:
                    continue
                stars = int(expected + _chance("rate", seed, user_id, item_id))
                stars = min(max(stars, 1), 5)
                state = site.step(state, Action("rate", local_id(position), stars))
                liked += stars >= LIKED_FROM
            leave = self.bored + (self.pleased - self.bored) * liked / len(state.slate)
            leaves = _chance("leave", seed, user_id, state.page) < leave
            exit_action = Action("exit")
            leaves = leaves and exit_action in state.actions
            state = site.step(state, exit_action if leaves else Action("next_page"))


def _chance(*names: object) -> float:
    """A uniform number from 0 to 1 (1 excluded) that belongs to the names."""
    return (stable_key(*names) >> 10) / 2**53


def taste_of(dataset: Dataset) -> Taste:
    """Return the true tastes of a synthetic dataset, else tastes estimated from its log."""
    if dataset.truth:
        return true_taste(dataset)
    return estimated_taste(dataset)


def true_taste(dataset: Dataset) -> Taste:
    """Return the tastes in `Dataset.truth`; raises `ValueError` if the dataset has none."""
    if not {"watch", "utility"} <= dataset.truth.keys():
        raise ValueError(f"{dataset.name} holds no true tastes: only synthetic datasets do")
    user_code = {user: code for code, user in enumerate(dataset.user_ids)}
    item_code = {item: code for code, item in enumerate(dataset.item_ids)}
    watch, utility = dataset.truth["watch"], dataset.truth["utility"]

    def taste(user_id: str, item_id: str) -> tuple[float, float]:
        cell = user_code[user_id], item_code[item_id]
        return float(watch[cell]), float(utility[cell])

    return taste


def estimated_taste(dataset: Dataset) -> Taste:
    """Return tastes estimated from the log.

    An expected rating is the item's mean rating, plus the user's mean deviation from it, plus
    the user's remaining deviation by genre; each deviation is shrunk towards 0 by `SHRINKAGE`
    ratings. The chance to watch an item grows with the number of standard deviations by which
    the item and its genres raise the rating, in the form of the synthetic users
    (`datasets.formats.synthetic`).
    """
    log, items = dataset.log, dataset.items
    means, counts = item_statistics(log)
    middle, spread = float(log.rating.mean()), float(log.rating.std()) or 1.0
    weight = counts / (counts + SHRINKAGE)
    quality = np.where(counts > 0, weight * (np.nan_to_num(means) - middle), 0.0)
    left = log.rating - middle - quality[log.item]

    def shrunk(groups: np.ndarray, values: np.ndarray, size: int) -> np.ndarray:
        total = np.bincount(groups, values, size)
        return total / (np.bincount(groups, minlength=size) + SHRINKAGE)

    bias = shrunk(log.user, left, log.n_users)
    left = left - bias[log.user]
    genres = sorted({genre for item in items.values() for genre in item.genres})
    genre_code = {genre: code for code, genre in enumerate(genres)}
    codes_of = [[genre_code[g] for g in items[i].genres] for i in dataset.item_ids]
    each = np.array([len(codes) for codes in codes_of])[log.item]
    genre = np.array([g for item in log.item.tolist() for g in codes_of[item]], np.int64)
    cell = np.repeat(log.user.astype(np.int64), each) * len(genres) + genre
    liking = shrunk(cell, np.repeat(left, each), log.n_users * max(len(genres), 1))
    liking = liking.reshape(log.n_users, -1)
    user_code = {user: code for code, user in enumerate(dataset.user_ids)}
    item_code = {item: code for code, item in enumerate(dataset.item_ids)}

    def taste(user_id: str, item_id: str) -> tuple[float, float]:
        user, item = user_code[user_id], item_code[item_id]
        codes = codes_of[item]
        raised = float(quality[item] + (liking[user, codes].mean() if codes else 0.0))
        watch = 1 / (1 + np.exp(-(2 * raised / spread - 0.2)))
        return float(watch), float(np.clip(middle + bias[user] + raised, 1, 5))

    return taste
