"""Find a model's local directory: a path as it is, a hub id through Hugging Face's cache.

The processes of a host (one per accelerator) may all need one model: one downloads it, the
others wait and read its files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

from absl import logging

READ = ("*.json", "*.safetensors", "*.model", "merges.txt", "vocab.txt", "*.jinja")
UNREAD = ("*/*", "consolidated*")
"""What is downloaded, and exceptions: subfolders (original/, onnx/) and second copies."""

ID_PATTERN = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"


def local_directory(source: str | Path, revision: str | None = None) -> Path:
    """Return the directory of a model, downloaded once if it is a hub id.

    A download goes into Hugging Face's cache (HF_HOME). A revision that the cache holds whole
    is used without asking the network. After a failed download another call goes on with the
    files that are missing.

    Args:
        source: A directory, or `owner/name` on the Hugging Face hub.
        revision: Branch, tag or commit of the hub id; default "main".

    Raises:
        FileNotFoundError: If it is neither a directory nor a hub id, or lacks files.
        PermissionError: If the model is private or gated.
        ConnectionError: If the download fails.
    """
    if Path(source).is_dir():
        return Path(source)
    name = _checked(source)
    from filelock import FileLock
    from huggingface_hub import constants

    folder = _cached(name, revision)
    if folder is None:
        cache = Path(constants.HF_HUB_CACHE)
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f"models--{name.replace('/', '--')}.lock"):
            folder = _cached(name, revision) or _download(name, revision)
    logging.info("%s lies in %s", name, folder)
    return folder


def config_directory(source: str | Path, revision: str | None = None) -> Path:
    """Return a directory with the model's config.json; no weights are downloaded.

    Arguments and errors are those of `local_directory`.
    """
    if Path(source).is_dir():
        return Path(source)
    name = _checked(source)
    return _cached(name, revision) or _download(name, revision, _config_only)


def tokenizer_directory(source: str | Path, revision: str | None = None) -> Path:
    """Return a directory with the model's tokenizer; no weights are downloaded.

    Arguments and errors are those of `local_directory`.
    """
    if Path(source).is_dir():
        return Path(source)
    name = _checked(source)
    return _cached(name, revision) or _download(name, revision, _words_only)


def _cached(name: str, revision: str | None) -> Path | None:
    """Return the snapshot in the cache, None unless it is known to be whole.

    Only `snapshot_download` puts the list of a model's files beside its snapshot; one that
    another program made may lack any file.
    """
    from huggingface_hub import errors, get_cached_repo_tree

    try:
        get_cached_repo_tree(name, revision=revision)
        return _snapshot(name, revision, local_files_only=True)
    except (errors.CachedRepoTreeNotFoundError, errors.LocalEntryNotFoundError):
        return None


def _checked(source: str | Path) -> str:
    """Return the hub id; raise `FileNotFoundError` for anything else."""
    name = str(source)
    wrong = not re.fullmatch(ID_PATTERN, name, re.ASCII) or re.search(r"\.\.|--", name)
    if wrong or Path(source).exists():
        raise FileNotFoundError(
            f"no directory {name}: give a model's directory, or its id on the Hugging Face "
            "hub, which is owner/name"
        )
    return name


def _download(
    name: str, revision: str | None, fetch: Callable[[str, str | None], Path] | None = None
) -> Path:
    from huggingface_hub import constants

    where = f"{name} (revision {revision or 'main'}) from {constants.ENDPOINT}"
    logging.info("downloading %s", where)
    try:
        folder = (fetch or _snapshot)(name, revision)
    except Exception as error:  # errors of its HTTP client share no base with its own
        status = _status(error)
        reason = " ".join(str(error).split()) or type(error).__name__
        message = f"no directory {name} here, and cannot download {where}: "
        if status in (401, 403):
            raise PermissionError(
                f"{message}{status}, it is private or gated, or does not exist. Ask for access "
                "on its page and set HF_TOKEN to a token of yours, or give a local directory "
                f"({reason})"
            ) from error
        if status == 404:
            raise FileNotFoundError(
                f"{message}404, there is no such model or revision. Correct the name, or give "
                f"a local directory ({reason})"
            ) from error
        raise ConnectionError(
            f"{message}{reason}. Ask again once the hub answers (whole files are kept), or "
            "give a local directory; with HF_HUB_OFFLINE=1 only what is in the cache is used"
        ) from error
    if fetch is None and (missing := _missing(folder)):
        raise FileNotFoundError(
            f"{name} in {folder} lacks {', '.join(missing)}: expected a model with config.json "
            "and safetensors, whole; without network the cache must hold all of it. If its "
            "weights are GGUF files, download one and give that file"
        )
    return folder


def _snapshot(name: str, revision: str | None, local_files_only: bool = False) -> Path:
    from huggingface_hub import snapshot_download

    return Path(
        snapshot_download(
            name,
            revision=revision,
            allow_patterns=list(READ),
            ignore_patterns=list(UNREAD),
            local_files_only=local_files_only,
        )
    )


def _config_only(name: str, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(name, "config.json", revision=revision)).parent


def _words_only(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    patterns = [pattern for pattern in READ if not pattern.endswith("safetensors")]
    return Path(
        snapshot_download(
            name, revision=revision, allow_patterns=patterns, ignore_patterns=list(UNREAD)
        )
    )


def _missing(directory: Path) -> list[str]:
    """Return the files that a model needs and the directory lacks."""
    names = {"config.json"}
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        names |= set(json.loads(index.read_text())["weight_map"].values())
    else:
        names.add("model.safetensors")
    return sorted(name for name in names if not (directory / name).is_file())


def _status(error: BaseException | None) -> int | None:
    """Return the HTTP status behind an error, None if there was none."""
    while error is not None:
        response = getattr(error, "response", None)
        if response is not None:
            return response.status_code
        error = error.__cause__
    return None
