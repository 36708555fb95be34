"""Build shards from a dataset: which users and ratings become examples, and their labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from alignuser_jax.alignment.config import BuildConfig
from alignuser_jax.alignment.counterfactuals import Generate
from alignuser_jax.alignment.parts import Part
from alignuser_jax.alignment.reflecting.templates import TEMPLATE
from alignuser_jax.alignment.shared import Reflector, Shared
from alignuser_jax.datasets import Dataset
from alignuser_jax.driver import Backend
from alignuser_jax.personas import GivenPersonas
from alignuser_jax.records import Completion, CountTokens, Recommender, Request
from alignuser_jax.sampling import generate
from alignuser_jax.sampling.generate import check_answered
from alignuser_jax.text import Say
from alignuser_jax.views import held_out_users, training_view


@dataclass(frozen=True)
class ShardSource:
    """What shards are built from.

    Attributes:
        dataset: The log.
        users: Whose ratings may become targets (default: all). A policy must be built from
            users other than the agents (`views.policy_and_agent_users`).
        personas: Personas that replace those computed from the log.
        recommender: Fills pages, among filler and where actions lead (default: ALS, fitted on
            the profile part when it is first needed).
    """

    dataset: Dataset
    users: Sequence[str] | None = None
    personas: GivenPersonas | None = None
    recommender: Recommender | None = None

    def target_users(self) -> tuple[str, ...]:
        """Return the users; raises `ValueError` if there are none, or unknown ones."""
        every = self.dataset.user_ids
        users = tuple(every if self.users is None else self.users)
        if not users:
            raise ValueError("no users to build from: pass user ids, or None for all")
        if unknown := sorted(set(users) - set(every)):
            raise ValueError(f"{len(unknown)} unknown users, the first is {unknown[0]!r}")
        return users


def build_shards(
    source: ShardSource,
    out_dir: str | Path,
    config: BuildConfig,
    writer: Backend | None = None,
    *,
    reflector: Backend | None = None,
    count_tokens: CountTokens | None = None,
    row_tokens: int | None = None,
    drop_failed: bool = False,
    say: Say | None = None,
) -> dict[str, Any]:
    """Build the examples of some users and write them as shards.

    If users are held out for validation, their part is written to `<out_dir>/validation`. The
    same arguments give the same bytes.

    Args:
        source: The log and what belongs to it.
        out_dir: Folder of the shards.
        config: What is built.
        writer: Writes the reflections, draws alternatives and acts in rollouts. Without it
            reflections are the labelled template, and alternatives and rollouts random.
        reflector: Writes the reflections in place of `writer`: another model, with a tokenizer
            of its own.
        count_tokens: Counts tokens as the model that will be trained does (default: as
            `writer` does). Needed where `config.session.context_tokens` is set.
        row_tokens: Tokens of a row of the training, `TrainConfig.seq_len`. Conversations start
            anew before they exceed it, and an example that still would is refused; the
            manifest's `fit` counts both. `None` refuses nothing.
        drop_failed: Leave out, and count, what failed requests were for, instead of raising.
            An action of a rollout cannot be left out.
        say: Prints a line of progress.

    Returns:
        The manifest of the training part.

    Raises:
        ValueError: There are no users or unknown ones, `count_tokens` is missing, or no
            example can be made.
        RequestsFailed: Requests to the writer failed; nothing is written.
        TooFewKept: A model writes too few reflections that can be used; nothing is written.

    Example:
        >>> policy_users, _ = policy_and_agent_users(dataset, n_agents=200)
        >>> source = ShardSource(dataset, users=policy_users)
        >>> manifest = build_shards(source, "shards/align", BuildConfig(k=4))
        >>> manifest["tasks"]["reflection"]["count"]
        12000
    """
    users = source.target_users()
    if row_tokens is not None:
        config = config.within_row(row_tokens)
    training, validation = held_out_users(users, config.validation_share, config.seed)
    shared = replace(
        _shared(source, config, writer, count_tokens, drop_failed, say), row_tokens=row_tokens
    )
    if by := reflector or writer:
        shared.reflector = Reflector(_asking(by, drop_failed), _about(by))
    policy_id = written_by(writer, reflector)["policy_id"]
    out_dir = Path(out_dir)
    if validation:
        share = len(validation) / len(training)
        limits = {task: max(1, round(n * share)) for task, n in config.limits.items()}
        episodes = max(1, round(config.rollouts.episodes * share))
        part = Part(shared, validation, limits, episodes)
        part.write(out_dir / "validation", policy_id, "validation")
    part = Part(shared, training, config.limits, config.rollouts.episodes)
    return part.write(out_dir, policy_id, "training")


ABOUT_MODEL = ("name", "tokenizer")
"""What a manifest says of a reflector beside its id, where the back end tells it."""


def written_by(writer: Backend | None, reflector: Backend | None) -> dict[str, Any]:
    """Return what a manifest says of who writes: `policy_id`, and `reflector` in detail.

    Args:
        writer: Writes what templates and chance do not.
        reflector: Writes the reflections in place of `writer`.
    """
    by = writer or reflector
    about = _about(reflector or writer)
    return {"policy_id": by.policy_id if by else TEMPLATE, "reflector": about}


def _about(backend: Backend | None) -> dict[str, Any]:
    if backend is None:
        return {"model": TEMPLATE}
    about = {name: backend.engine[name] for name in ABOUT_MODEL if name in backend.engine}
    return {"model": backend.policy_id, **about}


def _shared(
    source: ShardSource,
    config: BuildConfig,
    writer: Backend | None,
    count_tokens: CountTokens | None,
    drop_failed: bool,
    say: Say | None,
) -> Shared:
    """Check the arguments of `build_shards` and gather what both parts share."""
    if writer is not None and writer.policy_id == TEMPLATE:
        raise ValueError(
            f"the writer's policy_id is {TEMPLATE!r}, which labels reflections without a "
            "model: name the model"
        )
    if count_tokens is None and writer is not None:
        count_tokens = writer.count_tokens
    if config.session.context_tokens is not None and count_tokens is None:
        raise ValueError("session.context_tokens is set, so count_tokens is needed: pass it")
    return Shared(
        source.dataset,
        training_view(source.dataset, config.profile_share, source.personas),
        config,
        source.recommender,
        _asking(writer, drop_failed) if writer else None,
        count_tokens,
        say or (lambda text: None),
    )


def _asking(writer: Backend, drop_failed: bool) -> Generate:
    """A function that answers a batch of requests, or raises where some failed."""

    def ask(requests: Sequence[Request]) -> list[Completion]:
        completions = generate(writer.generator, requests)
        if not drop_failed:
            check_answered(completions, requests[0].purpose if requests else "none")
        return completions

    return ask
