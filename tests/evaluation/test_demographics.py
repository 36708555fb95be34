"""The scores of Table 10 against scikit-learn's, and baselines whose truth is known."""

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import accuracy_score, precision_recall_fscore_support

from alignuser_jax.evaluation.demographics import (
    LABEL_SCORES,
    MAJORITY,
    REGRESSION,
    cross_validated,
    features,
    score,
    score_labels,
    table,
)
from alignuser_jax.records import Item

LABELS = np.array(["a", "b", "c", "d"])


def drawn(n=300, seed=0):
    rng = np.random.default_rng(seed)
    truth = LABELS[rng.integers(0, 4, n) * (rng.random(n) < 0.6)]
    guesses = np.where(rng.random(n) < 0.5, truth, LABELS[rng.integers(0, 3, n)])
    return truth.tolist(), guesses.tolist()


@pytest.mark.parametrize("missing", [0, 40])
def test_scores_are_those_of_scikit_learn(missing):
    truth, guesses = drawn()
    guesses[:missing] = [""] * missing
    result = score_labels("age", "x", truth, guesses, resamples=50)
    labels = sorted(set(truth) | set(guesses) - {""})
    expected = [accuracy_score(truth, guesses)]
    for average in ("macro", "weighted"):
        expected += precision_recall_fscore_support(
            truth, guesses, average=average, labels=labels, zero_division=0
        )[:3]
    got = [result.scores[metric].value for metric in LABEL_SCORES]
    np.testing.assert_allclose(got, expected, atol=1e-12)
    assert (result.users, result.unpredicted) == (300, missing)


def test_intervals_cover_resampled_users():
    truth, guesses = drawn(n=2000)
    result = score_labels("age", "x", truth, guesses).scores
    right = np.mean(np.array(truth) == np.array(guesses))
    error = np.sqrt(right * (1 - right) / 2000)
    accuracy = result["accuracy"]
    assert accuracy.high - accuracy.low == pytest.approx(2 * 1.96 * error, rel=0.08)
    assert all(s.low <= s.value <= s.high for s in result.values())
    assert result["accuracy"] == result["recall, weighted"]
    assert score_labels("age", "x", truth, guesses) == score_labels("age", "x", truth, guesses)


def test_a_perfect_and_an_empty_prediction():
    truth, _ = drawn()
    assert all(
        s.value == s.low == 1 for s in score_labels("a", "x", truth, truth).scores.values()
    )
    nobody = score_labels("a", "x", truth, [""] * len(truth))
    assert all(s.value == 0 for s in nobody.scores.values()) and nobody.unpredicted == 300
    with pytest.raises(ValueError, match="as many"):
        score_labels("a", "x", truth, truth[1:])
    with pytest.raises(ValueError, match="and some"):
        score_labels("a", "x", [], [])


def test_a_rare_label_that_a_draw_misses_is_no_failure():
    truth = [*["a"] * 60, "b"]  # a third of the draws have no b
    assert all(
        s.low == s.high == 1 for s in score_labels("a", "x", truth, truth).scores.values()
    )
    macro = score_labels("a", "x", truth, ["a"] * 61).scores["recall, macro"]
    assert (macro.low, macro.value, macro.high) == (0.5, 0.5, 1.0)


def test_a_user_is_never_predicted_by_their_own_label():
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(200, 3))
    truth = np.where(rows[:, 0] > 0, "old", "young")
    result = cross_validated(rows, truth.tolist())
    assert np.mean(np.array(result[REGRESSION]) == truth) > 0.9
    alone = [*["old"] * 99, "young"]
    assert set(cross_validated(rng.normal(size=(100, 3)), alone)[MAJORITY]) == {"old"}
    noise = rng.permutation(truth)
    assert np.mean(np.array(cross_validated(rows, noise.tolist())[REGRESSION]) == noise) < 0.65
    assert cross_validated(rows, ["old"] * 200)[REGRESSION] == ["old"] * 200, "one label only"
    with pytest.raises(ValueError, match="5 folds"):
        cross_validated(rows[:3], ["a", "b", "a"])


def small_log(users=40):
    """Even users rate a drama with 5, odd ones a western with 1; they differ in age."""
    ids = ("i0", "i1")
    genres = (("Drama",), ("Western", "Drama"))
    dataset = SimpleNamespace(
        user_ids=tuple(f"u{n}" for n in range(users)),
        item_ids=ids,
        items={i: Item(i, i, g) for i, g in zip(ids, genres, strict=True)},
        item_table=pa.table({"genres": pa.array(list(genres), pa.list_(pa.string()))}),
        demographics={
            f"u{n}": {"age": "old" if n % 2 else "young", "occupation": ""}
            for n in range(users)
        },
    )
    code = np.arange(users)
    log = SimpleNamespace(
        user=code.astype(np.int32),
        item=(code % 2).astype(np.int32),
        rating=np.where(code % 2, 1, 5).astype(np.float32),
    )
    return dataset, log


def test_features_by_hand():
    rows = features(*small_log())
    # genre shares of Drama and Western, log(1 + ratings), mean rating, shares of 1 to 5 stars
    np.testing.assert_allclose(rows[0], [1, 0, np.log(2), 5, 0, 0, 0, 0, 1])
    np.testing.assert_allclose(rows[1], [0.5, 0.5, np.log(2), 1, 1, 0, 0, 0, 0])


def test_predictors_side_by_side():
    dataset, log = small_log()
    users = dataset.user_ids[:20]
    matched = {u: {"age": "old"} for u in users[:10]}
    scores = score(dataset, log, {"matched": matched}, users)
    assert [(s.field, s.name, s.users) for s in scores] == [
        ("age", MAJORITY, 20),
        ("age", REGRESSION, 20),
        ("age", "matched", 20),
    ], "occupation is not known here"
    assert scores[1].scores["accuracy"].value == 1.0
    assert scores[2].scores["accuracy"].value == 0.25 and scores[2].unpredicted == 10
    assert "| age     | matched" in table(scores)
    dataset.demographics = {"u0": {"age": " "}, "u1": {"age": None}}
    dataset.items = None  # features are not computed where no label is known
    assert score(dataset, log, {}) == []


@pytest.mark.slow
def test_movielens_1m(ml1m):
    """The README's figures: what simple predictors reach, from the profile part."""
    from alignuser_jax.datasets.formats import movielens
    from alignuser_jax.personas.match_dataset import closed_lists, matching_part

    dataset = movielens.read(ml1m)
    assert tuple(map(len, closed_lists(dataset))) == (7, 21)
    scores = score(dataset, matching_part(dataset, "profile"), {})
    accuracy = {(s.field, s.name): s.scores["accuracy"].value for s in scores}
    assert accuracy == pytest.approx(
        {
            ("age", MAJORITY): 0.347,
            ("age", REGRESSION): 0.356,
            ("occupation", MAJORITY): 0.126,
            ("occupation", REGRESSION): 0.162,
        },
        abs=0.006,
    )
