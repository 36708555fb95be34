"""`BuildConfig`: every setting that decides which examples are built from a dataset."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from alignuser_jax.agents import SessionConfig
from alignuser_jax.alignment.reflecting.requests import ReflectionConfig
from alignuser_jax.alignment.rollouts import RolloutConfig
from alignuser_jax.alignment.visits import VisitConfig
from alignuser_jax.datasets.splits import PROFILE_SHARE
from alignuser_jax.world import SiteConfig

TASKS = ("world_model", "reflection", "imitation", "visit", "rating")
"""The kinds of examples (docs/method.md sections 7 and 8); the last two are our DEFAULTs."""
TRANSITION_SOURCES = ("human", "counterfactual", "rollout")
"""Where world-model transitions come from (docs/method.md section 7)."""


@dataclass(frozen=True)
class BuildConfig:
    """The settings of `build_shards`.

    Attributes:
        tasks: The kinds of examples to build, some of `TASKS`. With `k` = 0 the task
            `reflection` builds imitation examples instead.
        limits: The most examples of a task in the training part; the validation part gets its
            share of it. A task that is not named has no limit.
        k: Alternatives per human step. 4 are all that a rating has (docs/method.md
            section 8.2).
        seed: Names every draw.
        ratings_per_user: Target ratings of one user, at most: drawn at item level, the first
            ones for the task `rating`; `None` for all.
        longest_run: The most ratings that a conversation of the task `rating` asks for.
        visits_per_user: Visits of one user, at most (the first ones); `None` for all.
        sources: Where world-model examples come from, some of `TRANSITION_SOURCES`. They share
            the limit evenly, as far as each has examples.
        shuffle_reflections: Permute the reflections among the examples: the ablation that
            shows what their content is worth.
        reflections: How a model is asked for reflections, where one writes them.
        validation_share: Share of the users who are held out for the validation part.
        hidden_mean_share: Share of the visits on pages that hide mean ratings, so that a
            simulation may hide them too.
        profile_share: Share of each user's train part that prompts show; the rest are targets.
        site: The site; must be that of the simulation which the model is for.
        session: The agents' session settings; must be those of the simulation too.
        visits: How visits are reconstructed.
        rollouts: The schedule of the rollouts.

    Example:
        >>> config = BuildConfig(tasks=("reflection",), limits={"reflection": 1000}, k=2)
        >>> config.limits["reflection"]
        1000
    """

    tasks: tuple[str, ...] = ("world_model", "reflection", "visit")
    limits: Mapping[str, int] = field(default_factory=lambda: {"world_model": 20_000})
    k: int = 4
    seed: int = 0
    ratings_per_user: int | None = 20
    longest_run: int = 12
    visits_per_user: int | None = None
    sources: tuple[str, ...] = TRANSITION_SOURCES
    shuffle_reflections: bool = False
    validation_share: float = 0.05
    hidden_mean_share: float = 0.0
    profile_share: float = PROFILE_SHARE
    site: SiteConfig = SiteConfig()
    session: SessionConfig = SessionConfig()
    visits: VisitConfig = VisitConfig()
    rollouts: RolloutConfig = RolloutConfig()
    reflections: ReflectionConfig = ReflectionConfig()

    def within_row(self, row_tokens: int) -> BuildConfig:
        """Return the settings with conversations that start anew before they exceed a row.

        >>> BuildConfig().within_row(512).session.context_tokens
        512
        """
        limit = self.session.context_tokens
        tokens = row_tokens if limit is None else min(limit, row_tokens)
        return replace(self, session=replace(self.session, context_tokens=tokens))

    def __post_init__(self) -> None:
        for name, values, options in (
            ("tasks", self.tasks, TASKS),
            ("limits", self.limits, TASKS),
            ("sources", self.sources, TRANSITION_SOURCES),
        ):
            if unknown := sorted(set(values) - set(options)):
                raise ValueError(f"{name} has {unknown}; expected some of {', '.join(options)}")
        if not self.tasks:
            raise ValueError(f"tasks is empty: name at least one of {', '.join(TASKS)}")
        if "world_model" in self.tasks and not self.sources:
            raise ValueError(
                f"sources is empty: world-model examples need at least one of "
                f"{', '.join(TRANSITION_SOURCES)}"
            )
        least: dict[str, tuple[int | None, int]] = {
            "k": (self.k, 0),
            "ratings_per_user": (self.ratings_per_user, 1),
            "longest_run": (self.longest_run, 1),
            "visits_per_user": (self.visits_per_user, 1),
            **{f"limits[{task!r}]": (limit, 1) for task, limit in self.limits.items()},
        }
        for name, (number, low) in least.items():
            if number is not None and number < low:
                raise ValueError(f"{name} is {number}, expected {low} or more")
        if not 0 <= self.validation_share < 1:
            raise ValueError(
                f"validation_share is {self.validation_share}, expected 0 <= share < 1"
            )
        if not 0 <= self.hidden_mean_share <= 1:
            raise ValueError(
                f"hidden_mean_share is {self.hidden_mean_share}, expected 0 <= share <= 1"
            )
        if not 0 < self.profile_share < 1:
            raise ValueError(f"profile_share is {self.profile_share}, expected 0 < share < 1")
        if self.visits.items_per_page != self.site.items_per_page:
            raise ValueError(
                f"visits have {self.visits.items_per_page} items a page, the site "
                f"{self.site.items_per_page}: they must agree"
            )
        if self.visits.max_pages > self.site.last_page:
            raise ValueError(
                f"visits have up to {self.visits.max_pages} pages, the site ends after "
                f"{self.site.last_page}: lower visits.max_pages"
            )
