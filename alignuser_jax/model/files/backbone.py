"""Find a backbone from what a person types: a folder, a hub id, a GGUF file, or a short name.

Whatever takes a backbone goes through here, so that the same words work everywhere.
"""

from __future__ import annotations

from pathlib import Path

from alignuser_jax.model.files.gguf.header import MAGIC
from alignuser_jax.model.files.gguf.importing import cached_import
from alignuser_jax.model.files.hf_config import CONFIG
from alignuser_jax.model.files.hub import (
    config_directory,
    local_directory,
    tokenizer_directory,
)
from alignuser_jax.model.files.published_wheels import WHEEL_MODELS, cached_wheel_model

GGUF_SUFFIX = ".gguf"

ACCEPTED = (
    "a model's folder (config.json and safetensors), its id owner/name on the Hugging Face "
    f"hub, a GGUF file, or the name of a published model ({', '.join(WHEEL_MODELS)})"
)
"""What a backbone may be, for help and errors."""


def backbone_directory(source: str | Path, dtype: str = "bfloat16") -> Path:
    """Return the local directory of a backbone; downloads or imports it once.

    A published model's name (`published_wheels.WHEEL_MODELS`) is only looked up in the cache,
    where `alignuser fetch-weights NAME` puts it. A folder of that name in the working
    directory comes first.

    Args:
        source: A model's directory, its id on the Hugging Face hub, a GGUF file, or the name
            of a published model.
        dtype: Type of the computation. Weights of a GGUF file are imported as bfloat16 for
            "bfloat16", and as float32 for any other.

    Raises:
        FileNotFoundError: If there is no such file, directory or model.
        ValueError: If it is a file of another format.
        GgufError: If a GGUF file cannot be imported.
        ConnectionError: If a download fails.

    Example:
        >>> backbone_directory("models/smollm2")  # doctest: +SKIP
        PosixPath('models/smollm2')
    """
    return _imported(source, dtype) or local_directory(_asked(source))


def backbone_config_directory(source: str | Path, dtype: str = "bfloat16") -> Path:
    """Return a directory with the backbone's config.json; downloads no weights from the hub."""
    return _imported(source, dtype) or config_directory(_asked(source))


def backbone_tokenizer_directory(source: str | Path) -> Path:
    """Return a directory with the backbone's tokenizer; downloads no weights from the hub."""
    return _imported(source, "bfloat16") or tokenizer_directory(_asked(source))


def backbone_name(source: str | Path, dtype: str = "bfloat16") -> str:
    """Return the name by which other tools (PEFT, vLLM) find a backbone.

    That is the name as it is for a hub id or a folder, and the folder in the cache for what was
    imported there.
    """
    return str(_imported(source, dtype) or source)


def is_gguf(source: str | Path) -> bool:
    """Whether the source names a GGUF file, by its suffix or by its first bytes."""
    path = Path(source)
    if path.is_file():
        with path.open("rb") as file:
            return path.suffix == GGUF_SUFFIX or file.read(len(MAGIC)) == MAGIC
    return path.suffix == GGUF_SUFFIX and not path.is_dir()


def _imported(source: str | Path, dtype: str) -> Path | None:
    """Return the folder in the cache of a GGUF file, None for anything else."""
    if not Path(source).exists() and str(source) in WHEEL_MODELS:
        source = cached_wheel_model(str(source))
    if is_gguf(source):
        return cached_import(source, "bfloat16" if dtype == "bfloat16" else "float32")
    return None


def _asked(source: str | Path) -> str | Path:
    """Return a folder or a hub id; refuse what is neither, and a folder of GGUF files."""
    path = Path(source)
    if path.is_file():
        raise ValueError(
            f"{path} is a file, and no GGUF file: a backbone is {ACCEPTED}. For safetensors "
            "give the folder that holds them"
        )
    if path.is_dir() and not (path / CONFIG).is_file():
        inside = sorted(file.name for file in path.glob(f"*{GGUF_SUFFIX}"))
        if inside:
            raise FileNotFoundError(
                f"{path} has no {CONFIG}, but {len(inside)} GGUF files: give one of them, such "
                f"as {path / inside[0]}"
            )
    elif not path.exists() and "/" not in str(source):
        raise FileNotFoundError(f"no directory {source}: a backbone is {ACCEPTED}")
    return source
