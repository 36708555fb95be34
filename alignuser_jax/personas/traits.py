"""Compute the traits of docs/method.md sections 4.2 and 4.3 for all users of a log at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc
from scipy import sparse

from alignuser_jax.datasets import Dataset, Log
from alignuser_jax.records import LIKED_FROM, RATINGS, Persona

PICKINESS_BOUNDS = (3.5, 4.5)
"""A mean rating below the first is extremely picky (3), from the second on not picky (1)."""
ENGAGEMENT_PERCENTILES = (60, 90)
CONFORMITY_PERCENTILES = (25, 80)
VARIETY_PERCENTILES = (33, 66)
"""Between which percentiles over users a trait has level 2 (docs/method.md section 4.3)."""
GENRE_COVERAGE = 0.8
"""The share of the genre counts within which genres are counted for variety."""
FAVOURITE_GENRES = 3
"""How many favourite genres a persona names."""
BLOCK_CELLS = 1 << 22
"""How many cells (users times genres) are counted at a time, to bound memory."""


@dataclass(frozen=True)
class Traits:
    """The traits of all users, one row per user code of the dataset.

    Users without ratings in the log have 0 or nan. The formulas are those of docs/method.md
    section 4.2.

    Attributes:
        mean_rating: float64[users]; R_u, the mean rating.
        engagement: int64[users]; T_act, the number of ratings.
        conformity: float64[users]; T_conf, the mean of (r - R_i)² over the user's ratings, or
            their sum if `literal`.
        genres: int64[users]; T_div, the number of different genres rated.
        covering_genres: int64[users]; how many of the user's genres, most frequent first, stay
            within a cumulative share of 0.8 of the genre counts. Variety is binned by it
            (section 4.3).
        rating_shares: float64[users, 5]; the shares of 1, 2, 3, 4 and 5 stars.
        favourite_genres: The genres with the most likes, best first, at most three per user.
    """

    mean_rating: np.ndarray
    engagement: np.ndarray
    conformity: np.ndarray
    genres: np.ndarray
    covering_genres: np.ndarray
    rating_shares: np.ndarray
    favourite_genres: tuple[tuple[str, ...], ...]


def compute_traits(dataset: Dataset, log: Log, *, literal: bool = False) -> Traits:
    """Compute the traits of every user of `dataset` from `log` alone, item means R_i included.

    Args:
        dataset: Gives users, items and genres.
        log: The ratings that may be used.
        literal: Sum the squared deviations from R_i, as SimUSER's text does. The default
            divides by the number of ratings (Agent4Rec), since the sum is confounded with
            engagement.
    """
    users, items = len(dataset.user_ids), len(dataset.item_ids)
    rating = log.rating.astype(np.float64)
    count = np.bincount(log.user, minlength=users)
    item_mean = _ratio(
        np.bincount(log.item, rating, items), np.bincount(log.item, minlength=items)
    )
    deviation = np.bincount(log.user, (rating - item_mean[log.item]) ** 2, users)
    stars = np.clip(np.floor(rating + 0.5), RATINGS[0], RATINGS[-1]).astype(np.int64)
    star_counts = np.bincount(
        log.user.astype(np.int64) * len(RATINGS) + stars - RATINGS[0],
        minlength=users * len(RATINGS),
    ).reshape(users, len(RATINGS))

    names, membership = _genres(dataset)
    distinct, covering = np.zeros(users, np.int64), np.zeros(users, np.int64)
    favourites: list[tuple[str, ...]] = []
    for first, seen, liked_counts in _genre_counts(log, membership, users):
        part = slice(first, first + len(seen))
        share = np.cumsum(-np.sort(-seen, axis=1), axis=1)  # counts, most frequent genre first
        within = share <= GENRE_COVERAGE * seen.sum(1, keepdims=True) + 1e-9
        distinct[part] = (seen > 0).sum(1)
        covering[part] = (within & (np.sort(seen, axis=1)[:, ::-1] > 0)).sum(1)
        order = np.argsort(-liked_counts, axis=1, kind="stable")[:, :FAVOURITE_GENRES]
        favourites += [
            tuple(names[g] for g in row if counts[g])
            for row, counts in zip(order.tolist(), liked_counts, strict=True)
        ]
    return Traits(
        mean_rating=_ratio(np.bincount(log.user, rating, users), count),
        engagement=count,
        conformity=np.where(count > 0, deviation, np.nan)
        if literal
        else _ratio(deviation, count),
        genres=distinct,
        covering_genres=covering,
        rating_shares=_ratio(star_counts, count[:, None]),
        favourite_genres=tuple(favourites),
    )


def compute_personas(
    dataset: Dataset, log: Log, *, literal: bool = False
) -> dict[str, Persona]:
    """Compute a persona for every user of `dataset`, by user id.

    The levels are those of docs/method.md section 4.3, with percentiles over the users of
    `log`. A user without ratings in `log` has unknown traits (0, `None` or empty) and keeps the
    demographics. The answers of a survey (the table `surveys` of a dataset that has one) are
    copied.

    Args:
        dataset: Gives users, items, genres and demographics.
        log: The ratings that may be used.
        literal: As in `compute_traits`.
    """
    traits = compute_traits(dataset, log, literal=literal)
    active, levels = traits.engagement > 0, trait_levels(traits)
    surveys = _surveys(dataset)
    personas = {}
    for code, user in enumerate(dataset.user_ids):
        texts = {**dataset.demographics.get(user, {}), **surveys.get(user, {})}
        personas[user] = Persona(
            user_id=user,
            pickiness=int(levels["pickiness"][code]),
            engagement=int(levels["engagement"][code]),
            conformity=int(levels["conformity"][code]),
            variety=int(levels["variety"][code]),
            mean_rating=float(traits.mean_rating[code]) if active[code] else None,
            rating_shares=tuple(traits.rating_shares[code].tolist()) if active[code] else (),
            favourite_genres=traits.favourite_genres[code],
            age=texts.get("age", ""),
            occupation=texts.get("occupation", ""),
            personality=texts.get("personality", ""),
            habits=texts.get("habits", ""),
        )
    return personas


def trait_levels(traits: Traits) -> dict[str, np.ndarray]:
    """Return the levels of pickiness, engagement, conformity and variety, each int64[users].

    Levels are 1 to 3, and 0 where a trait is unknown (docs/method.md section 4.3).
    """
    active, with_genres = traits.engagement > 0, traits.genres > 0
    return {
        "pickiness": np.where(active, 3 - np.digitize(traits.mean_rating, PICKINESS_BOUNDS), 0),
        "engagement": _levels(traits.engagement, ENGAGEMENT_PERCENTILES, active),
        "conformity": _levels(traits.conformity, CONFORMITY_PERCENTILES, active),
        "variety": _levels(traits.covering_genres, VARIETY_PERCENTILES, with_genres),
    }


def _surveys(dataset: Dataset) -> dict[str, dict[str, str]]:
    """Return the persona fields that each surveyed user answered, by user id."""
    table = dataset.extra_tables.get("surveys")
    fields = ("age", "occupation", "personality", "habits")
    return {
        row["user_id"]: {name: row[name] for name in fields if row.get(name)}
        for row in ([] if table is None else table.to_pylist())
    }


def _levels(values: np.ndarray, percentiles: tuple[int, int], valid: np.ndarray) -> np.ndarray:
    """int[users]: 1 below the first percentile, 2 below the second, else 3; 0 if invalid."""
    levels = np.zeros(len(values), np.int64)
    if valid.any():
        bounds = np.percentile(values[valid], percentiles)
        levels[valid] = 1 + np.digitize(values[valid], bounds)
    return levels


def _ratio(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Return total / count, nan where count is 0."""
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def _genres(dataset: Dataset) -> tuple[tuple[str, ...], sparse.csr_matrix]:
    """The sorted genre names, and a 0/1 matrix [items, genres]: which item has which."""
    column = dataset.item_table["genres"].combine_chunks()
    lengths = np.nan_to_num(pc.list_value_length(column).to_numpy(zero_copy_only=False))
    encoded = column.flatten().dictionary_encode()
    names = np.array(encoded.dictionary.to_pylist(), object)
    order = np.argsort(names)
    place = np.argsort(order)  # the place of each name in the sorted list
    columns = place[encoded.indices.to_numpy()] if len(names) else np.zeros(0, np.int64)
    rows = np.repeat(np.arange(len(lengths)), lengths.astype(np.int64))
    membership = sparse.csr_matrix(
        (np.ones(len(rows), np.int64), (rows, columns)), (len(lengths), len(names))
    )
    membership.data[:] = 1  # a genre that an item names twice counts once
    return tuple(names[order].tolist()), membership


def _genre_counts(
    log: Log, membership: sparse.csr_matrix, users: int
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yield (first user, int64[block, genres], int64[block, genres]) for blocks of users.

    The matrices count how many of a user's items, and of the items that the user likes, have
    each genre.
    """
    step = max(BLOCK_CELLS // max(membership.shape[1], 1), 1)
    user, item, rating = log.user, log.item, log.rating
    if (np.diff(user) < 0).any():
        order = np.argsort(user, kind="stable")
        user, item, rating = user[order], item[order], rating[order]
    starts = np.searchsorted(user, np.arange(users + 1))
    for first in range(0, users, step):
        last = min(first + step, users)
        part = slice(starts[first], starts[last])
        rows, shape = (
            starts[first : last + 1] - starts[first],
            (last - first, membership.shape[0]),
        )
        counts = []
        for ones in (np.ones(len(item[part]), np.int64), (rating[part] >= LIKED_FROM) * 1):
            seen = sparse.csr_matrix((ones, item[part], rows), shape)
            counts.append((seen @ membership).toarray())
        yield first, *counts
