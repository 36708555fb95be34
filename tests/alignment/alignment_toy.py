"""A small dataset made in memory, and recommenders that say what they were asked."""

import numpy as np
import pyarrow as pa

from alignuser_jax.datasets import Dataset
from alignuser_jax.datasets.dataset import FORMAT_VERSION, content_hash
from alignuser_jax.records import Slate

GENRES = ("Action", "Animation", "Comedy", "Drama")


def toy(users=24, items=90, ratings=40, gap_share=0.1, seed=0, change=None):
    """`change`: (user id, place in the user's log, new rating)."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(users):
        times = 10**9 + np.cumsum(
            rng.integers(0, 60, ratings) + (rng.random(ratings) < gap_share) * 5000
        )
        chosen = rng.choice(items, ratings, replace=False)
        stars = rng.integers(1, 6, ratings).astype(float)
        for n in range(ratings):
            split = "train" if n < 0.8 * ratings else "validation"
            split = "test" if n >= 0.9 * ratings else split
            stars_n = stars[n]
            if change and change[:2] == (f"u{user:02}", n):
                stars_n = change[2]
            rows.append((f"u{user:02}", f"m{chosen[n]:03}", stars_n, int(times[n]), split))
    tables = {
        "user_table": pa.table(
            {
                "user_id": [f"u{n:02}" for n in range(users)],
                "age": ["25-34"] * users,
                "occupation": ["artist"] * users,
            }
        ),
        "item_table": pa.table(
            {
                "item_id": [f"m{n:03}" for n in range(items)],
                "title": [f"Film {n} ({1950 + n % 60})" for n in range(items)],
                "genres": [sorted({GENRES[n % 4], GENRES[(n // 4) % 4]}) for n in range(items)],
                "description": [f"What happens in film {n}." for n in range(items)],
            }
        ),
        "interaction_table": pa.table(
            {
                "user_id": [r[0] for r in rows],
                "item_id": [r[1] for r in rows],
                "rating": pa.array([r[2] for r in rows], pa.float32()),
                "timestamp": pa.array([r[3] for r in rows], pa.int64()),
                "split": [r[4] for r in rows],
            }
        ),
    }
    manifest = {
        "format_version": FORMAT_VERSION,
        "name": "toy",
        "synthetic": True,
        "hash": content_hash(*tables.values()),
    }
    return Dataset(**tables, manifest=manifest)


class Listed:
    """Recommends the first ids of a list that are not excluded; keeps the batches asked."""

    name, version, stateful = "listed", "1", False

    def __init__(self, item_ids):
        self.item_ids, self.batches = tuple(item_ids), []

    def recommend(self, requests):
        self.batches.append(list(requests))
        return [
            Slate(tuple([i for i in self.item_ids if i not in r.exclude][: r.k]))
            for r in requests
        ]
