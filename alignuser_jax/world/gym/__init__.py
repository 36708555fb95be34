"""Two Gymnasium environments of the recommendation site, each also as a vector.

Importing this module registers them:

    import gymnasium
    import alignuser_jax.world.gym

    env = gymnasium.make("alignuser/RecSys-v0")            # the recommender acts
    envs = gymnasium.make_vec("alignuser/User-v0", 64)     # the user acts, 64 at once
"""

import gymnasium

from alignuser_jax.world.gym import make
from alignuser_jax.world.gym.make import (
    recsys_env,
    recsys_vector_env,
    user_env,
    user_vector_env,
)
from alignuser_jax.world.gym.people import (
    BehaviouralUsers,
    estimated_taste,
    taste_of,
    true_taste,
)
from alignuser_jax.world.gym.recsys import RecSysEnv, UserModel, item_features, likes
from alignuser_jax.world.gym.staged import StagedEnv, StagedVectorEnv
from alignuser_jax.world.gym.user import UserEnv, characters_of, listed_menu, site_menu

__all__ = [
    "BehaviouralUsers",
    "RecSysEnv",
    "StagedEnv",
    "StagedVectorEnv",
    "UserEnv",
    "UserModel",
    "characters_of",
    "estimated_taste",
    "item_features",
    "likes",
    "listed_menu",
    "recsys_env",
    "recsys_vector_env",
    "register",
    "site_menu",
    "taste_of",
    "true_taste",
    "user_env",
    "user_vector_env",
]


def register() -> None:
    """Register the ids `alignuser/RecSys-v0` and `alignuser/User-v0` with Gymnasium."""
    for name, one, many in (
        ("alignuser/RecSys-v0", "recsys_env", "recsys_vector_env"),
        ("alignuser/User-v0", "user_env", "user_vector_env"),
    ):
        if name not in gymnasium.registry:
            gymnasium.register(
                name,
                entry_point=f"{make.__name__}:{one}",
                vector_entry_point=f"{make.__name__}:{many}",
            )


register()
