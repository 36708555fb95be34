"""A site that shows of a dataset only what its users could know before the held-out part."""

from __future__ import annotations

from alignuser_jax.datasets import Dataset, mean_ratings
from alignuser_jax.world.site.site import RecommendationSite, SiteConfig


def known_site(
    dataset: Dataset,
    config: SiteConfig | None = None,
    splits: tuple[str, ...] = ("train",),
) -> RecommendationSite:
    """The site whose histories and mean ratings come from `splits` alone: "train", and for
    simulations of the test part "validation" too. ValueError for any other split.
    """
    if not splits or set(splits) - {"train", "validation"}:
        raise ValueError(
            f"splits {splits}: pages may show ratings of 'train' and 'validation' only, the "
            "rest is held out"
        )
    log = dataset.log.of_split(*splits)
    return RecommendationSite(
        dataset.items,
        {user: dataset.history(log, user) for user in dataset.user_ids},
        mean_ratings(log, dataset.item_ids),
        config or SiteConfig(),
    )
