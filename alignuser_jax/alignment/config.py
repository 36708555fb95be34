"""`BuildConfig`: everything that decides which examples are built from a dataset."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from alignuser_jax.agents import SessionConfig
from alignuser_jax.alignment.reflections import REFLECTION_TOKENS
from alignuser_jax.alignment.rollouts import RolloutConfig
from alignuser_jax.alignment.visits import VisitConfig
from alignuser_jax.datasets.splits import PROFILE_SHARE
from alignuser_jax.world import SiteConfig

TASKS = ("world_model", "reflection", "imitation", "visit")
SOURCES = ("human", "counterfactual", "rollout")


@dataclass(frozen=True)
class BuildConfig:
    """What is built. `limits` caps the examples of a task (training part; the validation part
    gets its share of it); a task not in it is not capped. `k` alternatives per human step;
    with `k` = 0 the task `reflection` turns into `imitation`. `ratings_per_user` caps the
    target ratings of one user at item level (drawn), `visits_per_user` the visits (first ones).
    World-model examples are shared evenly between `sources` where `limits` binds. A generated
    reflection has at most `reflection_tokens` tokens, or it is dropped. `hidden_mean_share` of
    the visits are on pages that hide mean ratings, so that a simulation may hide them too.
    `validation_share` of the users are held out. `site` and `session` must be those of the
    simulation the model is for."""

    tasks: tuple[str, ...] = ("world_model", "reflection", "visit")
    limits: Mapping[str, int] = field(default_factory=lambda: {"world_model": 20_000})
    k: int = 4
    seed: int = 0
    ratings_per_user: int | None = 20
    visits_per_user: int | None = None
    sources: tuple[str, ...] = SOURCES
    shuffle_reflections: bool = False
    reflection_tokens: int = REFLECTION_TOKENS
    validation_share: float = 0.05
    hidden_mean_share: float = 0.0
    profile_share: float = PROFILE_SHARE
    site: SiteConfig = SiteConfig()
    session: SessionConfig = SessionConfig()
    visits: VisitConfig = VisitConfig()
    rollouts: RolloutConfig = RolloutConfig()

    def __post_init__(self) -> None:
        for name, given, known in (
            ("tasks", self.tasks, TASKS),
            ("limits", self.limits, TASKS),
            ("sources", self.sources, SOURCES),
        ):
            if unknown := sorted(set(given) - set(known)):
                raise ValueError(f"{name} has {unknown}; known are {', '.join(known)}")
        least: dict[str, tuple[int | None, int]] = {
            "k": (self.k, 0),
            "ratings_per_user": (self.ratings_per_user, 1),
            "visits_per_user": (self.visits_per_user, 1),
            "reflection_tokens": (self.reflection_tokens, 1),
            **{f"limits[{task!r}]": (limit, 1) for task, limit in self.limits.items()},
        }
        for name, (value, low) in least.items():
            if value is not None and value < low:
                raise ValueError(f"{name} is {value}, expected {low} or more")
        if not self.tasks:
            raise ValueError(f"tasks is empty: name at least one of {', '.join(TASKS)}")
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
