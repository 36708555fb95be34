"""The steps from a dataset to a simulated A/B test, each with its place in a run folder.

    run/experiment.json  tokenizer/  shards/<stage>/  <stage>/{checkpoints,model|adapter}/

A step whose result is there is not done again, so running a command again goes on where it was.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from alignuser_jax.alignment import BuildConfig, build_shards, policy_and_agent_users
from alignuser_jax.alignment.parts import config_of
from alignuser_jax.alignment.reflections import TEMPLATE
from alignuser_jax.alignment.split import held_out_users
from alignuser_jax.datasets import Dataset
from alignuser_jax.experiment import Experiment, resolved
from alignuser_jax.language import TextTokenizer, train_sentencepiece
from alignuser_jax.personas import GivenPersonas
from alignuser_jax.records import Generator, stable_key
from alignuser_jax.training.records_io import read_examples, read_manifest

Say = Callable[[str], None]


class Stopwatch:
    """Seconds per named stage, in order."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            passed = time.perf_counter() - started
            self.seconds[name] = self.seconds.get(name, 0.0) + passed


def open_run(experiment: Experiment, dataset: Dataset, run: str | Path) -> Path:
    """The run folder, holding this experiment and no other. Raises `ValueError` naming what
    differs where the folder belongs to other settings or other data."""
    run = Path(run)
    path = run / "experiment.json"
    now = {"dataset": dataset.name, "dataset_hash": dataset.hash, **resolved(experiment)}
    del now["engine"]  # a simulation's own manifest holds its geometry; training has none
    now = json.loads(json.dumps(now))
    if path.is_file():
        _refuse_other(json.loads(path.read_text()), now, run, "--run")
        return run
    run.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(now, indent=1, sort_keys=True) + "\n")
    os.replace(partial, path)
    return run


def _refuse_other(there: Any, now: Any, folder: Path, flag: str) -> None:
    before, after = _flat(there), _flat(now)
    differing = [k for k in sorted({*before, *after}) if before.get(k) != after.get(k)]
    if differing:
        shown = [f"{k}: {before.get(k)} then, {after.get(k)} now" for k in differing[:8]]
        raise ValueError(
            f"{folder} was made with other settings:\n  "
            + "\n  ".join(shown)
            + f"\ngive the same ones to go on, or another {flag} folder"
        )


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    parts = (_flat(v, f"{prefix}.{k}" if prefix else k) for k, v in value.items())
    return {k: v for part in parts for k, v in part.items()}


# --- training -----------------------------------------------------------------------------


def tokenizer_of(experiment: Experiment, dataset: Dataset, run: Path) -> TextTokenizer:
    """The backbone's tokenizer; for a model from scratch one trained on a sample of the
    first stage's own text, made once."""
    if experiment.backbone:
        return TextTokenizer.load(_model_directory(experiment, run))
    folder = run / "tokenizer"
    if not (folder / "sentencepiece.model").exists():
        sample = run / "tokenizer-sample"
        config = experiment.stage("pretrain")[1]
        config = replace(
            config,
            tasks=("world_model", "visit", "reflection"),
            limits={"world_model": 600, "visit": 600, "reflection": 600},
            rollouts=replace(config.rollouts, episodes=30),
            session=replace(config.session, context_tokens=None),
            validation_share=0.0,
        )
        users = policy_and_agent_users(dataset, experiment.agents, experiment.seed)[0]
        build_shards(dataset, sample, config, users=users[:400])
        texts = [m.content for example in read_examples(sample) for m in example.messages]
        genres = sorted({genre for item in dataset.items.values() for genre in item.genres})
        titles = [item.title for item in dataset.items.values()]
        train_sentencepiece([*texts, *titles], experiment.vocabulary, folder, genres)
    return TextTokenizer.load(folder)


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
    _refuse_other(before, now, folder, "--out")


def _model_directory(experiment: Experiment, run: Path) -> Path:
    """The backbone's directory (a hub id is downloaded), or the first stage's model."""
    from alignuser_jax.model import local_directory

    if experiment.backbone:
        return local_directory(experiment.backbone)
    directory = run / "pretrain" / "model"
    if not directory.is_dir():
        raise FileNotFoundError(f"no model in {directory}: train the first stage")
    return directory


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


def load_policy(experiment: Experiment, run: Path, adapter: str | Path | None = None):
    """`(decoder, tokenizer, policy id)`: the backbone with the adapter of the "align" stage,
    or with another one; `adapter=""` is the backbone alone."""
    import jax.numpy as jnp

    from alignuser_jax.model import load_decoder, split
    from alignuser_jax.training.checkpoint import weights_hash

    directory = _model_directory(experiment, run)
    adapter = run / "align" / "adapter" if adapter is None else adapter
    adapters = {"policy": adapter} if str(adapter) else None
    decoder = load_decoder(directory, adapters=adapters, dtype=jnp.dtype(experiment.dtype))
    _, lora, base = split(decoder)
    tokenizer = TextTokenizer.load(directory)
    return decoder, tokenizer, weights_hash((lora, base))


def make_engine(experiment: Experiment, decoder, tokenizer):
    """The engine with the experiment's geometry, or one for each part of this host's devices;
    adapters are merged into the weights, of which the engine has a copy of its own: forget
    `decoder`, then `warm_up` takes the room of the cache."""
    from alignuser_jax.model import merge_lora
    from alignuser_jax.sampling import make_replicas

    return make_replicas(merge_lora(decoder), tokenizer, experiment.engine)


def warm_up(engine, say: Say | None = None) -> None:
    """Compiles all that the engine may need, or has it read from the compilation cache:
    nothing is compiled afterwards, whatever is asked. `say` is told so."""
    from alignuser_jax.sampling.compiling import counted

    say = say or (lambda text: None)
    say(f"engine: compiling ahead for {engine.slots} slots of {engine.context} tokens")
    started = time.perf_counter()
    with counted() as compiled:
        engine.warm_up()
    say(
        f"engine: ready in {time.perf_counter() - started:.1f} s: {compiled.programs} XLA "
        f"programs, {compiled.cached} of them from the compilation cache"
    )
