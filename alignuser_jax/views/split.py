"""Who trains the policy and who becomes an agent: disjoint lists of users by a stable hash."""

from __future__ import annotations

from alignuser_jax.datasets import Dataset
from alignuser_jax.randomness import stable_key


def policy_and_agent_users(
    dataset: Dataset, n_agents: int, seed: int = 0
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """`(policy users, agent users)`: disjoint, together all users, the same on every machine.

    The agents of a smaller `n_agents` are the first of a larger one's, so that 200 agents are
    among the 1,000 and one policy serves both.
    """
    if not 0 <= n_agents <= len(dataset.user_ids):
        raise ValueError(
            f"n_agents is {n_agents}, but the dataset has {len(dataset.user_ids)} users: "
            "ask for between 0 and that many"
        )
    ordered = sorted(dataset.user_ids, key=lambda user: stable_key(seed, "agents", user))
    return tuple(sorted(ordered[n_agents:])), tuple(ordered[:n_agents])


def held_out_users(
    users: tuple[str, ...], share: float, seed: int = 0
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """`(training users, validation users)` of `users`, in the given order, by a stable hash."""
    if not 0.0 <= share < 1.0:
        raise ValueError(f"the validation share is {share}, expected 0 <= share < 1")
    ordered = sorted(users, key=lambda user: stable_key(seed, "validation", user))
    held = set(ordered[: round(share * len(ordered))])
    return (
        tuple(user for user in users if user not in held),
        tuple(user for user in users if user in held),
    )
