"""What is recalled of an item: past ratings by genre, and how well the item is known."""

import pytest

from alignuser_jax.memory import RecallIndex, mean_level
from alignuser_jax.records import Interaction, Item

GENRES = {"a": ("Drama",), "b": ("Drama", "War"), "c": ("Comedy",), "d": (), "e": ("War",)}
ITEMS = {name: Item(name, name.upper(), genres) for name, genres in GENRES.items()}
INDEX = RecallIndex(ITEMS, {"a": 7, "b": 100, "c": 7, "d": 1})
HISTORY = (Interaction("a", 5.0), Interaction("b", 4.0), Interaction("c", 1.0))
MINE = INDEX.of_user(HISTORY)
MEAN = 10 / 3


def test_similar_is_the_mean_of_past_ratings_by_squared_genre_overlap_and_shrunk():
    assert MINE.about("a").similar == pytest.approx((5 + 0.25 * 4 + MEAN) / 2.25)
    assert MINE.about("e").similar == pytest.approx((0.25 * 4 + MEAN) / 1.25)
    assert MINE.about("c").similar == pytest.approx((1 + MEAN) / 2)


def test_without_shared_genres_it_is_the_users_mean():
    assert MINE.about("d").similar == pytest.approx(MEAN)
    assert MINE.about("d").match == 0


def test_match_is_the_mean_overlap_as_a_level():
    assert MINE.about("a").match == 9  # (1 + 1/2 + 0) / 3 is the full match
    assert MINE.about("e").match == 3  # (0 + 1/2 + 0) / 3
    assert INDEX.of_user([Interaction("a", 3.0)]).about("a").match == 9


def test_popularity_is_the_share_of_items_rated_less_often():
    levels = {name: MINE.about(name).popularity for name in ITEMS}
    assert levels == {"b": 8, "a": 4, "c": 4, "d": 2, "e": 0}


def test_without_a_history_only_popularity_is_known():
    assert INDEX.of_user(()).about("b") == (None, None, 8)


def test_a_past_item_that_the_catalogue_lost_is_left_out():
    more = INDEX.of_user((*HISTORY, Interaction("gone", 5.0)))
    assert more.about("a") == MINE.about("a")


def test_an_unknown_item_is_an_error():
    with pytest.raises(KeyError):
        MINE.about("gone")


def test_no_genres_at_all():
    items = {name: Item(name, name) for name in "ab"}
    recall = RecallIndex(items, {}).of_user([Interaction("a", 2.0)]).about("b")
    assert recall == (2.0, 0, 0)


@pytest.mark.parametrize(
    ("mean", "level"), [(1, 0), (2.5, 0), (2.69, 0), (2.7, 1), (3.5, 5), (4.3, 9), (5, 9)]
)
def test_levels_of_mean_ratings(mean, level):
    assert mean_level(mean) == level
