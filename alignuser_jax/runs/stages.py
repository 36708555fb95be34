"""The steps from a dataset to a simulated A/B test, each with its place in a run folder.

    run/experiment.json  tokenizer/  shards/<stage>/  <stage>/{checkpoints,model|adapter}/

A step whose result is there is not done again, so running a command again goes on where it was.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from alignuser_jax.alignment import BuildConfig, build_shards
from alignuser_jax.alignment.parts import config_of
from alignuser_jax.alignment.reflections import TEMPLATE
from alignuser_jax.datasets import Dataset
from alignuser_jax.durable.whole import refuse_other
from alignuser_jax.language import TextTokenizer
from alignuser_jax.personas import GivenPersonas
from alignuser_jax.randomness import stable_key
from alignuser_jax.records import Generator
from alignuser_jax.runs.experiment import Experiment, resolved
from alignuser_jax.runs.policy import _model_directory, tokenizer_of
from alignuser_jax.shards import read_manifest
from alignuser_jax.text import Say
from alignuser_jax.views import policy_and_agent_users
from alignuser_jax.views.split import held_out_users

# --- training -----------------------------------------------------------------------------


def build_stage(
    experiment: Experiment,
    dataset: Dataset,
    run: Path,
    stage: str,
    *,
    generator: Generator | None = None,
    policy_id: str | None = None,
    folder: Path | None = None,
    personas: GivenPersonas | None = None,
    say: Say | None = None,
    drop_failed: bool = False,
    **changes: Any,
) -> Path:
    """The stage's shards, built from the policy's users only; `changes` to its `BuildConfig`
    and shards with given `personas` go to a `folder` of their own. `drop_failed`: see
    `build_shards`. Raises `ValueError` where the shards there were built from other data,
    settings, users or personas or by another policy, and where `personas` has no such user."""
    folder = folder or run / "shards" / stage
    config = replace(experiment.stage(stage)[1], **changes)
    users = policy_and_agent_users(dataset, experiment.agents, experiment.seed)[0]
    if personas:
        told = personas.told(users)
        if say:
            say(told)
    if (folder / "manifest.json").is_file():
        _check_shards(folder, dataset, config, users, policy_id or TEMPLATE, personas)
    else:
        named = {} if policy_id is None else {"policy_id": policy_id}
        build_shards(
            dataset,
            folder,
            config,
            users=users,
            generator=generator,
            count_tokens=tokenizer_of(experiment, dataset, run).count,
            personas=personas,
            progress=say,
            drop_failed=drop_failed,
            **named,
        )
    return folder


def _check_shards(
    folder: Path,
    dataset: Dataset,
    config: BuildConfig,
    users: tuple[str, ...],
    policy_id: str,
    personas: GivenPersonas | None,
) -> None:
    there = read_manifest(folder)
    training = held_out_users(users, config.validation_share, config.seed)[0]
    now = {
        "dataset_hash": dataset.hash,
        "policy_id": policy_id,
        "users_hash": f"{stable_key(*training):x}",
        "config": config_of(config),
    }
    before = {name: there.get(name) for name in now}
    computed = "computed from the log"
    before["personas"] = there["labels"].get("personas", computed)
    now["personas"] = personas.label if personas else computed
    refuse_other(before, now, folder, option="--out folder", error=ValueError)


def start_decoder(
    experiment: Experiment, tokenizer: TextTokenizer, run: Path, stage: str, mesh=None
):
    """The decoder that a stage starts from: random before "pretrain", else the backbone (or
    the first stage's result) with fresh adapters, laid out over `mesh` where one is given."""
    import jax.numpy as jnp

    from alignuser_jax.model import init_decoder, load_decoder

    dtype = jnp.dtype(experiment.dtype)
    if stage == "pretrain":
        config = replace(experiment.decoder, vocab_size=tokenizer.vocab_size)
        return init_decoder(config, seed=experiment.seed, dtype=dtype)
    directory = _model_directory(experiment, run)
    return load_decoder(directory, experiment.lora, dtype=dtype, mesh=mesh)


def plan_stage(experiment: Experiment, stage: str, mesh: Mapping[str, int], chip: str | None):
    """What training a stage would need and reach on a mesh of chips (`training.plan.Plan`).

    Only the shape of the model is read, and devices that are not here are simulated; call it
    before jax has made any array. `chip` None: the one that is here."""
    import jax
    import jax.numpy as jnp

    from alignuser_jax.model import abstract_decoder, config_directory, read_config
    from alignuser_jax.parallel import make_mesh, mesh_sizes
    from alignuser_jax.training.plan import devices_for, plan

    config = experiment.stage(stage)[0]
    here = len(jax.devices()) if "fsdp" not in mesh else 1
    count = max(here, math.prod(mesh.values()))
    devices = devices_for(count)
    over = make_mesh(**mesh_sizes(mesh, count), devices=devices)
    if experiment.backbone:
        shape = read_config(config_directory(experiment.backbone) / "config.json")
    else:
        shape = replace(experiment.decoder, vocab_size=experiment.vocabulary)
    dtype = jnp.dtype(experiment.dtype)
    lora = experiment.lora if config.trainable == "lora" else None
    decoder = abstract_decoder(shape, lora, dtype=dtype, param_dtype=dtype)
    tasks = sorted(config.mix or experiment.stage(stage)[1].tasks)
    return plan(decoder, tasks, config, over, chip or devices[0].device_kind)


def train_stage(
    experiment: Experiment,
    dataset: Dataset,
    run: Path,
    stage: str,
    *,
    shards: Path | None = None,
    out: Path | None = None,
    mesh=None,
    checkpoints: str | None = None,
    profile: tuple[int, int] | None = None,
    **changes: Any,
):
    """Train one stage (or finish it); returns the `TrainResult`.

    `mesh`: the devices (`parallel.make_mesh`); without one the first device trains.
    `checkpoints`, `profile`: see `training.loop.train`. `changes` are to the stage's
    `TrainConfig`."""
    from alignuser_jax.training.loop import train
    from alignuser_jax.training.step import check_rows

    config = replace(experiment.stage(stage)[0], **changes)
    if mesh is not None:
        check_rows(config, mesh)  # before anything is loaded
    shards = shards or run / "shards" / stage
    tokenizer = tokenizer_of(experiment, dataset, run)
    validation = shards / "validation"
    return train(
        config,
        start_decoder(experiment, tokenizer, run, stage, mesh),
        shards,
        tokenizer,
        out or run / stage,
        mesh=mesh,
        checkpoints_dir=checkpoints,
        validation_dir=validation if validation.is_dir() else None,
        base=experiment.backbone,
        about={"experiment": resolved(experiment), "stage": stage, "dataset": dataset.hash},
        profile=profile,
    )
