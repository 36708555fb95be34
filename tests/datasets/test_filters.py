"""k-cores by hand and beside networkx, samples that do not depend on order, other shares."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignuser_jax.datasets import Filters, check_leaks, filtered, load_dataset
from alignuser_jax.datasets.dataset import with_extra_tables
from alignuser_jax.datasets.filters import k_core, sample_users
from alignuser_jax.datasets.formats import synthetic
from alignuser_jax.datasets.formats.synthetic import SyntheticConfig
from alignuser_jax.datasets.formats.usermirrorer import IMPRESSION_SCHEMA
from tests.datasets.test_splits import make_log


@pytest.fixture(scope="module")
def dataset():
    return synthetic.generate(SyntheticConfig(users=40, items=60, ratings_per_user=16, seed=1))


def test_a_core_by_hand():
    # users 0 and 1 have items 0 and 1; item 2 hangs on user 2, who then has one left
    pairs = [(0, 0), (0, 1), (1, 0), (1, 1), (2, 1), (2, 2)]
    users, items = zip(*pairs, strict=True)
    log = make_log(users, range(6), items)
    assert k_core(log, 2).tolist() == [True] * 4 + [False] * 2
    assert k_core(log, 1).all() and k_core(log, 0).all()
    assert not k_core(log, 3).any()


PAIRS = st.sets(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=70)


@settings(deadline=None)
@given(PAIRS, st.integers(1, 6))
def test_a_core_is_that_of_the_bipartite_graph(pairs, k):
    networkx = pytest.importorskip("networkx")
    users, items = zip(*sorted(pairs), strict=True)
    keep = k_core(make_log(users, range(len(pairs)), items), k)
    graph = networkx.Graph((("u", user), ("i", item)) for user, item in pairs)
    core = networkx.k_core(graph, k)
    edges = {tuple(n for _, n in sorted(edge, reverse=True)) for edge in core.edges}
    kept = {(u, i) for u, i, ok in zip(users, items, keep, strict=True) if ok}
    assert kept == edges


def test_samples_do_not_depend_on_the_order_and_grow():
    ids = [f"user{n}" for n in range(500)]
    names = [ids[n] for n in sample_users(ids, 100, 101)]
    assert len(set(names)) == 100 and names == sorted(names, key=ids.index)
    back = ids[::-1]
    assert {back[n] for n in sample_users(back, 100, 101)} == set(names)
    assert set(names) < {ids[n] for n in sample_users(ids, 150, 101)}
    other = {ids[n] for n in sample_users(ids, 100, 7)}
    assert 5 < len(other & set(names)) < 40  # 20 by chance
    # no part of the file is preferred: 50 of either half, standard deviation 4.5
    assert 30 < sum(ids.index(name) < 250 for name in names) < 70


def test_core_then_sample(dataset, tmp_path):
    found = filtered(dataset, Filters(k_core=9, users=20, seed=3))
    core, log = filtered(dataset, Filters(k_core=9)), found.log
    assert np.bincount(core.log.user).min() >= 9 and np.bincount(core.log.item).min() >= 9
    assert len(core.item_ids) < 60 and len(core.log) < len(dataset.log)
    assert found.item_ids == core.item_ids  # the sample keeps the catalogue
    assert len(found.user_ids) == 20 and set(found.user_ids) < set(core.user_ids)
    assert found.manifest["filters"] == [
        {
            "k_core": 9,
            "left_users": len(core.user_ids),
            "left_items": len(core.item_ids),
            "left_interactions": len(core.log),
        },
        {
            "sample": {"users": 20, "seed": 3},
            "left_users": 20,
            "left_items": len(core.item_ids),
            "left_interactions": len(log),
        },
    ]
    counts = found.manifest["counts"]
    assert counts["interactions"] == len(log) and counts["users"] == 20
    assert sum(found.manifest["split"]["counts"].values()) == len(log)
    assert len({dataset.hash, core.hash, found.hash}) == 3 and check_leaks(found) == []
    loaded = load_dataset(found.save(tmp_path / "out"))
    assert loaded.hash == found.hash and loaded.manifest["filters"] == found.manifest["filters"]
    # everybody keeps what they did with the items that are left, split anew
    for user in found.user_ids:
        before = dataset.history(dataset.log, user)
        kept = [each for each in before if each.item_id in found.items]
        assert list(found.history(log, user)) == kept
        train = len(found.history(log.of_split("train"), user))
        assert train == int(len(kept) * 0.8 + 1e-9)
        assert found.demographics[user] == dataset.demographics[user]


def test_the_truth_stays_that_of_the_same_users_and_items(dataset):
    found = filtered(dataset, Filters(k_core=9, users=10))
    for name, values in found.truth.items():
        assert values.shape == (10, len(found.item_ids))
        for n, user in enumerate(found.user_ids):
            row = dataset.truth[name][dataset.user_ids.index(user)]
            wanted = [row[dataset.item_ids.index(item)] for item in found.item_ids]
            np.testing.assert_array_equal(values[n], wanted)


def test_shares(dataset):
    found = filtered(dataset, Filters(), (0.5, 0.25, 0.25))
    assert found.manifest["split"]["shares"] == [0.5, 0.25, 0.25]
    assert "filters" not in found.manifest
    counts = np.bincount(found.log.split) / len(found.log)
    np.testing.assert_allclose(counts, [0.5, 0.25, 0.25], atol=0.04)
    assert found.item_ids == dataset.item_ids and check_leaks(found) == []
    whole = synthetic.generate(
        SyntheticConfig(users=40, items=60, ratings_per_user=16, seed=1), split="global"
    )
    found = filtered(whole, Filters(users=30), (0.6, 0.2, 0.2))
    assert found.manifest["split"]["kind"] == "global" and check_leaks(found) == []
    assert filtered(dataset, Filters()) is dataset


def test_tables_beside_the_log_follow_its_users(dataset, tmp_path):
    rows = [
        {"user_id": user, "timestamp": 1, "item_ids": ["a", "b"], "clicked": "a"}
        for user in dataset.user_ids
    ]
    shown = with_extra_tables(
        dataset, {"impressions": pa.Table.from_pylist(rows, IMPRESSION_SCHEMA)}
    )
    found = filtered(shown, Filters(users=15))
    kept = found.extra_tables["impressions"]["user_id"].to_pylist()
    assert kept == list(found.user_ids) and found.manifest["counts"]["impressions"] == 15
    assert load_dataset(found.save(tmp_path / "out")).hash == found.hash


def test_a_log_of_sessions_is_refused(dataset):
    sessions = replace(dataset, extra_tables={"sessions": dataset.user_table})
    with pytest.raises(ValueError, match="synthetic is a log of sessions"):
        filtered(sessions, Filters(users=5))


def test_what_cannot_be(dataset):
    with pytest.raises(ValueError, match="no part of synthetic has 40 .*smaller --k_core"):
        filtered(dataset, Filters(k_core=40))
    with pytest.raises(ValueError, match="41 users are asked for, but synthetic has 40$"):
        filtered(dataset, Filters(users=41))
    left = len(filtered(dataset, Filters(k_core=9)).user_ids)
    with pytest.raises(ValueError, match=f"has {left} in its 9-core"):
        filtered(dataset, Filters(k_core=9, users=left + 1))
    with pytest.raises(ValueError, match="three that add up to 1"):
        filtered(dataset, Filters(), (0.5, 0.2, 0.2))
    for wrong in ({"k_core": -1}, {"users": -5}):
        with pytest.raises(ValueError, match="expected 0"):
            Filters(**wrong)
    dataset.manifest["split"]["kind"] = "published"
    try:
        with pytest.raises(
            ValueError, match="split 'published' of its publisher: it takes no shares"
        ):
            filtered(dataset, Filters(), (0.6, 0.2, 0.2))
        split = filtered(dataset, Filters(users=30)).manifest["split"]
        assert split["kind"] == "published"
    finally:
        dataset.manifest["split"]["kind"] = "per_user"


def test_movielens_1m(ml1m):
    from alignuser_jax.datasets.formats import movielens

    dataset = movielens.read(ml1m)
    core = filtered(dataset, Filters(k_core=20, users=1000))
    assert core.manifest["filters"][0] == {
        "k_core": 20,
        "left_users": 6_022,
        "left_items": 3_043,
        "left_interactions": 995_154,
    }
    assert len(core.user_ids) == 1000 and check_leaks(core) == []
