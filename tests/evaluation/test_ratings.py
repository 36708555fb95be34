import numpy as np
import pytest

from alignuser_jax.datasets import Log
from alignuser_jax.datasets.formats import movielens
from alignuser_jax.evaluation import rating_baselines, rating_scores
from alignuser_jax.evaluation.rating_scores import acceptance, score_over_seeds, seeds_table
from alignuser_jax.evaluation.ratings import held_out_ratings
from alignuser_jax.randomness import stable_key


def make_log(user, item, rating, split=None):
    n = len(user)
    return Log(
        np.asarray(user, np.int32),
        np.asarray(item, np.int32),
        np.asarray(rating, np.float32),
        np.arange(n, dtype=np.int64),
        np.zeros(n, np.int8) if split is None else np.asarray(split, np.int8),
        int(max(user)) + 1,
        int(max(item)) + 1,
    )


def planted(n_users=60, n_items=40, seed=0):
    """Ratings that are user bias + item bias + a rank-1 taste, with little noise."""
    rng = np.random.default_rng(seed)
    user, item = (a.ravel() for a in np.mgrid[:n_users, :n_items])
    keep = rng.random(len(user)) < 0.6
    user, item = user[keep], item[keep]
    bias_u, bias_i = rng.normal(0, 0.5, n_users), rng.normal(0, 0.5, n_items)
    p, q = rng.normal(0, 0.7, n_users), rng.normal(0, 0.7, n_items)
    rating = 3 + bias_u[user] + bias_i[item] + p[user] * q[item]
    return user, item, rating + rng.normal(0, 0.05, len(user))


def test_held_out_ratings_are_the_first_of_each_user_in_time_order():
    log = make_log(
        [0] * 5 + [1] * 3, [0, 1, 2, 3, 4, 0, 1, 2], [3] * 8, [0, 2, 2, 2, 2, 0, 1, 2]
    )
    truth = held_out_ratings(log, np.array([0, 1]), cap=2)
    assert truth.item.tolist() == [1, 2, 2]
    assert held_out_ratings(log, np.array([1]), cap=2).user.tolist() == [1]


def test_baselines_find_what_was_planted_and_improve_in_order():
    user, item, rating = planted()
    test = np.arange(len(user)) % 5 == 0
    train = make_log(user[~test], item[~test], rating[~test])
    truth = rating[test]

    def error(name):
        predict = rating_baselines.BASELINES[name](train)
        return np.sqrt(np.mean((predict(user[test], item[test]) - truth) ** 2))

    errors = [error(name) for name in ("global mean", "user + item bias", "biased MF (16)")]
    assert errors[0] > errors[1] > errors[2]
    assert error("user mean") < errors[0] and error("item mean") < errors[0]
    assert errors[2] < 0.45


def test_unseen_users_and_items_get_the_global_mean():
    log = make_log([0, 0, 1], [0, 1, 0], [5, 3, 1])
    log = log.where(np.array([0, 1]))  # user 1 and its rating are gone, the codes stay
    assert rating_baselines.user_mean(log)(np.array([1]), np.array([0])) == 4
    assert rating_baselines.item_mean(log)(np.array([0]), np.array([1])) == 3


def one_hot(stars):
    return np.eye(5)[np.asarray(stars) - 1]


def test_scores_by_hand():
    log = make_log([0, 0, 1], [0, 1, 0], [5, 3, 1])
    spread = np.full((3, 5), 0.2)
    certain, even = rating_scores.score(
        log, {}, {"certain": one_hot([5, 3, 2]), "even": spread}, resamples=50
    )
    assert certain.rmse.value == pytest.approx(np.sqrt(1 / 3))
    assert certain.mae == pytest.approx(1 / 3)
    assert certain.rmse_argmax == certain.rmse_sample == pytest.approx(np.sqrt(1 / 3))
    assert certain.total_variation == pytest.approx(1 / 3)
    assert even.rmse.value == pytest.approx(np.sqrt((4 + 0 + 4) / 3))
    assert even.nll == pytest.approx(np.log(5))


def test_acceptance_needs_intervals_that_exclude_zero_and_suspects_leaks():
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(200), 10)
    truth = rng.integers(1, 6, len(users))
    log = make_log(users, np.arange(len(users)) % 50, truth)
    noise = {n: truth + rng.normal(0, s, len(users)) for n, s in
             (("user mean", 1.1), ("item mean", 1.0))}  # fmt: skip
    blurred = one_hot(truth) * 0.5 + 0.1
    good = one_hot(np.clip(truth + rng.integers(-1, 2, len(users)), 1, 5))
    scores = {s.name: s for s in rating_scores.score(
        log, noise, {"agents": good, "perfect": one_hot(truth), "blurred": blurred}
    )}  # fmt: skip
    assert any("suspected leak" in text for text in acceptance(scores["perfect"]))
    same = rating_scores.score(
        log, {"user mean": noise["user mean"]}, {"agents": blurred * 0 + 0.2}
    )
    assert any("not below user mean" in text for text in acceptance(same[-1]))


def test_a_broken_distribution_is_refused():
    log = make_log([0, 0, 1], [0, 1, 0], [5, 3, 1])
    with pytest.raises(ValueError, match="agents: expected one distribution over 5"):
        rating_scores.score(log, {}, {"agents": np.ones((3, 5))})


@pytest.mark.slow
def test_evidence_is_reproduced_on_movielens(ml1m):
    """docs/evidence.md "Ratings", all 102,759 test ratings, fitted on train + validation."""
    log = movielens.read(ml1m).log
    before, test = log.of_split("train", "validation"), log.of_split("test")
    published = {
        "global mean": (1.161, 0.002),
        "user mean": (1.084, 0.002),
        "item mean": (0.992, 0.002),
        "user + item bias": (0.922, 0.004),
        "biased MF (16)": (0.875, 0.006),
    }
    for name, (rmse, tolerance) in published.items():
        predicted = np.clip(
            rating_baselines.BASELINES[name](before)(test.user, test.item), 1, 5
        )
        error = np.sqrt(np.mean((predicted - test.rating) ** 2))
        assert error == pytest.approx(rmse, abs=tolerance), name


def test_the_keys_of_draws_are_stable():
    assert stable_key("bootstrap", "paired", 0, 10) == stable_key("bootstrap", "paired", 0, 10)


def test_seeds_are_averaged_and_held_against_the_first_group():
    rng = np.random.default_rng(0)
    user, star = np.repeat(np.arange(30), 8), rng.integers(1, 6, 240)
    truth = make_log(user, np.tile(np.arange(8), 30), star)

    def told(share):
        """Distributions with `share` of the probability on the true rating."""
        p = np.full((len(star), 5), (1 - share) / 4)
        p[np.arange(len(star)), star - 1] = share
        return p

    groups = {"blind": [told(0.2)], "good": [told(0.5), told(0.6)], "same": [told(0.2)] * 2}
    blind, good, same = score_over_seeds(truth, groups)
    assert (blind.seeds, good.seeds, blind.gain) == (1, 2, None)
    single = [rating_scores.score(truth, {}, {"x": p})[0] for p in groups["good"]]
    squares = [s.rmse.value**2 for s in single]
    assert good.rmse.value == pytest.approx(np.sqrt(np.mean(squares)))
    assert (good.lowest, good.highest) == pytest.approx((squares[1] ** 0.5, squares[0] ** 0.5))
    assert good.nll.value == pytest.approx(-np.log([0.5, 0.6]).mean())
    assert good.gain.high < 0 and good.nll_gain.high < 0
    assert same.gain.value == same.nll_gain.value == 0
    assert seeds_table([blind, good]).count("\n") == 3
