"""A generated catalogue and its generated users: the demo's data, labelled synthetic.

Ratings follow from latent tastes, so the true utility of every item for every user is known;
it is kept aside (`Dataset.truth`) to hold simulated lift against true lift.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa
from scipy.special import ndtr

from alignuser_jax.datasets.dataset import Dataset
from alignuser_jax.datasets.reading.cleaning import SplitKind, build_dataset
from alignuser_jax.datasets.reading.delimited import LINE
from alignuser_jax.datasets.report import Report
from alignuser_jax.randomness import named_generator

GENRES = ("Comedy", "Drama", "Horror", "Mystery", "Romance", "Space", "War", "Western")
_FIRST = (
    *("Amber", "Broken", "Crimson", "Distant", "Electric", "Frozen", "Golden", "Hidden"),
    *("Iron", "Jade", "Last", "Midnight", "Northern", "Paper", "Quiet", "Silver"),
)
_SECOND = (
    *("Bridge", "Canyon", "Daughter", "Empire", "Forest", "Garden", "Harbor", "Island"),
    *("Journey", "Kingdom", "Letter", "Mirror", "Orchard", "Promise", "River", "Station"),
)
_PEOPLE = (
    "a clockmaker",
    "two sisters",
    "a retired pilot",
    "an exile",
    "a choir",
    "a stranger",
)
_DEEDS = ("searches for", "loses", "guards", "invents", "returns to", "remembers")
_THINGS = ("a lost town", "an old secret", "the last train", "a rival", "a map", "a promise")
_AGES = ("under 18", "18-24", "25-34", "35-44", "45-49", "50-55", "56 or older")
_JOBS = ("artist", "clerk", "engineer", "farmer", "lawyer", "nurse", "student", "teacher")
_START = 1_600_000_000


@dataclass(frozen=True)
class SyntheticConfig:
    """`taste` is the spread (in stars) that a user's genre tastes make (a third of its variance
    goes with age), `quality` that of item quality, `bias` that of users' generosity, `noise`
    what is left to chance; `middle` is the mean rating of a mean item."""

    users: int = 240
    items: int = 160
    ratings_per_user: float = 40.0
    taste: float = 1.1
    quality: float = 0.45
    bias: float = 0.35
    noise: float = 0.5
    middle: float = 3.2
    seed: int = 0

    def __post_init__(self) -> None:
        if self.users < 2 or self.items < 8 or not 8 <= self.ratings_per_user <= self.items:
            raise ValueError(
                f"users={self.users}, items={self.items}, ratings_per_user="
                f"{self.ratings_per_user}: expected 2 users or more, 8 items or more and "
                "between 8 ratings per user and the number of items"
            )
        if min(self.taste, self.quality, self.noise) <= 0 or self.bias < 0:
            raise ValueError(
                f"taste={self.taste}, quality={self.quality}, noise={self.noise}, "
                f"bias={self.bias}: expected spreads above 0 (bias: 0 or above)"
            )


def generate(config: SyntheticConfig | None = None, split: SplitKind = "per_user") -> Dataset:
    """The same dataset for the same configuration.

    `truth`: `utility` float32 [users, items] (the expected rating, 1 to 5, of that user),
    `watch` float32 [users, items] (the chance that the user takes the item when it is shown)
    and `like` float32 [users, items] (the chance that a rating is 4 or 5), in code order.
    """
    config = config or SyntheticConfig()
    rng = named_generator("synthetic", config.seed)
    n_users, n_items, n_genres = config.users, config.items, len(GENRES)
    genre_of = np.zeros((n_items, n_genres))
    for item in range(n_items):
        genre_of[item, rng.choice(n_genres, rng.integers(1, 3), replace=False)] = 1
    genre_of /= genre_of.sum(1, keepdims=True)
    age = rng.integers(len(_AGES), size=n_users)
    of_age = rng.normal(0, np.sqrt(1 / 3), (len(_AGES), n_genres))
    taste = of_age[age] + rng.normal(0, np.sqrt(2 / 3), (n_users, n_genres))
    taste -= taste.mean(1, keepdims=True)
    quality = rng.normal(0, config.quality, n_items)
    bias = rng.normal(0, config.bias, n_users)
    raw = config.middle + config.taste * taste @ genre_of.T + quality + bias[:, None]
    utility = 1 + sum(_at_least(stars - 0.5, raw, config.noise) for stars in (2, 3, 4, 5))
    appeal = (raw - bias[:, None] - config.middle) / (config.taste + config.quality)
    watch = 1 / (1 + np.exp(-(2.0 * appeal - 0.2)))
    fame = np.exp(rng.normal(0, 0.8, n_items) + 0.6 * quality / config.quality)

    count = np.clip(
        rng.lognormal(np.log(config.ratings_per_user) - 0.08, 0.4, n_users), 12, n_items * 0.75
    ).astype(int)
    users, items, ratings, times = [], [], [], []
    for user in range(n_users):
        weight = fame * watch[user]
        chosen = rng.choice(n_items, count[user], replace=False, p=weight / weight.sum())
        drawn = raw[user, chosen] + rng.normal(0, config.noise, count[user])
        gaps = np.where(
            rng.random(count[user]) < 0.12,
            rng.exponential(4 * 86_400, count[user]) + 3_600,
            rng.exponential(90, count[user]),
        )
        users.append(np.full(count[user], user))
        items.append(chosen)
        ratings.append(np.clip(np.rint(drawn), 1, 5))
        times.append(_START + rng.integers(0, 30 * 86_400) + np.cumsum(gaps).astype(int))
    user, item, rating, time = map(np.concatenate, (users, items, ratings, times))

    user_names = [f"user{n:04d}" for n in range(n_users)]
    item_names = [f"item{n:04d}" for n in range(n_items)]
    titles = _titles(rng, n_items)
    genres = [[GENRES[g] for g in np.flatnonzero(row)] for row in genre_of]
    descriptions = [
        f"{rng.choice(_PEOPLE)} {rng.choice(_DEEDS)} {rng.choice(_THINGS)}.".capitalize()
        for _ in item_names
    ]
    strings = pa.table(
        {
            "user_id": [user_names[n] for n in user],
            "item_id": [item_names[n] for n in item],
            "rating": [f"{r:.0f}" for r in rating],
            "timestamp": [str(t) for t in time],
            LINE: np.arange(1, len(user) + 1),
        }
    )
    return build_dataset(
        strings,
        pa.table(
            {
                "user_id": user_names,
                "age": [_AGES[n] for n in age],
                "occupation": rng.choice(_JOBS, n_users).tolist(),
            }
        ),
        pa.table(
            {
                "item_id": item_names,
                "title": titles,
                "genres": genres,
                "description": descriptions,
            }
        ),
        Report(),
        file="synthetic",
        name="synthetic",
        source={"format": "synthetic", "config": asdict(config)},
        split=split,
        synthetic=True,
        truth={
            "utility": utility.astype(np.float32),
            "watch": watch.astype(np.float32),
            "like": _at_least(3.5, raw, config.noise).astype(np.float32),
        },
    )


def _titles(rng: np.random.Generator, count: int) -> list[str]:
    """Invented titles, all different; numbered sequels past the first 256."""
    titles: list[str] = []
    while len(titles) < count:
        part = "" if not titles else f" {len(titles) // (len(_FIRST) * len(_SECOND)) + 1}"
        titles += rng.permutation(
            [f"The {a} {b}{part}" for a in _FIRST for b in _SECOND]
        ).tolist()
    return titles[:count]


def _at_least(threshold: float, mean: np.ndarray, noise: float) -> np.ndarray:
    """P(mean + noise >= threshold) for normal noise."""
    return ndtr((mean - threshold) / noise)
