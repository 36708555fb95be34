"""Generate a catalogue and its users: the demo's data, labelled synthetic wherever it is shown.

Ratings follow from latent tastes, so the true utility of every item for every user is known. It
is kept apart (`Dataset.truth`), so that a simulated lift can be compared with the true one.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa
from scipy.special import ndtr

from alignuser_jax.datasets.dataset import Dataset
from alignuser_jax.datasets.reading.cleaning import RawLog, build_dataset
from alignuser_jax.datasets.reading.delimited import LINE
from alignuser_jax.datasets.report import Report
from alignuser_jax.datasets.splits import SplitKind
from alignuser_jax.randomness import named_generator

_GENRES = ("Comedy", "Drama", "Horror", "Mystery", "Romance", "Space", "War", "Western")
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
_START = 1_600_000_000  # 2020-09-13 in Unix seconds


@dataclass(frozen=True)
class SyntheticConfig:
    """Size and spreads of a generated log; the same configuration gives the same log.

    Attributes:
        users: Number of users.
        items: Number of items.
        ratings_per_user: Mean number of ratings per user, about.
        taste: Spread, in stars, of what a user's genre tastes add to a rating; a third of its
            variance comes with the age group.
        quality: Spread, in stars, of the items' quality.
        bias: Spread, in stars, of the users' generosity.
        noise: Spread, in stars, of what is left to chance.
        middle: Mean rating of a mean item.
        seed: Names the random stream.

    Example:
        >>> SyntheticConfig(users=40, items=60, ratings_per_user=12).seed
        0
    """

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


@dataclass(frozen=True)
class _Population:
    """Latent tastes of the users and qualities of the items, and what follows from them."""

    genre_shares: np.ndarray  # float64[items, genres], each row adds up to 1
    age: np.ndarray  # int64[users], codes of `_AGES`
    expected: np.ndarray  # float64[users, items], the expected rating before rounding to 1..5
    watch: np.ndarray  # float64[users, items], the chance to take the item when it is shown
    fame: np.ndarray  # float64[items], the weight with which users come across an item


def generate(config: SyntheticConfig | None = None, split: SplitKind = "per_user") -> Dataset:
    """Generate a log of ratings whose true utilities are known.

    `Dataset.truth` has three float32[users, items] arrays in the order of the dataset's codes:
    `utility`, the user's expected rating from 1 to 5; `watch`, the chance that the user takes
    the item when it is shown; `like`, the chance that the user's rating is 4 or 5.

    Args:
        config: Size, spreads and seed.
        split: How to split.

    Example:
        >>> dataset = generate(SyntheticConfig(users=10, items=20, ratings_per_user=8))
        >>> dataset.truth["watch"].shape
        (10, 20)
    """
    config = config or SyntheticConfig()
    # The draws below share one stream: their order is part of the dataset's content.
    rng = named_generator("synthetic", config.seed)
    population = _population(config, rng)
    user, item, rating, time = _ratings(config, population, rng)
    user_names = [f"user{n:04d}" for n in range(config.users)]
    item_names = [f"item{n:04d}" for n in range(config.items)]
    items = _items(item_names, population.genre_shares, rng)
    interactions = pa.table(
        {
            "user_id": [user_names[n] for n in user],
            "item_id": [item_names[n] for n in item],
            "rating": [f"{r:.0f}" for r in rating],
            "timestamp": [str(t) for t in time],
            LINE: np.arange(1, len(user) + 1),
        }
    )
    users = pa.table(
        {
            "user_id": user_names,
            "age": [_AGES[n] for n in population.age],
            "occupation": rng.choice(_JOBS, config.users).tolist(),
        }
    )
    raw = RawLog(
        interactions,
        users,
        items,
        file="synthetic",
        name="synthetic",
        source={"format": "synthetic", "config": asdict(config)},
        split=split,
        synthetic=True,
        truth=_truth(population, config.noise),
    )
    return build_dataset(raw, Report())


def _population(config: SyntheticConfig, rng: np.random.Generator) -> _Population:
    n_users, n_items, n_genres = config.users, config.items, len(_GENRES)
    genre_shares = np.zeros((n_items, n_genres))
    for item in range(n_items):
        genre_shares[item, rng.choice(n_genres, rng.integers(1, 3), replace=False)] = 1
    genre_shares /= genre_shares.sum(1, keepdims=True)
    age = rng.integers(len(_AGES), size=n_users)
    of_age = rng.normal(0, np.sqrt(1 / 3), (len(_AGES), n_genres))
    taste = of_age[age] + rng.normal(0, np.sqrt(2 / 3), (n_users, n_genres))
    taste -= taste.mean(1, keepdims=True)
    quality = rng.normal(0, config.quality, n_items)
    bias = rng.normal(0, config.bias, n_users)
    expected = config.middle + config.taste * taste @ genre_shares.T + quality + bias[:, None]
    appeal = (expected - bias[:, None] - config.middle) / (config.taste + config.quality)
    watch = 1 / (1 + np.exp(-(2.0 * appeal - 0.2)))
    fame = np.exp(rng.normal(0, 0.8, n_items) + 0.6 * quality / config.quality)
    return _Population(genre_shares, age, expected, watch, fame)


def _truth(population: _Population, noise: float) -> dict[str, np.ndarray]:
    chances = [_at_least(stars - 0.5, population.expected, noise) for stars in (2, 3, 4, 5)]
    utility = 1 + sum(chances)  # the mean of a rating from 1 to 5: 1 + the sum of P(>= stars)
    like = _at_least(3.5, population.expected, noise)
    arrays = {"utility": np.asarray(utility), "watch": population.watch, "like": like}
    return {name: values.astype(np.float32) for name, values in arrays.items()}


def _ratings(
    config: SyntheticConfig, population: _Population, rng: np.random.Generator
) -> tuple[np.ndarray, ...]:
    """Draw the ratings: columns user, item, rating and time in Unix seconds."""
    n_users, n_items = config.users, config.items
    count = np.clip(
        rng.lognormal(np.log(config.ratings_per_user) - 0.08, 0.4, n_users), 12, n_items * 0.75
    ).astype(int)
    users, items, ratings, times = [], [], [], []
    for user in range(n_users):
        weight = population.fame * population.watch[user]
        chosen = rng.choice(n_items, count[user], replace=False, p=weight / weight.sum())
        drawn = population.expected[user, chosen] + rng.normal(0, config.noise, count[user])
        gaps = np.where(
            rng.random(count[user]) < 0.12,
            rng.exponential(4 * 86_400, count[user]) + 3_600,
            rng.exponential(90, count[user]),
        )
        users.append(np.full(count[user], user))
        items.append(chosen)
        ratings.append(np.clip(np.rint(drawn), 1, 5))
        times.append(_START + rng.integers(0, 30 * 86_400) + np.cumsum(gaps).astype(int))
    return tuple(map(np.concatenate, (users, items, ratings, times)))


def _items(names: list[str], genre_shares: np.ndarray, rng: np.random.Generator) -> pa.Table:
    titles = _titles(rng, len(names))
    descriptions = [
        f"{rng.choice(_PEOPLE)} {rng.choice(_DEEDS)} {rng.choice(_THINGS)}.".capitalize()
        for _ in names
    ]
    return pa.table(
        {
            "item_id": names,
            "title": titles,
            "genres": [[_GENRES[g] for g in np.flatnonzero(row)] for row in genre_shares],
            "description": descriptions,
        }
    )


def _titles(rng: np.random.Generator, count: int) -> list[str]:
    """Return invented titles, all different; past the first 256 they are numbered sequels."""
    titles: list[str] = []
    while len(titles) < count:
        part = "" if not titles else f" {len(titles) // (len(_FIRST) * len(_SECOND)) + 1}"
        titles += rng.permutation(
            [f"The {a} {b}{part}" for a in _FIRST for b in _SECOND]
        ).tolist()
    return titles[:count]


def _at_least(threshold: float, mean: np.ndarray, noise: float) -> np.ndarray:
    """Return P(mean + noise >= threshold) for normal noise."""
    return ndtr((mean - threshold) / noise)
