"""Load the policy of a run, and open an engine on it."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from alignuser_jax.alignment import ShardSource, build_shards
from alignuser_jax.datasets import Dataset
from alignuser_jax.driver import waiting
from alignuser_jax.language import TextTokenizer, train_sentencepiece
from alignuser_jax.runs.experiment import Experiment
from alignuser_jax.shards import read_examples
from alignuser_jax.text import Say
from alignuser_jax.views import policy_and_agent_users
from alignuser_jax.world import readable

if TYPE_CHECKING:  # datasets and worlds work without jax
    from alignuser_jax.model.decoder import Decoder
    from alignuser_jax.sampling import EngineConfig
    from alignuser_jax.sampling.engine.engine import Engine
    from alignuser_jax.sampling.replicas import Replicas


def tokenizer_of(experiment: Experiment, dataset: Dataset, run: Path) -> TextTokenizer:
    """Return the backbone's tokenizer, or for a model from scratch the run's own.

    The run's own is trained once, on a sample of the first stage's text and all titles.
    """
    if experiment.backbone:
        return TextTokenizer.load(model_directory(experiment, run))
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
        build_shards(ShardSource(dataset, users[:400]), sample, config)
        texts = [m.content for example in read_examples(sample) for m in example.messages]
        genres = sorted({genre for item in dataset.items.values() for genre in item.genres})
        titles = [item.title for item in readable(dataset.items).values()]
        train_sentencepiece([*texts, *titles], experiment.vocabulary, folder, genres)
    return TextTokenizer.load(folder)


def model_directory(experiment: Experiment, run: Path) -> Path:
    """Return the backbone's directory, or that of the first stage's model.

    A hub id is downloaded, a GGUF file imported into the cache.

    Raises:
        FileNotFoundError: If the first stage has not been trained.
    """
    from alignuser_jax.model.files.backbone import backbone_directory

    if experiment.backbone:
        return backbone_directory(experiment.backbone, experiment.dtype)
    directory = run / "pretrain" / "model"
    if not directory.is_dir():
        raise FileNotFoundError(
            f"no model in {directory}: train the first stage (alignuser train --stage=pretrain)"
        )
    return directory


def load_policy(
    experiment: Experiment, run: Path, adapter: str | Path | None = None
) -> tuple[Decoder, TextTokenizer, str]:
    """Load the backbone with an adapter.

    Args:
        experiment: The run's experiment.
        run: The run folder.
        adapter: Folder of the adapter; `None` for that of the "align" stage, "" for none.

    Returns:
        The decoder, its tokenizer, and the policy id: a hash of all weights.
    """
    import jax.numpy as jnp

    from alignuser_jax.model import load_decoder, split
    from alignuser_jax.training.checkpoint import weights_hash

    directory = model_directory(experiment, run)
    adapter = run / "align" / "adapter" if adapter is None else adapter
    adapters = {"policy": adapter} if str(adapter) else None
    decoder = load_decoder(directory, adapters=adapters, dtype=jnp.dtype(experiment.dtype))
    _, lora, base = split(decoder)
    tokenizer = TextTokenizer.load(directory)
    return decoder, tokenizer, weights_hash((lora, base))


def policy_note(experiment: Experiment, decoder: Decoder) -> str:
    """Return the experiment's note, with what was loaded of adapters: a config cannot know.

    Args:
        experiment: The run's experiment.
        decoder: Its policy, before its adapters are merged.

    Example:
        >>> policy_note(experiment, decoder)  # doctest: +SKIP
        'Qwen3-8B; with a LoRA adapter of rank 16'
    """
    rank = decoder.lora.rank
    loaded = f"with a LoRA adapter of rank {rank}" if rank else "without an adapter"
    return f"{experiment.note}; {loaded}"


def claim_devices(geometry: EngineConfig) -> None:
    """Let JAX show the devices that the engines want on a CPU; call it before JAX starts."""
    from alignuser_jax.parallel import show_cpu_devices

    if geometry.cpu_engines > 1:
        show_cpu_devices(geometry.cpu_engines * geometry.tensor)


def make_engine(
    experiment: Experiment, decoder: Decoder, tokenizer: TextTokenizer
) -> Engine | Replicas:
    """Build an engine of the experiment's geometry on this host's devices.

    Adapters are merged into the weights. The engine has its own copy of these, so delete
    `decoder` before `warm_up`, which allocates the KV cache.

    Returns:
        One engine, or replicas of it on parts of the devices, as the geometry says.
    """
    from alignuser_jax.model import merge_lora
    from alignuser_jax.sampling import make_replicas

    return make_replicas(merge_lora(decoder), tokenizer, experiment.engine)


def warm_up(engine: Engine | Replicas, say: Say | None = None) -> None:
    """Compile every program that the engine can need, so that no request waits for one.

    Programs in JAX's compilation cache are read from there. `say` is told how many there were.
    """
    from alignuser_jax.parallel.compiling import counted

    say = say or (lambda text: None)
    say(f"engine: compiling ahead for {engine.slots} slots of {engine.context} tokens")
    started = time.perf_counter()
    with counted() as compiled, waiting("engine: compiling", say):
        engine.warm_up()
    say(
        f"engine: ready in {time.perf_counter() - started:.1f} s: {compiled.programs} XLA "
        f"programs, {compiled.cached} of them from the compilation cache"
    )
