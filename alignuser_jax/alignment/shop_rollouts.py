"""Write world-model shards of the generated shop: epsilon-greedy rollouts of scripted shoppers.

Pages, products and shoppers are synthetic, and the manifest says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from alignuser_jax.alignment.examples import world_model_examples
from alignuser_jax.alignment.rollouts import RolloutConfig
from alignuser_jax.language.prompts import SHOP
from alignuser_jax.randomness import stable_key
from alignuser_jax.records import Example
from alignuser_jax.shards import write_shards
from alignuser_jax.world import GeneratedShop
from alignuser_jax.world.generated_shop.sessions import simulate_session


def shop_examples(
    shop: GeneratedShop, config: RolloutConfig, seed: int, episodes: Iterable[int]
) -> Iterator[Example]:
    """Yield the transitions of `episodes` as examples.

    Each episode is a visit of a shopper of its own; in episode e a listed action is drawn at
    random with probability `config.epsilon(e)`.
    """
    for episode in episodes:
        visit = simulate_session(
            shop,
            f"rollout{episode:06d}",
            seed,
            epsilon=config.epsilon(episode),
            max_actions=config.max_actions,
        )
        names = [f"shop/{episode}/{n}" for n in range(len(visit.transitions))]
        yield from world_model_examples(visit.transitions, names, platform=SHOP)


def write_shop_rollouts(
    shop: GeneratedShop,
    folder: str | Path,
    config: RolloutConfig,
    seed: int = 0,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> dict[str, Any]:
    """Write the shards of all `config.episodes` and return the finished manifest.

    The same arguments give the same bytes. `progress` wraps the iterable of episodes.
    """
    catalogue = f"{stable_key(shop.catalogue.products, shop.catalogue.goals):016x}"
    manifest = {
        "dataset": "generated shop",
        "dataset_hash": catalogue,
        "synthetic": True,
        "policy_id": "scripted shopper",
        "labels": {"rollouts": "scripted shopper", "goals": shop.catalogue.source},
        "config": {"rollouts": asdict(config), "seed": seed},
    }
    examples = shop_examples(shop, config, seed, progress(range(config.episodes)))
    return write_shards(examples, folder, manifest=manifest)
