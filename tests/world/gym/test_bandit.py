"""Recommenders that learn by reward: LinUCB against simulated users, beside a random one."""

import numpy as np
from scipy.stats import ttest_rel
from threadpoolctl import threadpool_limits

from alignuser_jax.datasets.formats import synthetic
from alignuser_jax.world import SiteConfig
from alignuser_jax.world.gym import recsys_vector_env
from tests.world.gym.bandits import LinUCB, play


@threadpool_limits.wrap(limits=1)
def test_a_bandit_learns_what_simulated_users_like():
    dataset = synthetic.generate(synthetic.SyntheticConfig(users=80, items=80))
    site = SiteConfig(max_pages=5)
    envs = recsys_vector_env(num_envs=20, dataset=dataset, site=site)
    bandit = LinUCB(envs.envs[0].features)
    rng = np.random.default_rng(0)

    def at_random(history, session, mask):
        return np.argsort(np.where(mask, rng.random(mask.shape), np.inf), 1)[:, :4], None

    def by_bandit(history, session, mask):
        context = bandit.context(history, session)
        slates = bandit.slates(context, mask, 4)
        return slates, np.take_along_axis(context, slates[:, :, None], 1)

    def learn(vectors, liked, alive):
        bandit.learn(vectors[alive].reshape(-1, vectors.shape[2]), liked[alive].ravel())

    users = dataset.user_ids
    play(envs, by_bandit, [(users[n % 80], n) for n in range(240)], learn)
    # then the same fresh visits for both, and nothing is learned any more
    bandit.alpha = 0.0
    fresh = [(user, 1_000 + n) for n in range(2) for user in users]
    learned, random = play(envs, by_bandit, fresh), play(envs, at_random, fresh)
    low, high = ttest_rel(learned, random).confidence_interval(0.99)
    print(
        f"likes per visit: {learned.mean():.2f}, at random {random.mean():.2f}; "
        f"gain {(learned - random).mean():.2f}, 99 % interval {low:.2f} to {high:.2f}"
    )
    assert low > 0.5 and learned.mean() > 1.3 * random.mean()
