"""Build the sites on which a view's examples are made: the configured one and its variants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from alignuser_jax.agents import AgentUser, SessionConfig
from alignuser_jax.records import Item
from alignuser_jax.views.view import View
from alignuser_jax.world import RecommendationSite, SiteConfig, readable


class Sites:
    """The variants of one site, each built once.

    All show the same text for the same page; they differ in when a visit ends, and in whether
    mean ratings are shown.

    Attributes:
        items: The catalogue by item id, with readable titles.
        view: What pages and prompts may show of the users.
        config: The settings of the configured site.

    Example:
        >>> sites = Sites(dataset.items, training_view(dataset), SiteConfig())
        >>> state = sites.of_visit(pages=3).reset("u1", seed=0)
    """

    def __init__(self, items: Mapping[str, Item], view: View, config: SiteConfig):
        self.items, self.view, self.config = readable(items), view, config
        self._sites: dict[SiteConfig, RecommendationSite] = {}

    def site(self, config: SiteConfig | None = None) -> RecommendationSite:
        """Return the site with these settings (default: the configured one)."""
        config = self.config if config is None else config
        if config not in self._sites:
            view = self.view
            self._sites[config] = RecommendationSite(
                self.items, view.histories, view.mean_ratings, config
            )
        return self._sites[config]

    def of_visit(self, pages: int, show_means: bool = True) -> RecommendationSite:
        """Return the site for a human visit of so many pages.

        If the site has a fixed horizon, it has no [EXIT] with which the visit could end, so
        the horizon becomes that of the visit. `show_means=False` hides mean ratings.
        """
        config = self.config
        if config.horizon is not None:
            config = replace(config, horizon=pages)
        return self.site(config if show_means else replace(config, show_mean_rating=False))

    def of_one_item(self) -> RecommendationSite:
        """Return the site with pages of one item, for rating calls."""
        return self.site(replace(self.config, items_per_page=1))


def agent_user(view: View, user_id: str, config: SessionConfig) -> AgentUser:
    """Return what an agent knows of its user.

    This is the persona, the end of the history (as much as a prompt lists) and, if the
    settings ask for recall, a recollection of all of the history.
    """
    history = view.histories[user_id]
    recent = history[max(len(history) - config.history_items, 0) :]
    recollection = view.recall.of_user(history) if config.recall else None
    return AgentUser(view.personas[user_id], recent, recollection)
