"""Build the shards of a stage, train it, or plan its training.

Each result has its place in the run folder:

    experiment.json  tokenizer/  shards/STAGE/  STAGE/checkpoints/  STAGE/model/ or adapter/

A step whose result is there is not done again, so a command that is run again goes on where it
was.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignuser_jax.alignment import BuildConfig, ShardSource, build_shards
from alignuser_jax.alignment.build import written_by
from alignuser_jax.alignment.parts import config_of
from alignuser_jax.datasets import Dataset
from alignuser_jax.driver.backend import Backend
from alignuser_jax.durable.whole import refuse_other
from alignuser_jax.language import TextTokenizer
from alignuser_jax.language.counting import TokenCounter
from alignuser_jax.personas import GivenPersonas
from alignuser_jax.randomness import stable_key
from alignuser_jax.runs.experiment import Experiment, resolved
from alignuser_jax.runs.policy import model_directory, tokenizer_of
from alignuser_jax.runs.second_round import adapter_folder, with_adapter_of
from alignuser_jax.shards import read_manifest
from alignuser_jax.text import Say
from alignuser_jax.views import policy_and_agent_users
from alignuser_jax.views.split import held_out_users

if TYPE_CHECKING:  # shards are built without jax
    import jax

    from alignuser_jax.model.decoder import Decoder
    from alignuser_jax.training.loop import TrainResult
    from alignuser_jax.training.plan import Plan


@dataclass(frozen=True)
class ShardOptions:
    """How one command's shards differ from the stage's own.

    Attributes:
        folder: Where they go; `None` for `RUN/shards/STAGE`. Shards with `changes` or
            `personas` need a folder of their own.
        changes: Fields of the stage's `BuildConfig` to their new values.
        personas: Personas that stand over those computed from the log.
        drop_failed: Whether examples whose request failed are left out; if not, one failure
            stops the build.
    """

    folder: Path | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    personas: GivenPersonas | None = None
    drop_failed: bool = False


def build_stage(
    experiment: Experiment,
    dataset: Dataset,
    run: Path,
    stage: str,
    options: ShardOptions | None = None,
    *,
    writer: Backend | None = None,
    reflector: Backend | None = None,
    say: Say | None = None,
) -> Path:
    """Build the shards of a stage from its policy users, unless they are there already.

    Args:
        experiment: The run's experiment.
        dataset: The run's data set.
        run: The run folder.
        stage: "pretrain" or "align".
        options: How these shards differ from the stage's own.
        writer: Writes reflections and takes greedy actions; `None` for templates and chance.
        reflector: Writes the reflections in place of `writer`.
        say: Is told how far the build is.

    Returns:
        The folder of the shards.

    Raises:
        ValueError: If the shards that are there were built from other data, settings, users or
            personas, or by another policy, or if no user of this data set has such a persona.
    """
    options = options or ShardOptions()
    personas = options.personas
    folder = options.folder or run / "shards" / stage
    row_tokens = experiment.stage(stage)[0].seq_len
    config = replace(experiment.stage(stage)[1], **options.changes).within_row(row_tokens)
    users = policy_and_agent_users(dataset, experiment.agents, experiment.seed)[0]
    if personas:
        summary = personas.told(users)  # refuses personas of other users
        if say:
            say(summary)
    if (folder / "manifest.json").is_file():
        by = written_by(writer, reflector)
        _check_shards(folder, dataset, config, users, by, personas)
    else:
        build_shards(
            ShardSource(dataset, users, personas),
            folder,
            config,
            writer,
            reflector=reflector,
            count_tokens=TokenCounter(tokenizer_of(experiment, dataset, run)),
            row_tokens=row_tokens,
            drop_failed=options.drop_failed,
            say=say,
        )
    return folder


def _check_shards(
    folder: Path,
    dataset: Dataset,
    config: BuildConfig,
    users: tuple[str, ...],
    by: Mapping[str, Any],
    personas: GivenPersonas | None,
) -> None:
    """Refuse shards that another command built."""
    manifest = read_manifest(folder)
    training = held_out_users(users, config.validation_share, config.seed)[0]
    now = {
        "dataset_hash": dataset.hash,
        **by,
        "users_hash": f"{stable_key(*training):x}",
        "config": config_of(config),
    }
    before = {name: manifest.get(name) for name in now}
    computed = "computed from the log"
    before["personas"] = manifest["labels"].get("personas", computed)
    now["personas"] = personas.label if personas else computed
    refuse_other(before, now, folder, option="--out folder", error=ValueError)


def start_decoder(
    experiment: Experiment,
    tokenizer: TextTokenizer,
    run: Path,
    stage: str,
    mesh: jax.sharding.Mesh | None = None,
) -> Decoder:
    """Return the decoder that a stage starts from.

    That is a random one for "pretrain", and for "align" the backbone (or the first stage's
    result) with fresh adapters, laid out over `mesh` if there is one.
    """
    import jax.numpy as jnp

    from alignuser_jax.model.files.weights import load_decoder
    from alignuser_jax.model.states import init_decoder

    dtype = jnp.dtype(experiment.dtype)
    if stage == "pretrain":
        config = experiment.scratch_decoder(tokenizer.vocab_size)
        return init_decoder(config, seed=experiment.seed, dtype=dtype)
    directory = model_directory(experiment, run)
    return load_decoder(directory, experiment.lora, dtype=dtype, mesh=mesh)


def plan_stage(
    experiment: Experiment,
    stage: str,
    mesh: Mapping[str, int],
    chip: str | None,
    changes: Mapping[str, Any] | None = None,
) -> Plan:
    """Return what training a stage would need and reach on a mesh of chips.

    Only the model's shape is read, and devices that are not here are simulated, so call it
    before jax has made any array.

    Args:
        experiment: The experiment.
        stage: "pretrain" or "align".
        mesh: Mesh axis to its size, as `parallel.mesh_sizes` takes it.
        chip: Name of the chip, "cpu" for this machine's; `None` for what is here.
        changes: Fields of the stage's `TrainConfig` to their new values.
    """
    import jax
    import jax.numpy as jnp

    from alignuser_jax.model import abstract_decoder, read_config
    from alignuser_jax.model.files.backbone import backbone_config_directory
    from alignuser_jax.parallel import make_mesh, mesh_sizes
    from alignuser_jax.training.plan import devices_for, plan

    config = replace(experiment.stage(stage)[0], **(changes or {}))
    present = len(jax.devices()) if "fsdp" not in mesh else 1
    count = max(present, math.prod(mesh.values()))
    devices = devices_for(count)
    over = make_mesh(**mesh_sizes(mesh, count), devices=devices)
    if experiment.backbone:
        directory = backbone_config_directory(experiment.backbone, experiment.dtype)
        shape = read_config(directory / "config.json")
    else:
        shape = experiment.scratch_decoder(experiment.vocabulary)
    dtype = jnp.dtype(experiment.dtype)
    lora = experiment.lora if config.trainable == "lora" else None
    decoder = abstract_decoder(shape, lora, dtype=dtype, param_dtype=dtype)
    tasks = sorted(config.mix or experiment.stage(stage)[1].tasks)
    return plan(decoder, tasks, config, over, chip or devices[0].device_kind)


@dataclass(frozen=True)
class TrainOptions:
    """How one command's training differs from the stage's own.

    Attributes:
        shards: Folder of the shards; `None` for `RUN/shards/STAGE`.
        out: Folder of the result; `None` for `RUN/STAGE`.
        mesh: The devices (`parallel.make_mesh`); `None` trains on the first device.
        checkpoints: Path of the checkpoints; `None` for a folder in `out`.
        profile: First and last step that the profiler records.
        changes: Fields of the stage's `TrainConfig` to their new values.
        adapter_from: Folder of a run, a training or an adapter whose weights the adapter starts
            with; `None` starts with fresh ones.
    """

    shards: Path | None = None
    out: Path | None = None
    mesh: jax.sharding.Mesh | None = None
    checkpoints: str | None = None
    profile: tuple[int, int] | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    adapter_from: Path | None = None


def train_stage(
    experiment: Experiment,
    dataset: Dataset,
    run: Path,
    stage: str,
    options: TrainOptions | None = None,
) -> TrainResult:
    """Train one stage, or finish a training that was interrupted.

    Args:
        experiment: The run's experiment.
        dataset: The run's data set.
        run: The run folder.
        stage: "pretrain" or "align".
        options: How this training differs from the stage's own.

    Raises:
        ValueError: If settings, shards and devices do not fit together, or the adapter to start
            from has another shape or base.
        FileNotFoundError: If shards, backbone or adapter are not there.
    """
    from alignuser_jax.model.files.backbone import backbone_name
    from alignuser_jax.training.loop import RunOptions, train_decoder
    from alignuser_jax.training.step import check_rows

    options = options or TrainOptions()
    config = replace(experiment.stage(stage)[0], **options.changes)
    if options.mesh is not None:
        check_rows(config, options.mesh)  # before anything is loaded
    if options.adapter_from is not None:
        if config.trainable != "lora":
            raise ValueError(
                f"--adapter_from={options.adapter_from}: stage {stage!r} trains all weights "
                "and has no adapter; it is for a stage with trainable='lora'"
            )
        adapter_folder(options.adapter_from)
    shards = options.shards or run / "shards" / stage
    tokenizer = tokenizer_of(experiment, dataset, run)
    validation = shards / "validation"
    base = backbone_name(experiment.backbone, experiment.dtype) if experiment.backbone else ""
    decoder = start_decoder(experiment, tokenizer, run, stage, options.mesh)
    about = {"experiment": resolved(experiment), "stage": stage, "dataset": dataset.hash}
    if options.adapter_from is not None:
        decoder, about["adapter_from"] = with_adapter_of(decoder, options.adapter_from, base)
    return train_decoder(
        config,
        decoder,
        shards,
        tokenizer,
        options.out or run / stage,
        RunOptions(
            mesh=options.mesh,
            checkpoints_dir=options.checkpoints,
            validation_dir=validation if validation.is_dir() else None,
            base=base,
            about=about,
            profile=options.profile,
        ),
    )
