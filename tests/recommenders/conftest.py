"""A log small enough to read: 6 users, 12 items, i00 the most popular."""

from types import SimpleNamespace

import numpy as np
import pytest

from alignuser_jax.records import Interaction
from tests.recommenders.http.hostile_recommender import ITEMS, HostileRecommender

TRAIN, VALIDATION, TEST = 0, 1, 2


class TinyLog:
    def __init__(self, user, item, rating, split):
        order = np.argsort(user, kind="stable")
        self.user = np.asarray(user, np.int32)[order]
        self.item = np.asarray(item, np.int32)[order]
        self.rating = np.asarray(rating, np.float32)[order]
        self.split = np.asarray(split, np.int8)[order]
        self.timestamp = np.arange(len(order), dtype=np.int64)
        self.n_users, self.n_items = 6, 12

    def __len__(self):
        return len(self.user)

    def of_split(self, *splits):
        wanted = [("train", "validation", "test").index(s) for s in splits]
        keep = np.isin(self.split, wanted)
        return TinyLog(self.user[keep], self.item[keep], self.rating[keep], self.split[keep])


class TinyDataset(SimpleNamespace):
    def history(self, log, user_id, last=None):
        mine = log.user == self.user_ids.index(user_id)
        rows = zip(log.item[mine], log.rating[mine], log.timestamp[mine], strict=True)
        history = tuple(Interaction(self.item_ids[i], float(r), int(t)) for i, r, t in rows)
        return history[-last:] if last else history


@pytest.fixture
def tiny() -> TinyDataset:
    """Users u0-u2 watch the even items, u3-u5 the odd ones; everybody has seen i00."""
    rows = []
    for user in range(6):
        mine = list(range(0 if user < 3 else 1, 12, 2))
        mine = mine[user % 3 :] + mine[: user % 3]
        if 0 not in mine:
            rows.append((user, 0, 3, TRAIN))
        rows += [(user, item, 5 if item % 4 else 3, TRAIN) for item in mine[:4]]
        rows.append((user, mine[4], 5, VALIDATION))
        rows.append((user, mine[5], 2, TEST))
    log = TinyLog(*zip(*rows, strict=True))
    return TinyDataset(
        user_ids=tuple(f"u{n}" for n in range(6)),
        item_ids=tuple(f"i{n:02d}" for n in range(12)),
        log=log,
        synthetic=True,
    )


@pytest.fixture
def hostile():
    servers = []

    def make(reply=None, kind=HostileRecommender, **more):
        servers.append(kind(ITEMS, reply, **more))
        return servers[-1]

    yield make
    for server in servers:
        server.stop()
