"""A contextual bandit that recommends: LinUCB with one ridge regression shared by all items."""

import numpy as np


class LinUCB:
    """The chance of a like is taken as linear in what is known of user and item; shown is what
    could be best (`alpha` deviations above the estimate)."""

    def __init__(self, features, alpha=0.3, ridge=1.0):
        self.features, self.alpha = features, alpha
        size = 2 * features.shape[1] + 2
        self.gram, self.target = ridge * np.eye(size), np.zeros(size)

    def context(self, history, session):
        """float[users, n_items, d]; `history` and `session` are float[users, features]."""
        item = np.broadcast_to(self.features, (len(history), *self.features.shape))
        affinity = (item * session[:, None]).sum(2, keepdims=True)
        one = np.ones_like(affinity)
        return np.concatenate([item, item * history[:, None], affinity, one], 2)

    def slates(self, context, mask, k):
        inverse = np.linalg.inv(self.gram)
        width = np.sqrt(((context @ inverse) * context).sum(2))
        score = context @ (inverse @ self.target) + self.alpha * width
        return np.argsort(np.where(mask, -score, np.inf), 1, kind="stable")[:, :k]

    def learn(self, vectors, liked):
        self.gram += vectors.T @ vectors
        self.target += vectors.T @ liked


def play(envs, choose, visits, learn=None):
    """Rewards per visit of `visits` (user, seed) pairs, `num_envs` at a time.

    `choose(history, session, mask)` gives the slates of all and what `learn` is to know of
    them; `learn(that, liked, alive)` hears what came of it."""
    total = []
    for start in range(0, len(visits), envs.num_envs):
        part = visits[start : start + envs.num_envs]
        users, seeds = zip(*part, strict=True)
        observed, info = envs.reset(options={"user_id": list(users), "seed": list(seeds)})
        earned, alive = np.zeros(len(part)), np.ones(len(part), bool)
        while alive.any():
            mask = info["action_mask"]
            slates, slate_vectors = choose(observed["history"], observed["session"], mask)
            observed, reward, over, _, info = envs.step(slates)
            earned[alive] += reward[alive]
            if learn:
                learn(slate_vectors, info["rated"] >= 4, alive)
            alive &= ~over
        total += earned.tolist()
    return np.array(total)
