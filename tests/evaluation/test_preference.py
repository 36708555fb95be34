import numpy as np
import pytest

from alignuser_jax.datasets.formats import synthetic
from alignuser_jax.evaluation.preference import (
    PreferenceCase,
    preference_cases,
    score,
)


@pytest.fixture(scope="module")
def dataset():
    return synthetic.generate(
        synthetic.SyntheticConfig(users=40, items=80, ratings_per_user=30)
    )


@pytest.mark.parametrize("negatives", ["uniform", "popularity"])
def test_lists_are_balanced_full_pages_of_held_out_and_never_observed(dataset, negatives):
    log = dataset.log
    cases = preference_cases(log, range(40), negatives=negatives)
    assert cases
    held = log.of_split("validation", "test")
    for case in cases:
        assert len(case.items) % 4 == 0 and len(case.items) <= 20
        assert case.interacted.sum() * 2 == len(case.items)
        assert len(set(case.items)) == len(case.items)
        assert set(case.items[case.interacted]) <= set(held.item[held.user == case.user])
        assert not set(case.items[~case.interacted]) & set(log.item[log.user == case.user])
    again = preference_cases(log, range(40), negatives=negatives)
    assert all((a.items == b.items).all() for a, b in zip(cases, again, strict=True))


def test_matched_negatives_take_popularity_away(dataset):
    counts = np.bincount(dataset.log.of_split("train").item, minlength=80)
    best = {}
    for negatives in ("uniform", "popularity"):
        cases = preference_cases(dataset.log, range(40), negatives=negatives)
        scores = [counts[c.items].astype(float) for c in cases]
        best[negatives] = score("popularity", cases, scores, probabilities=False)
    assert best["popularity"].best_accuracy.value < best["uniform"].best_accuracy.value - 0.05
    assert np.isnan(best["uniform"].f1)


def test_scores_by_hand():
    cases = [
        PreferenceCase(0, np.arange(4), np.array([True, True, False, False])),
        PreferenceCase(1, np.arange(4), np.array([True, False, True, False])),
    ]
    scores = [np.array([0.9, 0.4, 0.6, 0.1]), np.array([0.8, 0.2, 0.7, 0.3])]
    result = score("x", cases, scores)
    assert result.accuracy == pytest.approx((2 / 4 + 4 / 4) / 2)
    assert result.precision == pytest.approx((1 / 2 + 1) / 2)
    assert result.recall == pytest.approx((1 / 2 + 1) / 2)
    assert result.pooled_f1 == pytest.approx(2 * 3 / (2 * 3 + 1 + 1))
    assert result.best_accuracy.value == pytest.approx(7 / 8)


def test_a_tie_cannot_be_split_by_the_threshold():
    cases = [PreferenceCase(0, np.arange(4), np.array([True, True, False, False]))]
    result = score("constant", cases, [np.full(4, 0.5)])
    assert result.best_accuracy.value == pytest.approx(0.5)


@pytest.mark.parametrize("name", ["items", "m", "page"])
def test_lists_refuse_nonsense(dataset, name):
    with pytest.raises(ValueError, match=f"{name} is 0, expected at least 1"):
        preference_cases(dataset.log, range(4), **{name: 0})
    with pytest.raises(ValueError, match="no user has enough held-out interactions"):
        score("x", [], [])
