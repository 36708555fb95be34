"""Make the environments of a dataset; `gymnasium.make` and `gymnasium.make_vec` call these."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alignuser_jax import records
from alignuser_jax.datasets import Dataset
from alignuser_jax.datasets.formats import synthetic
from alignuser_jax.recommenders import Popularity
from alignuser_jax.records import Recommender
from alignuser_jax.world.gym import recsys, user
from alignuser_jax.world.gym.people import BehaviouralUsers, taste_of
from alignuser_jax.world.gym.staged import StagedVectorEnv
from alignuser_jax.world.site.of_dataset import site_of_dataset
from alignuser_jax.world.site.site import SiteConfig


def recsys_env(
    dataset: str | Path | Dataset | None = None,
    site: SiteConfig | None = None,
    users: recsys.UserModel | None = None,
    user_ids: Sequence[str] | None = None,
    generator: records.Generator | None = None,
    reward: recsys.SlateReward = recsys.likes,
    strict: bool = False,
) -> recsys.RecSysEnv:
    """Return a `RecSysEnv` of a dataset.

    Args:
        dataset: The dataset or its folder; a SYNTHETIC one where `None`.
        site: What pages show.
        users: The model of the users; where `None` it is `BehaviouralUsers` with the dataset's
            tastes, which are not validated.
        user_ids: Whose visits are the episodes; all users where `None`.
        generator: Answers users that are language models.
        reward: The reward of a slate.
        strict: Whether a slate with items that may not be shown is refused.
    """
    data = _dataset(dataset)
    world = site_of_dataset(data, site)
    users = users or BehaviouralUsers(world, taste_of(data))
    return recsys.RecSysEnv(
        world, users, user_ids, generator=generator, reward=reward, strict=strict
    )


def user_env(
    dataset: str | Path | Dataset | None = None,
    site: SiteConfig | None = None,
    recommender: Recommender | None = None,
    user_ids: Sequence[str] | None = None,
    reward: user.StepReward | None = None,
) -> user.UserEnv:
    """Return a `UserEnv` of a dataset.

    Args:
        dataset: The dataset or its folder; a SYNTHETIC one where `None`.
        site: What pages show.
        recommender: Makes the slates; where `None` it shows the most popular items of the
            dataset's training part.
        user_ids: Whose visits are the episodes; all users where `None`.
        reward: The reward of a step, 0 where `None`.
    """
    data = _dataset(dataset)
    world = site_of_dataset(data, site)
    if recommender is None:
        recommender = Popularity().fit(data, data.log.of_split("train"))
    return user.UserEnv(
        world,
        recommender,
        data.user_ids if user_ids is None else user_ids,
        user.site_menu(world.config),
        characters=user.characters_of(data.items.values()),
        reward=reward,
    )


def recsys_vector_env(num_envs: int = 1, **options: Any) -> StagedVectorEnv:
    """Return `num_envs` of `recsys_env` over one dataset; all users ask a model together."""
    first = recsys_env(**options)
    shared = (first.site, first.users, first.user_ids)
    named = {key: options[key] for key in ("generator", "reward", "strict") if key in options}
    return StagedVectorEnv(lambda: recsys.RecSysEnv(*shared, **named), num_envs)


def user_vector_env(num_envs: int = 1, **options: Any) -> StagedVectorEnv:
    """Return `num_envs` of `user_env` over one dataset, with one recommender call a step."""
    first = user_env(**options)
    characters, reward = first.observation_space.character_set, options.get("reward")
    shared = (first.world, first.recommender, first.user_ids, first.menu)
    return StagedVectorEnv(
        lambda: user.UserEnv(*shared, characters=characters, reward=reward), num_envs
    )


def _dataset(dataset: str | Path | Dataset | None) -> Dataset:
    if dataset is None:
        return synthetic.generate()
    return dataset if isinstance(dataset, Dataset) else Dataset.load(dataset)
