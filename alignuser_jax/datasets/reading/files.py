"""Choose the file of a folder that an adapter should read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from alignuser_jax.datasets.reading.delimited import has_file


def the_file(source: Path, names: Sequence[str], what: str) -> Path:
    """Return `source` if it is a file, else the first of `names` (plain or `.gz`) in it.

    Args:
        source: A file or a folder.
        names: Names of files, in order of preference.
        what: What the file should be, for the error message.

    Raises:
        FileNotFoundError: If there is none.
    """
    if source.is_file():
        return source
    for name in names:
        if source.is_dir() and has_file(source, name):
            plain = source / name
            return plain if plain.is_file() else source / f"{name}.gz"
    where = (
        f"no {what} in {source}"
        if source.is_dir()
        else f"{source} is neither a file nor a folder"
    )
    raise FileNotFoundError(f"{where}: expected {', '.join(names)}, plain or .gz")


def matching_file(source: Path, patterns: Sequence[str], what: str) -> Path:
    """Return `source` if it is a file, else the only file in it that matches a pattern.

    Args:
        source: A file or a folder.
        patterns: Glob patterns, in order of preference: the first that matches counts.
        what: What the file should be, for the error message.

    Raises:
        FileNotFoundError: If no file matches.
        ValueError: If several files match.
    """
    if source.is_file():
        return source
    for pattern in patterns if source.is_dir() else ():
        matches = sorted(path for path in source.glob(pattern) if path.is_file())
        if len(matches) > 1:
            raise ValueError(
                f"{source} holds several files that may be {what}: "
                f"{', '.join(path.name for path in matches)}; name one"
            )
        if matches:
            return matches[0]
    where = (
        f"no {what} in {source}"
        if source.is_dir()
        else f"{source} is neither a file nor a folder"
    )
    raise FileNotFoundError(f"{where}: expected a name like {', '.join(patterns)}")
