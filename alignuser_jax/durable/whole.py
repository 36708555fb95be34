"""Write files as a whole, and refuse a folder that belongs to another run."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class JournalError(RuntimeError):
    """The journal cannot be used: it is damaged, in use, or belongs to another run."""


def write_whole(path: Path, text: str) -> None:
    """The file has its old content or its new one, never half of it."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def refuse_other_run(found: Any, given: Any, folder: str | Path) -> None:
    """Raise `JournalError` naming the fields in which two manifests differ."""
    before, now = _flat(found), _flat(given)
    missing = "(absent)"
    differences = [
        f"{name} was {before.get(name, missing)!r}, now {now.get(name, missing)!r}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name, missing) != now.get(name, missing)
    ]
    if differences:
        raise JournalError(
            f"{folder} holds another run: {'; '.join(differences)}. Give the same settings to "
            "resume it, or use another run folder"
        )


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    flat = {}
    for name, inner in value.items():
        flat |= _flat(inner, f"{prefix}.{name}" if prefix else str(name))
    return flat
