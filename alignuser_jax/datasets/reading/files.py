"""Which file of a folder is meant."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from alignuser_jax.datasets.reading.delimited import has_file


def the_file(source: Path, names: Sequence[str], what: str) -> Path:
    """`source` itself where it is a file, else the first of `names` (plain or `.gz`) in it.

    Raises `FileNotFoundError` where there is none.
    """
    if source.is_file():
        return source
    for name in names:
        if source.is_dir() and has_file(source, name):
            plain = source / name
            return plain if plain.is_file() else source / f"{name}.gz"
    where = f"no {what} in {source}" if source.is_dir() else f"{source} is no file or folder"
    raise FileNotFoundError(f"{where}: expected {', '.join(names)}, plain or .gz")


def matching_file(source: Path, patterns: Sequence[str], what: str) -> Path:
    """`source` itself where it is a file, else the only one in it that fits a glob of
    `patterns` (the first that fits any). Raises `FileNotFoundError` where there is none and
    `ValueError` where there are several."""
    if source.is_file():
        return source
    for pattern in patterns if source.is_dir() else ():
        found = sorted(path for path in source.glob(pattern) if path.is_file())
        if len(found) > 1:
            raise ValueError(
                f"{source} holds several files that may be {what}: "
                f"{', '.join(path.name for path in found)}; name one"
            )
        if found:
            return found[0]
    where = f"no {what} in {source}" if source.is_dir() else f"{source} is no file or folder"
    raise FileNotFoundError(f"{where}: expected a name like {', '.join(patterns)}")
