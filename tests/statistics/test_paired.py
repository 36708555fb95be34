import numpy as np
import pytest
from scipy import stats

from alignuser_jax.statistics.multiple import holm, verdict
from alignuser_jax.statistics.paired import (
    Difference,
    kendall_interval,
    paired_difference,
    ratio_interval,
)


def test_paired_difference_finds_a_shift_and_agrees_with_the_t_interval():
    rng = np.random.default_rng(0)
    control = rng.normal(3, 1, 400)
    treatment = control + rng.normal(0.2, 0.5, 400)
    result = paired_difference(treatment, control)
    t = stats.ttest_rel(treatment, control).confidence_interval()
    assert result.low == pytest.approx(t.low, abs=0.01)
    assert result.high == pytest.approx(t.high, abs=0.01)
    assert result.p < 0.01 and result.low > 0


def test_p_value_and_interval_never_disagree():
    rng = np.random.default_rng(1)
    for _ in range(30):
        d = paired_difference(rng.normal(0.15, 1, 80), np.zeros(80), resamples=500)
        assert (d.p < 0.05) == (d.low > 0 or d.high < 0) or abs(d.p - 0.05) < 0.005


def test_identical_arms_cannot_be_told_apart():
    same = np.arange(10.0)
    d = paired_difference(same, same)
    assert (d.mean, d.p) == (0, 1.0)
    assert verdict(d, d.p) == "cannot tell"


@pytest.mark.parametrize("differing", [1, 2, 3, 4, 8])
def test_few_differing_users_give_a_finite_interval_that_agrees_with_p(differing):
    """Most resamples miss one user of sixty: they have no spread to divide by."""
    treatment = np.zeros(60)
    treatment[:differing] = 0.05
    result = paired_difference(treatment, np.zeros(60))
    assert result.mean == pytest.approx(0.05 * differing / 60)
    assert result.high - result.low < 0.05
    assert (result.p < 0.05) == (result.low > 0)
    if differing < 4:  # a sign test could not reject either
        assert result.low < 0 < result.high and result.p > 0.05


def test_users_without_a_value_are_dropped_in_pairs():
    d = paired_difference(np.array([1, np.nan, 3, 5.0]), np.array([0, 1, np.nan, 1.0]))
    assert d.n == 2 and d.mean == 2.5


def test_unequal_arms_are_refused_with_their_shapes():
    with pytest.raises(ValueError, match=r"\(3,\) and \(4,\)"):
        paired_difference(np.zeros(3), np.zeros(4))


def test_holm_by_hand():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])


def test_verdict_needs_the_adjusted_p():
    d = Difference(0.1, 0.01, 0.19, 0.03, 50)
    assert verdict(d, 0.03) == "better"
    assert verdict(d, 0.09) == "cannot tell"
    assert verdict(Difference(-0.1, -0.19, -0.01, 0.03, 50), 0.03) == "worse"


@pytest.mark.slow
def test_coverage_of_the_interval_is_nominal_on_skewed_data():
    rng = np.random.default_rng(2)
    hits = 0
    for i in range(600):
        d = paired_difference(rng.exponential(1, 60), np.zeros(60), resamples=400, seed=i)
        hits += d.low <= 1 <= d.high
    assert 0.92 <= hits / 600 <= 0.975


def test_ratio_interval_of_an_rmse_is_paired():
    rng = np.random.default_rng(3)
    counts = rng.integers(1, 20, 300).astype(float)
    worse = counts * rng.uniform(0.8, 1.2, 300)
    better = worse * 0.95
    single = ratio_interval(better, counts, transform=np.sqrt)
    gain = ratio_interval(better, counts, minus=(worse, counts), transform=np.sqrt)
    assert single.low < single.value < single.high
    assert gain.high < 0 and gain.high - gain.low < (single.high - single.low) / 4


def test_kendall_of_a_clear_order_is_one_and_of_noise_is_wide():
    rng = np.random.default_rng(4)
    order = np.arange(5)[:, None]
    clear = kendall_interval(
        order + rng.normal(0, 1, (5, 500)), order + rng.normal(0, 1, (5, 500)), resamples=200
    )
    assert clear.value == pytest.approx(1) and clear.low > 0.7
    noise = kendall_interval(
        rng.normal(0, 1, (5, 500)), rng.normal(0, 1, (5, 500)), resamples=200
    )
    assert noise.low < 0 < noise.high
