"""The sites on which a view's examples are made: the configured one, and its variants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from alignuser_jax.agents import AgentUser, SessionConfig
from alignuser_jax.records import Item
from alignuser_jax.views.view import View
from alignuser_jax.world import RecommendationSite, SiteConfig


class Sites:
    """All show the same text for the same page; they differ in when a visit ends."""

    def __init__(self, items: Mapping[str, Item], view: View, config: SiteConfig):
        self.config = config
        self._known = (items, view.histories, view.mean_ratings)
        self._of: dict[SiteConfig, RecommendationSite] = {}

    def site(self, config: SiteConfig | None = None) -> RecommendationSite:
        config = self.config if config is None else config
        if config not in self._of:
            self._of[config] = RecommendationSite(*self._known, config)
        return self._of[config]

    def of_visit(self, pages: int, show_means: bool = True) -> RecommendationSite:
        """Where the length of a visit is fixed (`horizon`), a human visit's own is: the site
        has no [EXIT] with which it could end. Without `show_means` it hides mean ratings."""
        config = self.config
        if config.horizon is not None:
            config = replace(config, horizon=pages)
        return self.site(config if show_means else replace(config, show_mean_rating=False))

    def of_one_item(self) -> RecommendationSite:
        return self.site(replace(self.config, items_per_page=1))


def agent_user(view: View, user_id: str, config: SessionConfig) -> AgentUser:
    """The user as agents are given one: of the history what a prompt can hold, and where the
    configuration asks for recall, a recollection of all of it."""
    history = view.histories[user_id]
    told = history[max(len(history) - config.history_items, 0) :]
    recollection = view.recall.of_user(history) if config.recall else None
    return AgentUser(view.personas[user_id], told, recollection)
