"""From a dataset to shards: which users and ratings become which examples, and their labels."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from alignuser_jax.agents import SessionConfig, session
from alignuser_jax.alignment.counterfactuals import (
    Generate,
    step_alternatives,
    uniform_alternatives,
)
from alignuser_jax.alignment.examples import (
    HumanVisit,
    drive,
    visit_examples,
    world_model_examples,
)
from alignuser_jax.alignment.item_level import (
    imitation_examples,
    rating_steps,
    reasonings,
    reflection_examples,
)
from alignuser_jax.alignment.reflections import REFLECTION_TOKENS, TEMPLATE
from alignuser_jax.alignment.rollouts import (
    RolloutConfig,
    collect_rollouts,
    generator_policy,
    human_transitions,
)
from alignuser_jax.alignment.sites import Sites, agent_user
from alignuser_jax.alignment.split import held_out_users
from alignuser_jax.alignment.views import PROFILE_SHARE, View, training_view
from alignuser_jax.alignment.visits import Visit, VisitConfig, reconstruct_visits
from alignuser_jax.datasets import Dataset
from alignuser_jax.recommenders import ALS
from alignuser_jax.records import (
    RATINGS,
    Action,
    Example,
    Generator,
    Interaction,
    Recommender,
    Transition,
    stable_key,
)
from alignuser_jax.sampling import generate as generate_all
from alignuser_jax.training.records_io import write_shards
from alignuser_jax.world import SiteConfig

TASKS = ("world_model", "reflection", "imitation", "visit")
SOURCES = ("human", "counterfactual", "rollout")
STEPS_AT_ONCE = 4096
"""Ratings that are held in memory, asked about and, for the ablation, shuffled together."""


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


def build_shards(
    dataset: Dataset,
    out_dir: str | Path,
    config: BuildConfig,
    *,
    users: Sequence[str] | None = None,
    recommender: Recommender | None = None,
    generator: Generator | None = None,
    policy_id: str = TEMPLATE,
    count_tokens: Callable[[str], int] | None = None,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Writes `<out_dir>` and, where users are held out, `<out_dir>/validation`; returns the
    manifest. The same arguments give the same bytes.

    `users`: whose ratings may become targets (default: all); policies must be built from users
    other than the agents (`split.policy_and_agent_users`). `recommender` fills pages (exposure
    and imagined pages); default: ALS fitted on the profile part. `generator` writes the
    reflections, draws alternatives and acts in rollouts; without it reflections are the
    labelled template and rollouts random. `policy_id` names it in the manifest.
    `count_tokens` must be given where `config.session.context_tokens` is.
    """
    if generator is None and policy_id != TEMPLATE:
        raise ValueError(f"policy_id is {policy_id!r} but no generator was given")
    if generator is not None and policy_id == TEMPLATE:
        raise ValueError("give the policy_id of the generator, so that the shards can name it")
    if config.session.context_tokens is not None and count_tokens is None:
        raise ValueError("session.context_tokens is set, so count_tokens is needed: pass it")
    users = tuple(dataset.user_ids if users is None else users)
    if not users:
        raise ValueError("no users to build from: give user ids, or None for all")
    if unknown := sorted(set(users) - set(dataset.user_ids)):
        raise ValueError(f"{len(unknown)} unknown users, the first is {unknown[0]!r}")
    training, validation = held_out_users(users, config.validation_share, config.seed)
    view = training_view(dataset, config.profile_share)
    common = _Common(dataset, view, config, recommender, generator, count_tokens, progress)
    out_dir = Path(out_dir)
    if validation:
        share = len(validation) / len(training)
        limits = {task: max(1, round(n * share)) for task, n in config.limits.items()}
        episodes = max(1, round(config.rollouts.episodes * share))
        part = _Part(common, validation, limits, episodes)
        part.write(out_dir / "validation", policy_id, "validation")
    return _Part(common, training, config.limits, config.rollouts.episodes).write(
        out_dir, policy_id, "training"
    )


