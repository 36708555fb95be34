"""From a dataset to shards: which users and ratings become which examples, and their labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from alignuser_jax.alignment.config import BuildConfig
from alignuser_jax.alignment.parts import Common, Part
from alignuser_jax.alignment.reflections import TEMPLATE
from alignuser_jax.datasets import Dataset
from alignuser_jax.personas import GivenPersonas
from alignuser_jax.records import (
    Generator,
    Recommender,
)
from alignuser_jax.views.split import held_out_users
from alignuser_jax.views.view import training_view


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
    personas: GivenPersonas | None = None,
    progress: Callable[[str], None] | None = None,
    drop_failed: bool = False,
) -> dict[str, Any]:
    """Writes `<out_dir>` and, where users are held out, `<out_dir>/validation`; returns the
    manifest. The same arguments give the same bytes.

    `users`: whose ratings may become targets (default: all); policies must be built from users
    other than the agents (`split.policy_and_agent_users`). `recommender` fills pages (exposure
    and imagined pages); default: ALS fitted on the profile part. `generator` writes the
    reflections, draws alternatives and acts in rollouts; without it reflections are the
    labelled template and rollouts random. `policy_id` names it in the manifest.
    `count_tokens` must be given where `config.session.context_tokens` is. `personas` stand
    over those computed from the log. Where requests to the generator fail, `RequestsFailed` is
    raised and nothing written; with `drop_failed` what they were for is left out and counted
    (an action of a rollout cannot be).
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
    view = training_view(dataset, config.profile_share, personas)
    common = Common(
        dataset, view, config, recommender, generator, count_tokens, progress, drop_failed
    )
    out_dir = Path(out_dir)
    if validation:
        share = len(validation) / len(training)
        limits = {task: max(1, round(n * share)) for task, n in config.limits.items()}
        episodes = max(1, round(config.rollouts.episodes * share))
        part = Part(common, validation, limits, episodes)
        part.write(out_dir / "validation", policy_id, "validation")
    return Part(common, training, config.limits, config.rollouts.episodes).write(
        out_dir, policy_id, "training"
    )
