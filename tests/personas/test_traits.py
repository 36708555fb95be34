"""Traits of docs/method.md sections 4.2 and 4.3 against numbers worked out by hand."""

import time
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from alignuser_jax.personas import compute_personas, compute_traits


def make(rows, genres, users=None, demographics=None):
    """rows: (user code, item code, rating); genres: one tuple per item."""
    columns = zip(*rows, strict=True) if rows else ((), (), ())
    user, item, rating = columns
    users = users or (max(user) + 1)
    ids = tuple(f"i{n}" for n in range(len(genres)))
    dataset = SimpleNamespace(
        user_ids=tuple(f"u{n}" for n in range(users)),
        item_ids=ids,
        item_table=pa.table({"genres": pa.array(list(genres), pa.list_(pa.string()))}),
        demographics=demographics or {},
        extra_tables={},
    )
    log = SimpleNamespace(
        user=np.array(user, np.int32),
        item=np.array(item, np.int32),
        rating=np.array(rating, np.float32),
    )
    return dataset, log


def test_formulas_by_hand():
    # item means: i0 = (5+2)/2 = 3.5, i1 = 4, i2 = (1+3)/2 = 2
    rows = [(0, 0, 5), (0, 1, 4), (0, 2, 1), (1, 0, 2), (1, 2, 3)]
    dataset, log = make(rows, [("A", "B"), ("B",), ("C",)])
    traits = compute_traits(dataset, log)
    np.testing.assert_allclose(traits.mean_rating, [10 / 3, 2.5])
    assert traits.engagement.tolist() == [3, 2]
    np.testing.assert_allclose(traits.conformity, [(1.5**2 + 0 + 1) / 3, (1.5**2 + 1) / 2])
    literal = compute_traits(dataset, log, literal=True)
    np.testing.assert_allclose(literal.conformity, [1.5**2 + 1, 1.5**2 + 1])
    assert traits.genres.tolist() == [3, 3]
    np.testing.assert_allclose(
        traits.rating_shares,
        [[1 / 3, 0, 0, 1 / 3, 1 / 3], [0, 0.5, 0.5, 0, 0]],
    )
    # liked: u0 likes i0 (A, B) and i1 (B): B twice, A once; u1 likes nothing
    assert traits.favourite_genres == (("B", "A"), ())


def test_only_the_genres_that_cover_four_fifths_count_for_variety():
    # u0: A 6, B 2, C 1, D 1 of 10: A .6, A+B .8, A+B+C .9 -> 2 covering, 4 touched
    genres = [("A",)] * 6 + [("B",)] * 2 + [("C",), ("D",)]
    dataset, log = make([(0, n, 4) for n in range(10)], genres)
    traits = compute_traits(dataset, log)
    assert traits.covering_genres.tolist() == [2] and traits.genres.tolist() == [4]
    # one genre above .8 alone: none stays within
    dataset, log = make([(0, n, 4) for n in range(10)], [("A",)] * 9 + [("B",)])
    assert compute_traits(dataset, log).covering_genres.tolist() == [0]


@pytest.mark.parametrize(
    ("ratings", "level"),
    [((5, 5), 1), ((4, 5), 1), ((4, 4), 2), ((3, 4), 2), ((3, 3), 3), ((3, 3, 4), 3)],
)
def test_pickiness_bounds_belong_to_the_milder_level(ratings, level):
    dataset, log = make([(0, n, r) for n, r in enumerate(ratings)], [("A",)] * len(ratings))
    persona = compute_personas(dataset, log)["u0"]
    assert persona.pickiness == level
    assert persona.mean_rating == pytest.approx(np.mean(ratings))


def test_engagement_bins_at_the_60th_and_90th_percentile():
    rows = [(u, i, 3) for u in range(11) for i in range(u + 1)]  # 1 to 11 ratings
    dataset, log = make(rows, [("A",)] * 11)
    levels = [p.engagement for p in compute_personas(dataset, log).values()]
    assert levels == [1] * 6 + [2] * 3 + [3] * 2  # percentiles 7 and 10, inclusive above


