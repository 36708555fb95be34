"""Decide who trains the policy and who becomes an agent: disjoint users by a stable hash."""

from __future__ import annotations

from alignuser_jax.datasets import Dataset
from alignuser_jax.randomness import stable_key


def policy_and_agent_users(
    dataset: Dataset, n_agents: int, seed: int = 0
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Split all users into those who train the policy and those who become agents.

    The agents of a smaller `n_agents` are the first of a larger one's, so that 200 agents are
    among the 1,000 and one policy serves both.

    Args:
        dataset: Its users are split.
        n_agents: How many become agents.
        seed: Names the split; the same seed gives the same split on every machine.

    Returns:
        `(policy users, agent users)`: disjoint, together all users.
    """
    if not 0 <= n_agents <= len(dataset.user_ids):
        raise ValueError(
            f"n_agents is {n_agents}, but the dataset has {len(dataset.user_ids)} users: "
            "expected between 0 and that many"
        )
    ordered = sorted(dataset.user_ids, key=lambda user: stable_key(seed, "agents", user))
    return tuple(sorted(ordered[n_agents:])), tuple(ordered[:n_agents])


def held_out_users(
    users: tuple[str, ...], share: float, seed: int = 0
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Split users into those of the training part and those of the validation part.

    Args:
        users: The users to split.
        share: Share of the users that is held out for validation.
        seed: Names the split, which is made by a stable hash.

    Returns:
        `(training users, validation users)`, each in the order of `users`.
    """
    if not 0.0 <= share < 1.0:
        raise ValueError(f"the validation share is {share}, expected 0 <= share < 1")
    ordered = sorted(users, key=lambda user: stable_key(seed, "validation", user))
    held = set(ordered[: round(share * len(ordered))])
    return (
        tuple(user for user in users if user not in held),
        tuple(user for user in users if user in held),
    )
