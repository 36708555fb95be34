"""All of MovieLens-1M: the counts that its README states, and the split that we state."""

import time

import numpy as np
import pytest

from alignuser_jax.datasets import (
    check_leaks,
    item_statistics,
    load_dataset,
    profile_and_targets,
)
from alignuser_jax.datasets.formats import movielens


@pytest.fixture(scope="module")
def dataset(ml1m):
    text = ml1m.parent / "ml-1m-text" / "movies_extrainfos.dat.gz"
    return movielens.read(ml1m, descriptions=text if text.is_file() else None)


def test_counts(dataset):
    log = dataset.log
    assert (len(log), log.n_users, log.n_items) == (1_000_209, 6_040, 3_883)
    assert len(np.unique(log.item)) == dataset.manifest["counts"]["rated_items"] == 3_706
    by_stars = np.bincount(log.rating.astype(int), minlength=6).tolist()
    assert by_stars == [0, 56_174, 107_557, 261_197, 348_971, 226_310]
    assert np.bincount(log.user).min() == 20
    assert dataset.report.read == len(log) and "duplicate rating" not in dataset.report.counts
    assert all(person["age"] for person in dataset.demographics.values())
    mean, count = item_statistics(log)
    best_known = int(count.argmax())
    assert dataset.items[dataset.item_ids[best_known]].title == "American Beauty (1999)"
    assert count.max() == 3_428 and np.isnan(mean).sum() == 3_883 - 3_706


def test_split(dataset):
    per_split = np.bincount(dataset.log.split).tolist()
    assert per_split[2] == 102_759 and sum(per_split) == 1_000_209
    assert list(dataset.manifest["split"]["counts"].values()) == per_split
    assert check_leaks(dataset) == []
    profile, targets = profile_and_targets(dataset.log)
    assert len(profile) + len(targets) == per_split[0]
    assert np.bincount(targets.user).min() >= 4


def test_descriptions(dataset):
    if "movies_extrainfos.dat.gz" not in dataset.manifest["source"]["files"]:
        pytest.skip("no descriptions in ../shared/data/ml-1m-text")
    described = [item for item in dataset.items.values() if item.description]
    assert len(described) == 3_845
    has_text = np.array([bool(item.description) for item in dataset.items.values()])
    assert has_text[dataset.log.item].mean() == pytest.approx(0.9994, abs=5e-5)
    assert "Woody" in dataset.items["1"].description


def test_accented_titles(dataset):
    titles = {item.title for item in dataset.items.values()}
    assert "Misérables, Les (1995)" in titles and not any("�" in t or "Ã" in t for t in titles)


def test_folder(dataset, tmp_path):
    directory = dataset.save(tmp_path / "ml-1m")
    started = time.process_time()
    loaded = load_dataset(directory)
    np.testing.assert_array_equal(loaded.log.user, dataset.log.user)
    np.testing.assert_array_equal(loaded.log.split, dataset.log.split)
    assert time.process_time() - started < 8  # about 1 second on a quiet core
    assert sum(path.stat().st_size for path in directory.iterdir()) < 15e6
