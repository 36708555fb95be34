"""Splits worked out by hand, profile and targets, and a leak check that finds planted leaks."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignuser_jax.datasets import (
    Dataset,
    Log,
    check_leaks,
    chronological_split,
    global_time_split,
    item_statistics,
    mean_ratings,
    profile_and_targets,
)
from alignuser_jax.datasets.formats import movielens, synthetic
from alignuser_jax.datasets.formats.synthetic import SyntheticConfig
from tests.datasets.formats.movielens_files import write_1m


def make_log(users, times, items=None, ratings=None):
    n = len(users)
    items = range(n) if items is None else items
    return Log(
        np.array(users, np.int32),
        np.array(items, np.int32),
        np.full(n, 3, np.float32) if ratings is None else np.array(ratings, np.float32),
        np.array(times, np.int64),
        np.zeros(n, np.int8),
        max(users, default=-1) + 1,
        max(items, default=-1) + 1,
    )


@pytest.mark.parametrize(
    "count, train, validation, test",
    [  # floor(0.8 n), floor(0.9 n) - floor(0.8 n), the rest
        (1, 0, 0, 1),
        (2, 1, 0, 1),
        (3, 2, 0, 1),
        (5, 4, 0, 1),
        (9, 7, 1, 1),
        (10, 8, 1, 1),
        (11, 8, 1, 2),
        (20, 16, 2, 2),
        (30, 24, 3, 3),
        (53, 42, 5, 6),
    ],
)
def test_chronological_counts(count, train, validation, test):
    log = chronological_split(make_log([0] * count, range(count)))
    assert log.split.tolist() == [0] * train + [1] * validation + [2] * test


def test_chronological_is_per_user():
    log = chronological_split(make_log([0] * 10 + [1] * 2 + [2], [*range(10), 5, 6, 0]))
    assert log.split.tolist() == [0] * 8 + [1, 2] + [0, 2] + [2]


def test_other_shares():
    log = make_log([0] * 4, range(4))
    assert chronological_split(log, (0.5, 0.25, 0.25)).split.tolist() == [0, 0, 1, 2]
    assert chronological_split(log, (1.0, 0.0, 0.0)).split.tolist() == [0] * 4
    for wrong in ((0.8, 0.1), (0.8, 0.1, 0.2), (1.1, -0.1, 0.0)):
        with pytest.raises(ValueError, match="three that add up to 1"):
            chronological_split(log, wrong)


def test_ties_are_split_in_file_order(tmp_path):
    """Two users interleaved, every time the same: the file's order is the order."""
    ratings = [f"{user}::{item}::3::1000" for item in range(10, 0, -1) for user in (7, 3)]
    movies = [f"{n}::M{n}::Drama" for n in range(1, 11)]
    dataset = movielens.read(write_1m(tmp_path / "ml", ratings, movies, None))
    assert dataset.user_ids == ("7", "3")
    for user in ("7", "3"):
        parts = [
            [i.item_id for i in dataset.history(dataset.log.of_split(part), user)]
            for part in ("train", "validation", "test")
        ]
        assert parts == [[str(n) for n in range(10, 2, -1)], ["2"], ["1"]]


def test_global_split_cuts_at_two_moments():
    log = make_log([0] * 5 + [1] * 5, [0, 2, 4, 6, 8, 1, 3, 5, 7, 9])
    split = global_time_split(log).split.tolist()
    assert split == [0, 0, 0, 0, 2 - 1, 0, 0, 0, 0, 2]  # 8 is validation, 9 is test


def test_global_split_never_parts_equal_times():
    log = make_log([0] * 10, [0, 1, 2, 3, 4, 5, 6, 7, 7, 9])
    assert global_time_split(log).split.tolist() == [0] * 7 + [1, 1] + [2]
    assert global_time_split(make_log([], [])).split.size == 0


def test_global_split_of_a_dataset(tmp_path):
    ratings = [f"{n % 2}::{n}::3::{1000 - n}" for n in range(10)]
    movies = [f"{n}::M{n}::Drama" for n in range(10)]
    folder = write_1m(tmp_path / "ml", ratings, movies, None)
    dataset = movielens.read(folder, split="global")
    assert dataset.manifest["split"]["kind"] == "global"
    assert dataset.manifest["split"]["counts"] == {"train": 8, "validation": 1, "test": 1}
    log = dataset.log
    assert log.timestamp[log.split == 1].tolist() == [999]
    assert log.timestamp[log.split == 2].tolist() == [1000]
    assert check_leaks(dataset) == []


def test_profile_and_targets_by_hand():
    counts = {0: 10, 1: 5, 2: 2, 3: 1}  # train 8, 4, 1, 0
    users = [user for user, count in counts.items() for _ in range(count)]
    log = chronological_split(make_log(users, range(len(users))))
    profile, targets = profile_and_targets(log)
    assert np.bincount(profile.user, minlength=4).tolist() == [6, 3, 0, 0]
    assert np.bincount(targets.user, minlength=4).tolist() == [2, 1, 1, 0]
    assert profile.item.tolist() == [0, 1, 2, 3, 4, 5, 10, 11, 12]
    assert targets.item.tolist() == [6, 7, 13, 15]
    assert not profile.split.any() and not targets.split.any()
    for share in (0, 1, 1.5):
        with pytest.raises(ValueError, match="between 0 and 1"):
            profile_and_targets(log, share)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9)), min_size=1, max_size=60))