def test_conformity_runs_from_follower_to_maverick_at_25_and_80():
    # item n is rated by user n (3 + d) and by a crowd that keeps its mean at 3
    deviations = [0.0, 0.25, 0.5, 0.75, 1.0, 2.0]
    rows = [(n, n, 3 + d) for n, d in enumerate(deviations)]
    rows += [(6 + n, n, 3 - d) for n, d in enumerate(deviations)]
    dataset, log = make(rows, [()] * 6)
    np.testing.assert_allclose(
        compute_traits(dataset, log).conformity, np.square(deviations * 2)
    )
    levels = [p.conformity for p in compute_personas(dataset, log).values()]
    # of the 12 squared deviations, percentile 25 is .0625 and percentile 80 is 1
    assert levels[:6] == [1, 2, 2, 2, 3, 3] and levels[6:] == levels[:6]


def test_variety_bins_and_favourites_order():
    rows, genres = [], []
    for user, count in enumerate((1, 2, 3, 4, 5, 6)):  # equal counts of `count` + 1 genres
        for genre in range(count + 1):
            rows.append((user, len(genres), 5))
            genres.append((f"G{genre}",))
    dataset, log = make(rows, genres)
    covering = compute_traits(dataset, log).covering_genres
    assert covering.tolist() == [1, 2, 3, 4, 4, 5]
    levels = [p.variety for p in compute_personas(dataset, log).values()]
    assert levels == [1, 1, 2, 3, 3, 3]  # percentiles 2.65 and 4
    assert compute_personas(dataset, log)["u5"].favourite_genres == ("G0", "G1", "G2")


def test_a_user_without_ratings_keeps_the_demographics_and_knows_nothing_else():
    demographics = {"u1": {"age": "25-34", "occupation": "writer"}}
    dataset, log = make([(0, 0, 4)], [("A",)], users=2, demographics=demographics)
    persona = compute_personas(dataset, log)["u1"]
    assert (persona.age, persona.occupation) == ("25-34", "writer")
    levels = (persona.pickiness, persona.engagement, persona.conformity, persona.variety)
    assert levels == (0, 0, 0, 0)
    assert persona.mean_rating is None
    assert persona.rating_shares == () and persona.favourite_genres == ()


def test_items_without_genres_leave_variety_unknown():
    dataset, log = make([(0, 0, 4), (1, 0, 5)], [()])
    assert all(p.variety == 0 for p in compute_personas(dataset, log).values())


def test_half_stars_round_up_in_the_shares():
    dataset, log = make([(0, n, r) for n, r in enumerate((0.5, 2.5, 4.5, 5))], [()] * 4)
    shares = compute_personas(dataset, log)["u0"].rating_shares
    assert shares == (0.25, 0.0, 0.25, 0.0, 0.5)


def test_an_empty_log_gives_unknown_personas():
    dataset, log = make([], [("A",)], users=2)
    assert [p.engagement for p in compute_personas(dataset, log).values()] == [0, 0]


def test_nothing_outside_the_given_log_is_used():
    rows = [(0, 0, 5), (0, 1, 1), (1, 0, 3), (1, 1, 4)]
    dataset, log = make(rows, [("A",), ("B",)])
    part = SimpleNamespace(user=log.user[:1], item=log.item[:1], rating=log.rating[:1])
    persona = compute_personas(dataset, part)["u0"]
    assert persona.mean_rating == 5.0 and persona.favourite_genres == ("A",)


def test_movielens_takes_seconds_and_has_the_known_shape(ml1m):
    from alignuser_jax.datasets.formats import movielens

    dataset = movielens.read(ml1m)
    start = time.perf_counter()
    personas = compute_personas(dataset, dataset.log.of_split("train"))
    assert time.perf_counter() - start < 10  # about one on a quiet core
    assert len(personas) == len(dataset.user_ids)
    levels = np.array([[p.engagement, p.conformity, p.pickiness] for p in personas.values()])
    shares = [np.bincount(levels[:, n], minlength=4)[1:] / len(levels) for n in range(3)]
    np.testing.assert_allclose(shares[0], [0.6, 0.3, 0.1], atol=0.02)
    np.testing.assert_allclose(shares[1], [0.25, 0.55, 0.2], atol=0.01)
    assert shares[2][1] > shares[2][2] > shares[2][0]
    assert all(
        p.age and p.occupation and p.favourite_genres for p in list(personas.values())[:9]
    )
