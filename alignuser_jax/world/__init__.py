"""What an agent can see and do: page text, valid actions, and pure sites that do no I/O."""

from alignuser_jax.world.drive import advance, fill
from alignuser_jax.world.generated_shop.catalogue import (
    CatalogueConfig,
    ShopCatalogue,
    make_catalogue,
)
from alignuser_jax.world.generated_shop.shop import GeneratedShop
from alignuser_jax.world.shop.log import LoggedStep, build_index, logged_steps
from alignuser_jax.world.shop.shop import WebShop, WebShopConfig
from alignuser_jax.world.site.of_dataset import site_of_dataset
from alignuser_jax.world.site.page import item_line, page_text
from alignuser_jax.world.site.site import SESSION_ENDED, RecommendationSite, SiteConfig
from alignuser_jax.world.site.titles import readable

__all__ = [
    "SESSION_ENDED",
    "CatalogueConfig",
    "GeneratedShop",
    "LoggedStep",
    "RecommendationSite",
    "ShopCatalogue",
    "SiteConfig",
    "WebShop",
    "WebShopConfig",
    "advance",
    "build_index",
    "fill",
    "item_line",
    "site_of_dataset",
    "logged_steps",
    "make_catalogue",
    "page_text",
    "readable",
]