def _shares(counts: Mapping[str, int], limit: int | None) -> dict[str, int]:
    """How many to take of each: as even as the counts allow, `limit` together."""
    left = sum(counts.values()) if limit is None else limit
    shares = {}
    for place, name in enumerate(sorted(counts, key=lambda name: counts[name])):
        shares[name] = min(counts[name], left // (len(counts) - place))
        left -= shares[name]
    return shares


class _Common:
    """What both parts share; the recommender is fitted when it is first needed."""

    def __init__(self, dataset, view, config, recommender, generator, count_tokens, progress):
        self.dataset: Dataset = dataset
        self.view: View = view
        self.config: BuildConfig = config
        self.count_tokens = count_tokens
        self.sites = Sites(dataset.items, view, config.site)
        self.say = progress or (lambda text: None)
        self._recommender: Recommender | None = recommender
        self.generate: Generate | None = None
        if generator is not None:
            self.generate = lambda requests: generate_all(generator, requests)

    @cached_property
    def recommender(self) -> Recommender:
        if self._recommender is not None:
            return self._recommender
        self.say("fitting ALS on the profile part")
        return ALS(seed=self.config.seed).fit(self.dataset, self.view.profile)


class _Part:
    """The examples of some users."""

    def __init__(self, common: _Common, users: tuple[str, ...], limits, episodes: int):
        self.common, self.users, self.limits, self.episodes = common, users, limits, episodes
        self.config, self.view = common.config, common.view
        self.dropped: Counter[str] = Counter()

    def write(self, directory: Path, policy_id: str, part: str) -> dict[str, Any]:
        config, common = self.config, self.common
        generated = common.generate is not None
        uses_pages = {"visit", "world_model"} & set(config.tasks)
        manifest = {
            "dataset": common.dataset.name,
            "dataset_hash": common.dataset.hash,
            "synthetic": common.dataset.synthetic,
            "policy_id": policy_id,
            "part": part,
            "users": len(self.users),
            "users_hash": f"{stable_key(*self.users):x}",
            "labels": {
                "reflections": ("generated" if generated else TEMPLATE)
                + (", shuffled" if config.shuffle_reflections else ""),
                "rollouts": policy_id if generated else "random",
                "visits": "DEFAULT: reconstructed from ratings, not observed",
                "satisfaction": "DEFAULT: twice the visit's mean rating",
                "exposure": config.visits.exposure.describe(),
            },
            "config": json.loads(json.dumps({**asdict(config), "limits": dict(self.limits)})),
            "reflections_dropped": self.dropped,
        }
        if uses_pages:
            name = getattr(common.recommender, "name", type(common.recommender).__name__)
            manifest["recommender"] = [name, getattr(common.recommender, "version", "")]
        return write_shards(self.examples(), directory, manifest=manifest)

    def examples(self) -> Iterator[Example]:
        config = self.config
        if "visit" in config.tasks:
            yield from islice(self.visit_examples(), self.limits.get("visit"))
        if "world_model" in config.tasks:
            yield from self.world_model()
        if {"reflection", "imitation"} & set(config.tasks):
            yield from self.item_level()

    def order(self, n: int, *names: object) -> list[int]:
        """A seeded order of n things: a limit takes the first of it, so it draws."""
        key = stable_key(self.config.seed, "order", *names)
        return np.random.Generator(np.random.Philox(key=key)).permutation(n).tolist()

    # --- visits ---

    @cached_property
    def visits(self) -> list[Visit]:
        config = self.config
        self.common.say(f"reconstructing the visits of {len(self.users)} users")
        found = reconstruct_visits(
            self.common.dataset,
            self.view.profile,
            self.view.targets,
            config.visits,
            model=self.common.recommender if config.visits.exposure.model_top else None,
            users=self.users,
            seed=config.seed,
            max_visits=config.visits_per_user,
        )
        return [found[n] for n in self.order(len(found), "visits")]

    def visit_examples(self) -> Iterator[Example]:
        config, common = self.config, self.common
        for number, visit in enumerate(self.visits):
            if number % 5000 == 0:
                common.say(f"visits: {number} of {len(self.visits)}")
            replies = HumanVisit(visit)
            key = stable_key(config.seed, "hidden means", visit.user_id, visit.number)
            shown = key % 10_000 >= 10_000 * config.hidden_mean_share
            coroutine = session(
                agent_user(self.view, visit.user_id, config.session),
                common.sites.of_visit(len(visit.pages), shown),
                config.session,
                arm="human",
                number=visit.number,
                seed=config.seed,
                count_tokens=common.count_tokens,
            )
            calls, _ = drive(coroutine, replies.choose, replies.show)
            yield from visit_examples(calls, visit)

    # --- the world model ---

    def world_model(self) -> Iterator[Example]:
        limit = self.limits.get("world_model")
        sources = self.config.sources
        wanted = None if limit is None else -(-limit // len(sources))
        found = {source: getattr(self, f"{source}_transitions")(wanted) for source in sources}
        shares = _shares({source: len(found[source]) for source in sources}, limit)
        for source, transitions in found.items():
            self.common.say(f"world model, {source}: {shares[source]} of {len(transitions)}")
            chosen = sorted(self.order(len(transitions), source)[: shares[source]])
            names = [f"{source}/{n}" for n in chosen]
            picked = [transitions[n] for n in chosen]
            yield from world_model_examples(picked, names, self.config.session.item_type)

    def human_transitions(self, wanted: int | None) -> list[Transition]:
        """Of as many visits as it takes to draw `wanted` from (all where `None`)."""
        found: list[Transition] = []
        for visit in self.visits:
            if wanted is not None and len(found) >= 2 * wanted:
                break
            site = self.common.sites.of_visit(len(visit.pages))
            found += human_transitions(site, visit, self.config.seed)
        return found

    def counterfactual_transitions(self, wanted: int | None) -> list[Transition]:
        """K alternatives of human transitions, ratings and page actions alike."""
        k = self.config.k
        if not k:
            return []
        taken = self.human_transitions(wanted if wanted is None else -(-wanted // k))
        actions = []
        for n, step in enumerate(taken):
            key = stable_key(self.config.seed, "imagined", step.state.user_id, n)
            if step.action.kind == "rate":
                options = [Action("rate", step.action.target, value) for value in RATINGS]
            else:
                options = list(step.state.actions)
            others = uniform_alternatives(len(options), options.index(step.action), k, key)
            actions.append([options[n] for n in others])
        pairs = step_alternatives(
            self.common.sites.site(), taken, actions, self.common.recommender
        )
        return [other for pair in pairs for other in pair.alternatives]

    def rollout_transitions(self, wanted: int | None) -> list[Transition]:
        config, common = self.config, self.common
        site = common.sites.site()
        arguments: dict[str, Any] = {}
        if common.generate is not None:
            people = {u: agent_user(self.view, u, config.session) for u in self.users}
            arguments["policy"] = generator_policy(
                common.generate,
                people,
                common.dataset.items,
                config.session,
                common.count_tokens,
            )
        schedule = replace(config.rollouts, episodes=self.episodes)
        users = [self.users[n] for n in self.order(len(self.users), "rollout users")]
        return collect_rollouts(
            site, common.recommender, users, schedule, seed=config.seed, **arguments
        )

    # --- ratings ---

    def targets(self) -> list[tuple[str, Interaction]]:
        """Target ratings in drawn order, at most `ratings_per_user` of each user."""
        config, found = self.config, []
        for user_id in self.users:
            own = self.common.dataset.history(self.view.targets, user_id)
            drawn = self.order(len(own), "ratings", user_id)[: config.ratings_per_user]
            found += [(user_id, own[n]) for n in sorted(drawn)]
        return [found[n] for n in self.order(len(found), "targets")]

    def item_level(self) -> Iterator[Example]:
        config, common = self.config, self.common
        reflected = "reflection" in config.tasks and config.k > 0
        plain = "imitation" in config.tasks or not reflected
        wanted = [
            -(-self.limits[task] // per_step) if task in self.limits else None
            for task, per_step, built in (
                ("reflection", max(config.k, 1), "reflection" in config.tasks),
                ("imitation", 1, "imitation" in config.tasks),
            )
            if built
        ]
        targets = self.targets()
        if None not in wanted:
            targets = targets[: max(wanted)]
        made: Counter[str] = Counter()
        for first in range(0, len(targets), STEPS_AT_ONCE):
            common.say(f"ratings: {first} of {len(targets)}, k = {config.k}")
            steps = rating_steps(
                self.view,
                common.sites,
                common.dataset.items,
                targets[first : first + STEPS_AT_ONCE],
                config.session,
                k=config.k if reflected else 0,
                seed=config.seed,
                generate=common.generate,
                count_tokens=common.count_tokens,
            )
            examples = [imitation_examples(steps)] if plain else []
            if reflected:
                texts, dropped = reasonings(
                    steps,
                    config.session,
                    seed=config.seed,
                    generate=common.generate,
                    max_tokens=config.reflection_tokens,
                    shuffle=config.shuffle_reflections,
                )
                self.dropped.update(dropped)
                examples.append(reflection_examples(steps, texts))
            for example in chain(*examples):
                made[example.task] += 1
                if made[example.task] <= self.limits.get(example.task, made[example.task]):
                    yield example
