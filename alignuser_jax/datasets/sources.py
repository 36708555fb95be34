"""Describe where a dataset came from: file names, sizes and hashes for the manifest."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def source_of(format_name: str, files: Iterable[Path]) -> dict[str, Any]:
    """Return `{"format", "files": {name: {"bytes", "sha256"}}}`.

    Only the names of the files are recorded, not their folders, so that the manifest of one
    log is the same wherever it lies.
    """
    described = {}
    for path in files:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        described[path.name] = {"bytes": path.stat().st_size, "sha256": digest}
    return {"format": format_name, "files": described}
