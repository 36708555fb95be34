"""The generated dataset: repeatable, labelled, its truth kept aside and true."""

import json

import numpy as np
import pytest

from alignuser_jax.datasets import check_leaks, load_dataset
from alignuser_jax.datasets.formats import synthetic
from alignuser_jax.datasets.formats.synthetic import SyntheticConfig

SMALL = SyntheticConfig(users=60, items=50, ratings_per_user=20, seed=3)


@pytest.fixture(scope="module")
def dataset():
    return synthetic.generate()


def test_the_same_configuration_gives_the_same_dataset():
    first, second = synthetic.generate(SMALL), synthetic.generate(SMALL)
    assert first.hash == second.hash and first.manifest == second.manifest
    for name, values in first.truth.items():
        np.testing.assert_array_equal(values, second.truth[name])
    other = synthetic.generate(SyntheticConfig(users=60, items=50, ratings_per_user=20, seed=4))
    assert other.hash != first.hash


PINNED = [
    (None, "per_user", "0a3ddc91a933c004cc534ad4a837a928", 3.159817),
    (SMALL, "global", "5c3b5184a3a9344bb5e840e3a783a483", 3.19571),
]


@pytest.mark.parametrize("config, split, content, utility", PINNED)
def test_the_random_stream_stays_as_it_is(config, split, content, utility):
    """Results on generated logs can be compared over versions only if the logs are the same."""
    made = synthetic.generate(config, split)
    assert made.hash == content
    assert made.truth["utility"].mean(dtype=float) == pytest.approx(utility, abs=1e-5)


def test_it_is_labelled_and_counted(dataset):
    assert dataset.synthetic and dataset.name == "synthetic"
    manifest = json.loads(json.dumps(dataset.manifest))
    assert manifest["synthetic"] is True and manifest["source"]["config"]["seed"] == 0
    assert manifest["source"]["format"] == "synthetic"
    counts = manifest["counts"]
    assert (counts["users"], counts["items"]) == (240, 160)
    assert (
        counts["interactions"] == len(dataset.log) == sum(manifest["split"]["counts"].values())
    )
    assert dataset.report.counts == {}
    assert check_leaks(dataset) == []


def test_catalogue_and_users_have_all_that_pages_and_personas_show(dataset):
    items = list(dataset.items.values())
    assert len({item.title for item in items}) == len(items)
    assert all(1 <= len(item.genres) <= 2 and item.description for item in items)
    assert all(
        person["age"] and person["occupation"] for person in dataset.demographics.values()
    )


def test_more_items_than_titles():
    dataset = synthetic.generate(SyntheticConfig(users=3, items=600, ratings_per_user=8))
    titles = {item.title for item in dataset.items.values()}
    assert len(titles) == 600 and sum(title.endswith(" 2") for title in titles) == 256


def test_ratings_are_skewed_as_real_ones_are(dataset):
    log = dataset.log
    shares = np.bincount(log.rating.astype(int), minlength=6)[1:] / len(log)
    assert set(np.unique(log.rating)) == {1, 2, 3, 4, 5}
    assert shares[3] == shares.max() and shares[3:].sum() > 0.5 and 0.01 < shares[0] < 0.15
    counts = np.sort(np.bincount(log.item, minlength=log.n_items))[::-1]
    assert counts[:16].sum() > 0.18 * counts.sum()  # the most popular tenth
    per_user = np.bincount(log.user)
    assert per_user.min() >= 12 and per_user.max() > 2 * np.median(per_user)


def test_truth_stays_out_of_the_tables(dataset, tmp_path):
    shape = (240, 160)
    assert {name: values.shape for name, values in dataset.truth.items()} == {
        "utility": shape,
        "watch": shape,
        "like": shape,
    }
    columns = [
        *dataset.user_table.column_names,
        *dataset.item_table.column_names,
        *dataset.interaction_table.column_names,
    ]
    assert not {"utility", "watch", "like"} & set(columns)
    assert "truth" not in dataset.manifest
    directory = dataset.save(tmp_path / "out")
    assert (directory / "truth.npz").is_file()
    loaded = load_dataset(directory)
    for name, values in dataset.truth.items():
        np.testing.assert_array_equal(loaded.truth[name], values)
    (directory / "truth.npz").unlink()
    assert load_dataset(directory).truth == {}


def test_truth_is_true_of_the_ratings(dataset):
    """Aligned with the codes of users and items, calibrated, and chosen by."""
    log, truth = dataset.log, dataset.truth
    utility, like = truth["utility"], truth["like"]
    assert utility.min() >= 1 and utility.max() <= 5
    assert like.min() >= 0 and like.max() <= 1 and truth["watch"].min() > 0
    expected = utility[log.user, log.item]
    assert np.corrcoef(log.rating, expected)[0, 1] > 0.8
    residual = log.rating - expected
    assert abs(residual.mean()) < 4 * residual.std() / np.sqrt(len(log))
    liked = (log.rating >= 4).mean()
    assert liked == pytest.approx(like[log.user, log.item].mean(), abs=0.015)
    rolled = np.roll(utility, 1, axis=0)[log.user, log.item]  # of somebody else
    assert np.corrcoef(log.rating, rolled)[0, 1] < 0.5
    of_rated = np.bincount(log.user, expected) / np.bincount(log.user)
    assert (of_rated > utility.mean(1)).mean() > 0.95  # users rate what they will like


def test_tastes_can_be_learned_from_train(dataset):
    """Least squares on genres, per user, beats the user's mean on held-out ratings."""
    names = sorted({genre for item in dataset.items.values() for genre in item.genres})
    features = np.array(
        [[name in item.genres for name in names] for item in dataset.items.values()], float
    )
    train, test = dataset.log.of_split("train"), dataset.log.of_split("test")
    by_mean, by_genre = [], []
    for user in range(train.n_users):
        known, held_out = train.where(train.user == user), test.where(test.user == user)
        x, mean = features[known.item], known.rating.mean()
        weights = np.linalg.solve(x.T @ x + 2 * np.eye(len(names)), x.T @ (known.rating - mean))
        by_mean += [*(held_out.rating - mean)]
        by_genre += [*(held_out.rating - mean - features[held_out.item] @ weights)]
    assert np.square(by_genre).mean() < 0.75 * np.square(by_mean).mean()


def test_global_split():
    dataset = synthetic.generate(SMALL, split="global")
    assert dataset.manifest["split"]["kind"] == "global" and check_leaks(dataset) == []


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"users": 1}, "2 users or more"),
        ({"items": 7}, "8 items or more"),
        ({"ratings_per_user": 7}, "between 8 ratings"),
        ({"items": 30}, "between 8 ratings per user and the number of items"),
        ({"noise": 0}, "spreads above 0"),
        ({"quality": 0}, "spreads above 0"),
    ],
)
def test_settings_that_cannot_be(wrong, message):
    with pytest.raises(ValueError, match=message):
        SyntheticConfig(**wrong)
