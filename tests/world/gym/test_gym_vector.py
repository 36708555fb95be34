"""Vectors of Gymnasium environments: each as it would be alone, all asked about at once."""

import numpy as np
import pytest

from alignuser_jax.datasets.formats import synthetic
from alignuser_jax.recommenders import Popularity
from alignuser_jax.world.gym import recsys_env, recsys_vector_env, user_env, user_vector_env


@pytest.fixture(scope="module")
def dataset():
    return synthetic.generate(
        synthetic.SyntheticConfig(users=40, items=60, ratings_per_user=20)
    )


class Counted:
    """A recommender that counts its calls."""

    def __init__(self, dataset):
        self.inner = Popularity().fit(dataset, dataset.log.of_split("train"))
        self.batches = []

    def recommend(self, requests):
        self.batches.append(len(requests))
        return self.inner.recommend(requests)


def test_each_of_a_vector_does_what_it_would_do_alone(dataset):
    for many, one in ((recsys_vector_env, recsys_env), (user_vector_env, user_env)):
        envs, alone = many(num_envs=3, dataset=dataset), [one(dataset) for _ in range(3)]
        envs.action_space.seed(1)
        observed, info = envs.reset(seed=7)
        singles = [env.reset(seed=7 + n) for n, env in enumerate(alone)]
        over = np.zeros(3, bool)
        begun_anew = 0
        for _ in range(40):
            for n, single in enumerate(singles):
                seen = (
                    observed[n] if one is user_env else {k: v[n] for k, v in observed.items()}
                )
                np.testing.assert_equal(seen, single[0])
                np.testing.assert_array_equal(info["action_mask"][n], single[-1]["action_mask"])
                assert info["user_id"][n] == single[-1]["user_id"]
            actions = envs.action_space.sample()
            observed, reward, ended, truncated, info = envs.step(actions)
            for n, env in enumerate(alone):
                if over[n]:  # its action is ignored
                    singles[n] = env.reset()
                    assert reward[n] == 0 and not ended[n]
                    begun_anew += 1
                else:
                    singles[n] = env.step(actions[n])
                    assert (reward[n], ended[n]) == singles[n][1:3]
            over = ended
            assert not truncated.any()
        assert begun_anew


def test_one_call_to_the_recommender_for_a_whole_vector(dataset):
    recommender = Counted(dataset)
    envs = user_vector_env(num_envs=8, dataset=dataset, recommender=recommender)
    envs.reset(seed=0)
    envs.step(np.zeros(8, int))
    envs.step(np.array([0, 0, 0, 1, 1, 1, 3, 3]))  # three next pages; back; details
    assert recommender.batches == [8, 8, 3]


def test_where_one_action_is_refused_nobody_acts(dataset):
    envs = recsys_vector_env(num_envs=3, dataset=dataset, strict=True)
    same = recsys_vector_env(num_envs=3, dataset=dataset, strict=True)
    _, info = envs.reset(seed=3)
    same.reset(seed=3)
    good = np.array([np.flatnonzero(mask)[:4] for mask in info["action_mask"]])
    for wrong in ([good[2][0]] * 4, [0, 1, 2, 999]):
        bad = good.copy()
        bad[2] = wrong
        with pytest.raises(ValueError, match="may not be shown|expected 4 codes"):
            envs.step(bad)
    np.testing.assert_equal(envs.step(good), same.step(good))
    users = user_vector_env(num_envs=2, dataset=dataset)
    users.reset(seed=3)
    before = [env._state for env in users.envs]
    with pytest.raises(ValueError, match="expected a number"):
        users.step(np.array([0, 999]))
    assert [env._state for env in users.envs] == before


def test_options_for_all_may_be_any_whole_number_or_none(dataset):
    envs, same = (user_vector_env(num_envs=2, dataset=dataset) for _ in range(2))
    first = envs.reset(seed=np.int64(4), options={"seed": np.int64(9), "user_id": None})
    np.testing.assert_equal(first, same.reset(seed=4, options={"seed": 9}))
