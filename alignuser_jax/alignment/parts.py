"""Build the examples of some users, task by task, and write them as shards."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any

from alignuser_jax.agents import session
from alignuser_jax.alignment.config import BuildConfig
from alignuser_jax.alignment.counterfactuals import (
    Alternatives,
    Generate,
    step_alternatives,
    uniform_alternatives,
)
from alignuser_jax.alignment.examples import (
    HumanVisit,
    conversation_examples,
    drive,
    world_model_examples,
)
from alignuser_jax.alignment.item_level import (
    imitation_examples,
    rating_steps,
    reasonings,
    reflection_examples,
)
from alignuser_jax.alignment.rating_runs import RatingRun, rating_runs, run_examples
from alignuser_jax.alignment.reflecting.templates import TEMPLATE
from alignuser_jax.alignment.reflecting.writing import Tally
from alignuser_jax.alignment.rollouts import (
    Policy,
    collect_rollouts,
    generator_policy,
    human_transitions,
    random_policy,
)
from alignuser_jax.alignment.visits import Visit, reconstruct_visits
from alignuser_jax.datasets import Dataset
from alignuser_jax.language.fitting import RowFit
from alignuser_jax.randomness import named_generator, stable_key
from alignuser_jax.recommenders import ALS
from alignuser_jax.records import (
    RATINGS,
    Action,
    CountTokens,
    Example,
    Interaction,
    Recommender,
    Transition,
)
from alignuser_jax.shards import write_shards
from alignuser_jax.text import Say
from alignuser_jax.views import View
from alignuser_jax.views.sites import Sites, agent_user

STEPS_AT_ONCE = 4096
"""Ratings that are held in memory, asked about and, for the ablation, shuffled together."""


def config_of(config: BuildConfig) -> dict[str, Any]:
    """Return the settings as a manifest has them."""
    plain = json.loads(json.dumps({**asdict(config), "limits": dict(config.limits)}))
    for name in ("least_kept", "first_replies"):  # they change no example
        del plain["reflections"][name]
    return plain


@dataclass(frozen=True)
class Reflector:
    """A model that writes reflections.

    Attributes:
        ask: Answers a batch of requests.
        about: What it is, for the manifest: `model` is its id, the hash of its weights where
            they are here; `name` and `tokenizer` where they are known.
    """

    ask: Generate
    about: Mapping[str, Any]


@dataclass
class Shared:
    """What the training part and the validation part share.

    Attributes:
        dataset: The log.
        view: What prompts may show, and the target ratings.
        config: The settings.
        fills_pages: The recommender that was passed; `None` for ALS.
        generate: Asks the model that draws alternatives and acts; `None` without one.
        reflector: Who writes the reflections; `None` for templates.
        count_tokens: Counts tokens as the model that will be trained does.
        say: Prints a line of progress.
        row_tokens: Tokens of a row of the training; `None` refuses no example.
    """

    dataset: Dataset
    view: View
    config: BuildConfig
    fills_pages: Recommender | None
    generate: Generate | None
    count_tokens: CountTokens | None
    say: Say
    row_tokens: int | None = None
    reflector: Reflector | None = None

    @cached_property
    def tally(self) -> Tally:
        """What has become of the replies about reflections, in both parts."""
        return Tally(self.config.reflections, self.say, visible=self.reflector is not None)

    @cached_property
    def sites(self) -> Sites:
        """The sites on which examples are made."""
        return Sites(self.dataset.items, self.view, self.config.site)

    @cached_property
    def recommender(self) -> Recommender:
        """The recommender that fills pages; ALS is fitted when it is first needed."""
        if self.fills_pages is not None:
            return self.fills_pages
        self.say("fitting ALS on the profile part")
        return ALS(seed=self.config.seed).fit(self.dataset, self.view.profile)


class Part:
    """The examples of one part, training or validation.

    Args:
        shared: What both parts share.
        users: Whose ratings become targets.
        limits: The most examples of a task.
        episodes: Rollouts of the part.
    """

    def __init__(
        self, shared: Shared, users: tuple[str, ...], limits: Mapping[str, int], episodes: int
    ):
        self.shared, self.users, self.limits, self.episodes = shared, users, limits, episodes
        self.config, self.view = shared.config, shared.view
        self.dropped: Counter[str] = Counter()
        self.replies: dict[str, int] = {}

    def write(self, directory: Path, policy_id: str, part: str) -> dict[str, Any]:
        """Write the part's shards to `directory` and return their manifest.

        Raises:
            ValueError: The training part has no example.
        """
        fit = RowFit(self.shared.row_tokens, self.shared.count_tokens)
        # `fit` counts while the examples are written
        manifest = self._manifest(policy_id, part) | {"fit": fit.report}
        examples = fit.fitting(self.examples())
        first = list(islice(examples, 1))
        if not first and part == "training":
            refused = sum(counts["too_long"] for counts in fit.report["tasks"].values())
            if refused:
                self.dropped["too long for a row (raise train.seq_len)"] += refused
            dropped = "; ".join(f"{count} {reason}" for reason, count in self.dropped.items())
            raise ValueError(
                f"no example was made of {len(self.users)} users by tasks "
                f"{', '.join(self.config.tasks)}" + (f"; dropped: {dropped}" if dropped else "")
            )
        return write_shards(chain(first, examples), directory, manifest=manifest)

    def _manifest(self, policy_id: str, part: str) -> dict[str, Any]:
        config, shared = self.config, self.shared
        generated, reflector = shared.generate is not None, shared.reflector
        labels = {
            "reflections": (f"generated by {_name(reflector)}" if reflector else TEMPLATE)
            + (", shuffled" if config.shuffle_reflections else ""),
            "rollouts": policy_id if generated else "random",
            "visits": "DEFAULT: reconstructed from ratings, not observed",
            "satisfaction": "DEFAULT: twice the visit's mean rating",
            "exposure": config.visits.exposure.describe(),
        }
        if self.view.persona_source:
            labels["personas"] = self.view.persona_source
        manifest: dict[str, Any] = {
            "dataset": shared.dataset.name,
            "dataset_hash": shared.dataset.hash,
            "synthetic": shared.dataset.synthetic,
            "policy_id": policy_id,
            "part": part,
            "users": len(self.users),
            "users_hash": f"{stable_key(*self.users):x}",
            "labels": labels,
            "config": config_of(replace(config, limits=dict(self.limits))),
            "reflector": dict(reflector.about) if reflector else {"model": TEMPLATE},
            "reflections_dropped": self.dropped,  # counted while the examples are written
            "reflection_replies": self.replies,
        }
        if {"visit", "world_model"} & set(config.tasks):
            name = getattr(shared.recommender, "name", type(shared.recommender).__name__)
            manifest["recommender"] = [name, getattr(shared.recommender, "version", "")]
        return manifest

    def examples(self) -> Iterator[Example]:
        """Yield the part's examples, task by task."""
        config = self.config
        if "visit" in config.tasks:
            yield from islice(self._visit_examples(), self.limits.get("visit"))
        if "rating" in config.tasks:
            yield from islice(self._run_examples(), self.limits.get("rating"))
        if "world_model" in config.tasks:
            yield from self._world_model_examples()
        if {"reflection", "imitation"} & set(config.tasks):
            yield from self._rating_examples()

    def _order(self, n: int, *names: object) -> list[int]:
        """A seeded order of n things: a limit takes the first of it, so it draws."""
        return named_generator(self.config.seed, "order", *names).permutation(n).tolist()

    # --- visits ---

    @cached_property
    def _visits(self) -> list[Visit]:
        config = self.config
        self.shared.say(f"reconstructing the visits of {len(self.users)} users")
        visits = reconstruct_visits(
            self.shared.dataset,
            self.view,
            config.visits,
            model=self.shared.recommender if config.visits.exposure.model_top else None,
            users=self.users,
            seed=config.seed,
            max_visits=config.visits_per_user,
        )
        return [visits[n] for n in self._order(len(visits), "visits")]

    def _visit_examples(self) -> Iterator[Example]:
        config, shared = self.config, self.shared
        for number, visit in enumerate(self._visits):
            if number % 5000 == 0:
                shared.say(f"visits: {number} of {len(self._visits)}")
            replies = HumanVisit(visit)
            key = stable_key(config.seed, "hidden means", visit.user_id, visit.number)
            show_means = key % 10_000 >= 10_000 * config.hidden_mean_share
            coroutine = session(
                agent_user(self.view, visit.user_id, config.session),
                shared.sites.of_visit(len(visit.pages), show_means),
                config.session,
                arm="human",
                number=visit.number,
                seed=config.seed,
                count_tokens=shared.count_tokens,
            )
            calls, _ = drive(coroutine, replies.choose, replies.show)
            name = f"{visit.user_id}/{visit.number}"
            yield from conversation_examples(calls, "visit", name, visit.user_id)

    # --- the world model ---

    def _world_model_examples(self) -> Iterator[Example]:
        limit = self.limits.get("world_model")
        sources = self.config.sources
        wanted = None if limit is None else -(-limit // len(sources))
        build = {
            "human": self._human_transitions,
            "counterfactual": self._counterfactual_transitions,
            "rollout": self._rollout_transitions,
        }
        transitions = {source: build[source](wanted) for source in sources}
        shares = _shares({source: len(transitions[source]) for source in sources}, limit)
        for source, steps in transitions.items():
            self.shared.say(f"world model, {source}: {shares[source]} of {len(steps)}")
            chosen = sorted(self._order(len(steps), source)[: shares[source]])
            names = [f"{source}/{n}" for n in chosen]
            picked = [steps[n] for n in chosen]
            yield from world_model_examples(picked, names, self.config.session.item_type)

    def _human_transitions(self, wanted: int | None) -> list[Transition]:
        """Of as many visits as it takes to draw `wanted` from; of all if it is `None`."""
        steps: list[Transition] = []
        for visit in self._visits:
            if wanted is not None and len(steps) >= 2 * wanted:
                break
            site = self.shared.sites.of_visit(len(visit.pages))
            steps += human_transitions(site, visit, self.config.seed)
        return steps

    def _counterfactual_transitions(self, wanted: int | None) -> list[Transition]:
        """K alternatives of human transitions, ratings and page actions alike."""
        k = self.config.k
        if not k:
            return []
        human = self._human_transitions(wanted if wanted is None else -(-wanted // k))
        actions = []
        for n, step in enumerate(human):
            key = stable_key(self.config.seed, "imagined", step.state.user_id, n)
            if step.action.kind == "rate":
                options = [Action("rate", step.action.target, value) for value in RATINGS]
            else:
                options = list(step.state.actions)
            others = uniform_alternatives(len(options), options.index(step.action), k, key)
            actions.append([options[n] for n in others])
        pairs = step_alternatives(
            self.shared.sites.site(), human, actions, self.shared.recommender
        )
        return [other for pair in pairs for other in pair.alternatives]

    def _rollout_transitions(self, wanted: int | None) -> list[Transition]:
        """All rollouts of the part, whatever is wanted: the schedule says how many."""
        config, shared = self.config, self.shared
        policy: Policy = random_policy
        if shared.generate is not None:
            people = {u: agent_user(self.view, u, config.session) for u in self.users}
            policy = generator_policy(
                shared.generate,
                people,
                shared.sites.items,
                config.session,
                shared.count_tokens,
            )
        schedule = replace(config.rollouts, episodes=self.episodes)
        users = [self.users[n] for n in self._order(len(self.users), "rollout users")]
        return collect_rollouts(
            shared.sites.site(),
            shared.recommender,
            users,
            schedule,
            policy=policy,
            seed=config.seed,
        )

    # --- ratings ---

    def _run_examples(self) -> Iterator[Example]:
        """Examples of the task "rating", of drawn runs of all users."""
        config, shared = self.config, self.shared
        runs: list[RatingRun] = []
        for user_id in self.users:
            own = shared.dataset.history(self.view.targets, user_id)
            runs += rating_runs(
                user_id, own[: config.ratings_per_user], config.longest_run, seed=config.seed
            )
        for place, n in enumerate(self._order(len(runs), "runs")):
            if place % 5000 == 0:
                shared.say(f"rating conversations: {place} of {len(runs)}")
            yield from run_examples(
                runs[n],
                shared.sites,
                config.session,
                seed=config.seed,
                count_tokens=shared.count_tokens,
            )

    def _targets(self) -> list[tuple[str, Interaction]]:
        """Target ratings in drawn order, at most `ratings_per_user` of each user."""
        config = self.config
        targets: list[tuple[str, Interaction]] = []
        for user_id in self.users:
            own = self.shared.dataset.history(self.view.targets, user_id)
            drawn = self._order(len(own), "ratings", user_id)[: config.ratings_per_user]
            targets += [(user_id, own[n]) for n in sorted(drawn)]
        return [targets[n] for n in self._order(len(targets), "targets")]

    def _targets_within(self, per_step: Mapping[str, int]) -> list[tuple[str, Interaction]]:
        """As many targets as the limits need, with so many examples of a task per target."""
        targets = self._targets()
        if any(task not in self.limits for task in per_step):
            return targets
        return targets[: max(-(-self.limits[task] // n) for task, n in per_step.items())]

    def _rating_examples(self) -> Iterator[Example]:
        """Reflection and imitation examples; with k = 0 the former become imitation too."""
        config, shared = self.config, self.shared
        reflected = "reflection" in config.tasks and config.k > 0
        plain = "imitation" in config.tasks or not reflected
        per_step = {"reflection": max(config.k, 1), "imitation": 1}
        targets = self._targets_within({t: n for t, n in per_step.items() if t in config.tasks})
        alternatives = Alternatives(config.k if reflected else 0, config.seed, shared.generate)
        counts: Counter[str] = Counter()
        asked, before = 0, shared.tally.figures()
        for first in range(0, len(targets), STEPS_AT_ONCE):
            shared.say(f"ratings: {first} of {len(targets)}, k = {config.k}")
            steps = rating_steps(
                shared.sites,
                targets[first : first + STEPS_AT_ONCE],
                config.session,
                alternatives,
                shared.count_tokens,
            )
            examples = [imitation_examples(steps)] if plain else []
            if reflected:
                limit = self.limits.get("reflection")
                if limit is not None:  # no more than can be used: a model takes its time
                    steps = steps[: -(-max(limit - asked, 0) // config.k)]
                asked += config.k * len(steps)
                texts, dropped = reasonings(
                    steps,
                    config.session,
                    seed=config.seed,
                    generate=shared.reflector.ask if shared.reflector else None,
                    tally=shared.tally,
                    shuffle=config.shuffle_reflections,
                )
                self.dropped.update(dropped)
                if shared.reflector:
                    now = shared.tally.figures()
                    self.replies.update({name: now[name] - n for name, n in before.items()})
                examples.append(reflection_examples(steps, texts))
            for example in chain(*examples):
                counts[example.task] += 1
                if counts[example.task] <= self.limits.get(example.task, counts[example.task]):
                    yield example


def _name(reflector: Reflector) -> str:
    return str(reflector.about.get("name", reflector.about["model"]))


def _shares(counts: Mapping[str, int], limit: int | None) -> dict[str, int]:
    """How many to take of each source: as even as the counts allow, `limit` together."""
    left = sum(counts.values()) if limit is None else limit
    shares = {}
    for place, name in enumerate(sorted(counts, key=lambda name: counts[name])):
        shares[name] = min(counts[name], left // (len(counts) - place))
        left -= shares[name]
    return shares
