"""Load the policy of a run and open an engine on it."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from alignuser_jax.alignment import build_shards
from alignuser_jax.datasets import Dataset
from alignuser_jax.language import TextTokenizer, train_sentencepiece
from alignuser_jax.runs.experiment import Experiment
from alignuser_jax.shards import read_examples
from alignuser_jax.text import Say
from alignuser_jax.views import policy_and_agent_users


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


def _model_directory(experiment: Experiment, run: Path) -> Path:
    """The backbone's directory (a hub id is downloaded), or the first stage's model."""
    from alignuser_jax.model import local_directory

    if experiment.backbone:
        return local_directory(experiment.backbone)
    directory = run / "pretrain" / "model"
    if not directory.is_dir():
        raise FileNotFoundError(f"no model in {directory}: train the first stage")
    return directory


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
    from alignuser_jax.parallel.compiling import counted

    say = say or (lambda text: None)
    say(f"engine: compiling ahead for {engine.slots} slots of {engine.context} tokens")
    started = time.perf_counter()
    with counted() as compiled:
        engine.warm_up()
    say(
        f"engine: ready in {time.perf_counter() - started:.1f} s: {compiled.programs} XLA "
        f"programs, {compiled.cached} of them from the compilation cache"
    )
