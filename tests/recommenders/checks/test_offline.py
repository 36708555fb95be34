"""Held-out hits: counted by hand on the tiny log; the measured order on MovieLens-1M."""

import numpy as np
import pytest

from alignuser_jax.recommenders import (
    ALS,
    Degraded,
    Popularity,
    Random,
    ShuffledAcrossUsers,
    check_contract,
    draw_users,
    held_out_hits,
    held_out_table,
)
from alignuser_jax.records import Slate


class Oracle:
    """Shows the given slates and keeps the requests."""

    def __init__(self, slates):
        self.slates, self.received = slates, []

    def recommend(self, requests):
        self.received += requests
        return [Slate(self.slates[r.user_id]) for r in requests]


def test_hits_and_likes_are_shares_of_the_slots(tiny):
    # held out: u0 liked i08 and disliked i10; u1 liked i10, disliked i00
    oracle = Oracle({"u0": ("i10", "i01", "i08", "i03"), "u1": ("i10", "i01", "i03", "i05")})
    hits = held_out_hits(oracle, tiny, ["u1", "u0"], k=4, batch=1)
    assert hits.user_ids == ("u1", "u0")
    np.testing.assert_allclose(hits.hits, [1 / 4, 2 / 4])
    np.testing.assert_allclose(hits.liked, [1 / 4, 1 / 4])
    assert hits.like_given_hit == pytest.approx(2 / 3)
    request = oracle.received[1]
    train = {i.item_id for i in tiny.history(tiny.log.of_split("train"), "u0")}
    assert request.user_id == "u0" and request.exclude == train and request.k == 4
    assert {i.item_id for i in request.history} == train
    table = held_out_table({"oracle": hits})
    assert "hit@4" in table and "0.3750" in table and "0.2500" in table


def test_a_user_who_is_not_there_is_named(tiny):
    with pytest.raises(ValueError, match="1 of 2 users are not in the dataset, e.g. 'u9'"):
        held_out_hits(Oracle({}), tiny, ["u0", "u9"])


def test_users_are_drawn_by_seed(tiny):
    assert draw_users(tiny, 100) == tiny.user_ids
    some = draw_users(tiny, 3)
    assert len(set(some)) == 3 and some == draw_users(tiny, 3) and list(some) == sorted(some)


@pytest.mark.slow
def test_the_measured_order_on_movielens(ml1m):
    from alignuser_jax.datasets.formats import movielens

    dataset = movielens.read(ml1m)
    train, users = dataset.log.of_split("train"), draw_users(dataset, 1000)
    als = ALS().fit(dataset, train)
    arms = {
        "als": als,
        "popularity": Popularity().fit(dataset, train),
        "half": Degraded(als, 0.5, dataset.item_ids),
        "shuffled": ShuffledAcrossUsers.of(als, dataset, train),
        "random": Random(dataset.item_ids),
    }
    results = {name: held_out_hits(arm, dataset, users) for name, arm in arms.items()}
    print(held_out_table(results))
    hits = {name: result.hits.mean() for name, result in results.items()}
    # measured before any code: .111, .091, .009
    assert hits["als"] == pytest.approx(0.111, abs=0.012)
    assert hits["popularity"] == pytest.approx(0.091, abs=0.012)
    assert hits["random"] == pytest.approx(0.009, abs=0.004)
    assert hits["als"] > hits["half"] > hits["random"]
    assert hits["als"] > hits["shuffled"] > hits["random"]
    histories = {u: dataset.history(train, u) for u in users[:64]}
    report = check_contract(als, dataset.item_ids, histories)
    print(report)
    assert report.passed and report.batched_ms["p50"] < 5
