"""The examples of some users, task by task, and what the users of a dataset share."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any

from alignuser_jax.agents import session
from alignuser_jax.alignment.config import BuildConfig
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
from alignuser_jax.alignment.reflections import TEMPLATE
from alignuser_jax.alignment.rollouts import (
    collect_rollouts,
    generator_policy,
    human_transitions,
)
from alignuser_jax.alignment.visits import Visit, reconstruct_visits
from alignuser_jax.datasets import Dataset
from alignuser_jax.randomness import generator_of, stable_key
from alignuser_jax.recommenders import ALS
from alignuser_jax.records import (
    RATINGS,
    Action,
    Completion,
    Example,
    Interaction,
    Recommender,
    Request,
    Transition,
)
from alignuser_jax.sampling import generate as generate_all
from alignuser_jax.sampling.generate import check_answered
from alignuser_jax.shards import write_shards
from alignuser_jax.views.sites import Sites, agent_user
from alignuser_jax.views.view import View

STEPS_AT_ONCE = 4096
"""Ratings that are held in memory, asked about and, for the ablation, shuffled together."""


def _shares(counts: Mapping[str, int], limit: int | None) -> dict[str, int]:
    """How many to take of each: as even as the counts allow, `limit` together."""
    left = sum(counts.values()) if limit is None else limit
    shares = {}
    for place, name in enumerate(sorted(counts, key=lambda name: counts[name])):
        shares[name] = min(counts[name], left // (len(counts) - place))
        left -= shares[name]
    return shares


def config_of(config: BuildConfig) -> dict[str, Any]:
    """The settings as a manifest has them."""
    return json.loads(json.dumps({**asdict(config), "limits": dict(config.limits)}))


class Common:
    """What both parts share; the recommender is fitted when it is first needed."""

    def __init__(
        self,
        dataset,
        view,
        config,
        recommender,
        generator,
        count_tokens,
        progress,
        drop_failed=False,
    ):
        self.dataset: Dataset = dataset
        self.view: View = view
        self.config: BuildConfig = config
        self.count_tokens = count_tokens
        self.sites = Sites(dataset.items, view, config.site)
        self.say = progress or (lambda text: None)
        self._recommender: Recommender | None = recommender
        self.generate: Generate | None = None
        if generator is not None:

            def generate(requests: Sequence[Request]) -> list[Completion]:
                completions = generate_all(generator, requests)
                if not drop_failed:
                    check_answered(completions, requests[0].purpose if requests else "none")
                return completions

            self.generate = generate

    @cached_property
    def recommender(self) -> Recommender:
        if self._recommender is not None:
            return self._recommender
        self.say("fitting ALS on the profile part")
        return ALS(seed=self.config.seed).fit(self.dataset, self.view.profile)


class Part:
    """The examples of some users."""

    def __init__(self, common: Common, users: tuple[str, ...], limits, episodes: int):
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
            "config": config_of(replace(config, limits=dict(self.limits))),
            "reflections_dropped": self.dropped,
        }
        if self.view.persona_source:
            manifest["labels"]["personas"] = self.view.persona_source
        if uses_pages:
            name = getattr(common.recommender, "name", type(common.recommender).__name__)
            manifest["recommender"] = [name, getattr(common.recommender, "version", "")]
        examples = self.examples()
        first = list(islice(examples, 1))
        if not first and part == "training":
            dropped = "; ".join(f"{count} {reason}" for reason, count in self.dropped.items())
            raise ValueError(
                f"no example was made of {len(self.users)} users by tasks "
                f"{', '.join(config.tasks)}" + (f"; dropped: {dropped}" if dropped else "")
            )
        return write_shards(chain(first, examples), directory, manifest=manifest)

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
        return generator_of(key).permutation(n).tolist()

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
