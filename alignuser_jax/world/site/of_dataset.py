"""Build a site of a dataset that shows only what its users could know before the test part."""

from __future__ import annotations

from alignuser_jax.datasets import Dataset, mean_ratings
from alignuser_jax.world.site.site import RecommendationSite, SiteConfig
from alignuser_jax.world.site.titles import readable


def site_of_dataset(
    dataset: Dataset,
    config: SiteConfig | None = None,
    splits: tuple[str, ...] = ("train",),
) -> RecommendationSite:
    """Return a site whose histories and mean ratings come from `splits` alone.

    Args:
        dataset: The items, the users and their log.
        config: How pages look; the defaults where `None`.
        splits: The parts of the log that pages may show: "train", and for simulations of the
            test part "validation" too. Raises `ValueError` for any other split, because pages
            must not show held-out ratings.

    Example:
        >>> from alignuser_jax.datasets.formats import synthetic
        >>> site = site_of_dataset(synthetic.generate(), SiteConfig(items_per_page=2))
        >>> site.reset("user0001", seed=0).needs.k
        2
    """
    if not splits or set(splits) - {"train", "validation"}:
        raise ValueError(
            f"splits is {splits}, expected 'train', 'validation' or both: pages must not show "
            "held-out ratings"
        )
    log = dataset.log.of_split(*splits)
    return RecommendationSite(
        readable(dataset.items),
        {user: dataset.history(log, user) for user in dataset.user_ids},
        mean_ratings(log, dataset.item_ids),
        config or SiteConfig(),
    )