def test_splits_of_any_log(rows):
    rows = sorted(rows)
    log = chronological_split(make_log([u for u, _ in rows], [t for _, t in rows]))
    for user in set(log.user.tolist()):
        part = log.where(log.user == user)
        assert (np.diff(part.split) >= 0).all() and part.split[-1] == 2
    profile, targets = profile_and_targets(log)
    assert len(profile) + len(targets) == (log.split == 0).sum()
    for user in set(profile.user.tolist()) & set(targets.user.tolist()):
        last = profile.timestamp[profile.user == user].max()
        assert last <= targets.timestamp[targets.user == user].min()
    log = global_time_split(log)
    for part in (0, 1):
        before, after = log.timestamp[log.split <= part], log.timestamp[log.split > part]
        assert not len(before) or not len(after) or before.max() < after.min()


def test_item_statistics():
    log = make_log([0, 0, 1], [1, 2, 3], items=[0, 2, 0], ratings=[5, 1, 2])
    mean, count = item_statistics(log)
    assert mean.dtype == np.float32 and count.dtype == np.int32
    np.testing.assert_array_equal(mean, np.float32([3.5, np.nan, 1]))
    assert count.tolist() == [2, 0, 1]


def test_mean_ratings_of_what_was_rated():
    log = make_log([0, 0, 1], [1, 2, 3], items=[0, 2, 0], ratings=[5, 1, 2])
    assert mean_ratings(log, ["a", "b", "c"]) == {"a": 3.5, "c": 1.0}


def test_where_takes_masks_and_places():
    log = make_log([0, 0, 1], [1, 2, 3])
    assert log.where(np.array([True, False, True])).timestamp.tolist() == [1, 3]
    assert log.where(np.array([2, 0])).timestamp.tolist() == [3, 1]
    assert log.where(np.array([2])).n_users == 2


# --- the leak check ---


@pytest.fixture(scope="module")
def clean():
    return synthetic.generate(SyntheticConfig(users=12, items=40, ratings_per_user=16, seed=1))


def changed(dataset: Dataset, kind="per_user", **columns) -> Dataset:
    table = dataset.interaction_table
    for name, change in columns.items():
        values = np.array(table[name].to_pylist())
        change(values)
        place = table.column_names.index(name)
        table = table.set_column(place, name, pa.array(values, table[name].type))
    manifest = dataset.manifest | {"split": dataset.manifest["split"] | {"kind": kind}}
    return replace(dataset, interaction_table=table, manifest=manifest)


def test_a_clean_dataset_has_no_leak(clean):
    assert check_leaks(clean) == []


def test_a_later_interaction_in_train_is_found(clean):
    def plant(split):
        split[np.flatnonzero(split == "test")[0]] = "train"

    (problem,) = check_leaks(changed(clean, split=plant))
    user = clean.user_ids[0]
    assert "come after a later one" in problem and repr(user) in problem and "train" in problem


def test_an_earlier_interaction_in_test_is_found(clean):
    def plant(split):
        split[0] = "test"

    (problem,) = check_leaks(changed(clean, split=plant))
    assert problem.startswith("1 interactions of an earlier split")


def test_the_same_item_twice_is_found(clean):
    def plant(items):
        items[1] = items[0]

    (problem,) = check_leaks(changed(clean, item_id=plant))
    item = clean.item_ids[clean.log.item[0]]
    assert "1 user-item pairs occur more than once" in problem and repr(item) in problem


def test_an_unsorted_log_is_found(clean):
    def plant(times):
        times[0], times[1] = times[1] + 10, times[0]

    assert check_leaks(changed(clean, timestamp=plant)) == [
        "the log is not sorted by user and time"
    ]


def test_a_per_user_split_is_no_global_split(clean):
    problems = check_leaks(changed(clean, kind="global"))
    assert "train reaches past the start of test" in problems


def test_an_equal_moment_on_both_sides_of_a_global_split_is_found():
    config = SyntheticConfig(users=12, items=40, ratings_per_user=16, seed=1)
    dataset = synthetic.generate(config, split="global")
    log = dataset.log
    last = int(np.flatnonzero(log.split == 0)[log.timestamp[log.split == 0].argmax()])
    start = log.timestamp[log.split == 1].min()

    def plant(times):
        times[last] = start

    assert check_leaks(changed(dataset, "global", timestamp=plant)) == [
        "train reaches past the start of validation"
    ]


def test_an_empty_log_is_a_problem(clean):
    empty = replace(clean, interaction_table=clean.interaction_table.slice(0, 0))
    assert check_leaks(empty) == ["the log is empty"]
