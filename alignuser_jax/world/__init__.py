"""What an agent can see and do: page text, valid actions, and pure sites that do no I/O."""

from alignuser_jax.world.drive import advance, fill
from alignuser_jax.world.known import known_site
from alignuser_jax.world.page import item_line, one_line, page_text
from alignuser_jax.world.site import SESSION_ENDED, RecommendationSite, SiteConfig

__all__ = [
    "SESSION_ENDED",
    "RecommendationSite",
    "SiteConfig",
    "advance",
    "fill",
    "item_line",
    "known_site",
    "one_line",
    "page_text",
]
