"""Write a file as a whole, and refuse a folder that was made with other settings.

A program can be killed at any moment. A reader must then find the old file or the new one,
never half of one, and a program that is started again must not mix two runs in one folder.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alignuser_jax import __version__

WRITTEN_BY = "written_by"
"""Key of a manifest that names the software; it is reported, and never compared."""

SOFTWARE = f"alignuser_jax {__version__}"
"""The value of `WRITTEN_BY` in what this version writes."""

MOST_DIFFERENCES = 8
"""How many differing settings an error message lists before it only counts the rest."""


class JournalError(RuntimeError):
    """The journal cannot be used: it is damaged, in use, or belongs to another run."""


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, and rename it to `path` when the block succeeds.

    The temporary path is `path` with ".partial" behind it, so that no reader that looks for a
    suffix takes what a killed program left. If the block raises, the temporary file is removed
    and `path` stays as it was.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "note.txt"
        >>> with replacing(path) as partial:
        ...     _ = partial.write_text("whole")
        >>> path.read_text()
        'whole'
    """
    path = Path(path)
    partial = path.with_name(f"{path.name}.partial")
    try:
        yield partial
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_whole(path: str | Path, text: str) -> None:
    """Write UTF-8 text: the file has its old content or its new one, never half of it."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def flat_settings(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested settings as one level: `{"a": {"b": 1}}` becomes `{"a.b": 1}`."""
    if not isinstance(value, dict) or (prefix and not value):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for name, inner in value.items():
        flat |= flat_settings(inner, f"{prefix}.{name}" if prefix else str(name))
    return flat


def differences(before: Any, now: Any) -> list[str]:
    """List the settings in which two nested dictionaries differ, one sentence each, sorted.

    A setting that one of the two lacks and that is None in the other is not a difference: a
    setting that a version adds says None for "as it was".
    """
    old, new = flat_settings(before), flat_settings(now)
    absent = "(absent)"
    return [
        f"{name} was {old.get(name, absent)!r}, now {new.get(name, absent)!r}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]


def refuse_other(
    before: Any,
    now: Any,
    folder: str | Path,
    *,
    option: str = "run folder",
    error: type[Exception] = JournalError,
) -> None:
    """Raise `error` if a folder's settings are not the ones given now.

    The message says which version of the software wrote the folder, since a setting can also
    differ because a version has another default or another name for it.

    Args:
        before: settings that the folder records, as plain nested dictionaries.
        now: settings of the program that wants to go on in the folder.
        folder: named in the message.
        option: what to give another value of to start afresh, such as "--run folder".
        error: the exception's type.
    """
    before, now = dict(before), dict(now)
    software = before.pop(WRITTEN_BY, "a version of alignuser_jax that did not say its number")
    now.pop(WRITTEN_BY, None)
    lines = differences(before, now)
    if not lines:
        return
    shown = lines[:MOST_DIFFERENCES]
    if len(lines) > len(shown):
        shown.append(f"and {len(lines) - len(shown)} more")
    raise error(
        f"{folder} was made with other settings, by {software}:\n  "
        + "\n  ".join(shown)
        + f"\nGive the same settings to go on, or use another {option}"
    )
