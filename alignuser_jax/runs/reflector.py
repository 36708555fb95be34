"""Open the model that writes reflections: another one than the model that is trained on them.

A teacher and its student have tokenizers and chat formats of their own. Shards hold text, so
nothing of the teacher but what it wrote reaches the student.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alignuser_jax.driver.backend import Backend
from alignuser_jax.language import TextTokenizer
from alignuser_jax.runs.backend import (
    BackendChoice,
    OpenedBackend,
    estimated_tokens,
    recorded_backend,
)
from alignuser_jax.runs.experiment import Experiment
from alignuser_jax.runs.policy import claim_devices, make_engine, warm_up
from alignuser_jax.sampling import ServerConfig, ServerGenerator, TransportConfig
from alignuser_jax.text import Say

CONTEXT = 1024
"""Tokens of a question about a reflection with its reply that the engine has room for."""
STATES = 256
"""States of an automaton that the lines of a reflection need at most."""


def is_url(source: str) -> bool:
    """Whether a reflector's source is a server.

    Example:
        >>> is_url("http://localhost:8000/v1"), is_url("models/teacher")
        (True, False)
    """
    return source.startswith(("http://", "https://"))


@contextmanager
def open_reflector(
    source: str,
    experiment: Experiment,
    keep: Path,
    *,
    served_model: str = "",
    say: Say | None = None,
) -> Iterator[Backend]:
    """Open the model that writes reflections for the length of the block.

    Its answers are kept in `keep` and not asked for again.

    Args:
        source: A backbone (`model.files.backbone.ACCEPTED`), or the URL of an
            OpenAI-compatible server.
        experiment: Its engine's sizes and its dtype are used.
        keep: Folder of the answers.
        served_model: The name under which the server serves the model.
        say: Is told what the model is and what it did.

    Raises:
        ValueError: A URL has no `served_model`, or a backbone has one.
        FileNotFoundError: There is no such backbone.

    Example:
        >>> with open_reflector("teacher.gguf", experiment, out / "answers") as reflector:
        ...     build_shards(source, out, config, reflector=reflector)
    """
    if is_url(source) != bool(served_model):
        raise ValueError(
            f"--reflector={source} and --reflector_model={served_model!r}: a server needs the "
            "name of its model, and a backbone has none to give"
        )
    say = say or (lambda text: None)
    backend, experiment = (
        (_served(source, served_model), experiment)
        if is_url(source)
        else _loaded(source, experiment, say)
    )
    name = backend.engine["name"]
    choice = BackendChoice(record=str(keep / f"{name}.reflections.log"), part="reflections")
    with recorded_backend(OpenedBackend(backend, experiment), choice, say) as opened:
        yield opened.backend


def _served(url: str, model: str) -> Backend:
    generator = ServerGenerator(ServerConfig(model, TransportConfig((url.rstrip("/"),))))
    transport = generator.config.transport
    return Backend(
        generator,
        estimated_tokens,
        f"server: {model}",
        engine={"name": model.replace("/", "-"), **generator.about},
        concurrency=transport.concurrency,
    )


def _loaded(source: str, experiment: Experiment, say: Say) -> tuple[Backend, Experiment]:
    import jax.numpy as jnp

    from alignuser_jax.model import load_decoder, split
    from alignuser_jax.model.files.backbone import backbone_directory
    from alignuser_jax.training.checkpoint import weights_hash

    claim_devices(experiment.engine)
    directory = backbone_directory(source, experiment.dtype)
    decoder = load_decoder(directory, dtype=jnp.dtype(experiment.dtype))
    tokenizer = TextTokenizer.load(directory)
    _, lora, base = split(decoder)
    model = weights_hash((lora, base))
    geometry = dataclasses.replace(
        experiment.engine,
        context=max(CONTEXT + -CONTEXT % experiment.engine.chunk, experiment.engine.context),
        states=max(STATES, experiment.engine.states),
        pages=0,
    )
    experiment = dataclasses.replace(experiment, engine=geometry)
    engine = make_engine(experiment, decoder, tokenizer)
    del decoder  # the engine has its own copy
    name = Path(source).stem
    say(f"reflections by {name}, weights {model[:12]}")
    warm_up(engine, say)
    about = {"name": name, "tokenizer": tokenizer.fingerprint}
    backend = Backend(
        engine,
        tokenizer.count,
        model,
        engine=about | dataclasses.asdict(geometry),
        concurrency=engine.slots,
    )
    return backend, experiment
