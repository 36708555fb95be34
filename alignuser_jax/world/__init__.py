"""What an agent can see and do: page text, valid actions, and pure sites that do no I/O."""

from alignuser_jax.world.catalogue import Catalogue, CatalogueConfig, make_catalogue
from alignuser_jax.world.drive import advance, fill
from alignuser_jax.world.generated_shop import GeneratedShop
from alignuser_jax.world.known import known_site
from alignuser_jax.world.page import item_line, one_line, page_text
from alignuser_jax.world.shop import WebShop, WebShopConfig
from alignuser_jax.world.shop_log import LoggedStep, build_index, logged_steps
from alignuser_jax.world.site import SESSION_ENDED, RecommendationSite, SiteConfig

__all__ = [
    "SESSION_ENDED",
    "Catalogue",
    "CatalogueConfig",
    "GeneratedShop",
    "LoggedStep",
    "RecommendationSite",
    "SiteConfig",
    "WebShop",
    "WebShopConfig",
    "advance",
    "build_index",
    "fill",
    "item_line",
    "known_site",
    "logged_steps",
    "make_catalogue",
    "one_line",
    "page_text",
]
