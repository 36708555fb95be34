"""Check that a disk has room before something large is written to it."""

from __future__ import annotations

import shutil
from pathlib import Path


def require_room(folder: Path, needed_bytes: int, what: str) -> None:
    """Refuse to begin what would fill the disk.

    Args:
        folder: An existing folder on the disk.
        needed_bytes: What will be written there, together.
        what: What is written, for the message.

    Raises:
        OSError: If the disk has less room; says how much is needed and what is left.

    Example:
        >>> require_room(Path("."), 10, "a note")
    """
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise OSError(
            f"{what} needs {needed_bytes / 1e6:,.0f} MB, the disk of {folder} has "
            f"{free / 1e6:,.0f} MB left: make room, or choose a folder on another disk (the "
            "cache is in XDG_CACHE_HOME)"
        )
