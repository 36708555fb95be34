"""Find a backbone from what a person types: a folder, a Hugging Face id, or a GGUF file."""

from __future__ import annotations

from pathlib import Path

from alignuser_jax.model.files.gguf.importing import cached_import
from alignuser_jax.model.files.hub import config_directory, local_directory

GGUF_SUFFIX = ".gguf"


def backbone_directory(source: str | Path, dtype: str = "bfloat16") -> Path:
    """Return the local directory of a backbone; downloads or imports it once.

    Args:
        source: A model's directory, its id on the Hugging Face hub, or a GGUF file.
        dtype: Type of imported GGUF weights, "bfloat16" or "float32".

    Raises:
        FileNotFoundError: If there is no such file, directory or model.
        GgufError: If a GGUF file cannot be imported.
        ConnectionError: If a download fails.

    Example:
        >>> backbone_directory("models/smollm2")  # doctest: +SKIP
        PosixPath('models/smollm2')
    """
    if is_gguf(source):
        return cached_import(source, dtype)
    return local_directory(source)


def backbone_config_directory(source: str | Path, dtype: str = "bfloat16") -> Path:
    """Return a directory with the backbone's config.json; downloads no weights from the hub."""
    if is_gguf(source):
        return cached_import(source, dtype)
    return config_directory(source)


def is_gguf(source: str | Path) -> bool:
    """Whether the source names a GGUF file."""
    return Path(source).suffix == GGUF_SUFFIX and not Path(source).is_dir()
