"""A model's local directory: a path as it is, a Hugging Face id through the shared cache.

The processes of a host (one per accelerator) may all ask for one model: one downloads, the
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
"""What is fetched, and what of it is not: subfolders (original/, onnx/) and second copies."""

ID = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"


def local_directory(source: str | Path, revision: str | None = None) -> Path:
    """The directory of a model that is a directory already, or is `owner/name` on the hub.

    A directory is given back as it is. A hub id is downloaded into the cache of Hugging Face
    (HF_HOME) at `revision`, a branch, tag or commit ("main" by default); a revision that the
    cache holds whole is used without asking the network again. Raises `FileNotFoundError` for
    what is neither, `PermissionError` for private and gated models, and `ConnectionError`
    where the download fails; it can be asked again and goes on with the files that are missing.
    """
    if Path(source).is_dir():
        return Path(source)
    name = _checked(source)
    from filelock import FileLock
    from huggingface_hub import constants

    found = _cached(name, revision)
    if found is None:
        cache = Path(constants.HF_HUB_CACHE)
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f"models--{name.replace('/', '--')}.lock"):
            found = _cached(name, revision) or _download(name, revision)
    logging.info("%s lies in %s", name, found)
    return found


def config_directory(source: str | Path, revision: str | None = None) -> Path:
    """A directory that holds the model's config.json, perhaps nothing else: no weights are
    downloaded. Raises as `local_directory` does.
    """
    if Path(source).is_dir():
        return Path(source)
    name = _checked(source)
    return _cached(name, revision) or _download(name, revision, _config_only)


def _cached(name: str, revision: str | None) -> Path | None:
    """The snapshot in the cache, None where it is not known to be whole: the listing of its
    files lies beside it only if `snapshot_download` made it, one that another program made
    may lack any file.
    """
    from huggingface_hub import errors, get_cached_repo_tree

    try:
        get_cached_repo_tree(name, revision=revision)
        return _snapshot(name, revision, local_files_only=True)
    except (errors.CachedRepoTreeNotFoundError, errors.LocalEntryNotFoundError):
        return None


def _checked(source: str | Path) -> str:
    """A hub id."""
    name = str(source)
    wrong = not re.fullmatch(ID, name, re.ASCII) or re.search(r"\.\.|--", name)
    if wrong or Path(source).exists():
        raise FileNotFoundError(
            f"no directory {name}: give a model's directory, or its id on the Hugging Face "
            "hub, which is owner/name"
        )
    return name


def _download(name: str, revision: str | None, fetch: Callable | None = None) -> Path:
    from huggingface_hub import constants

    where = f"{name} (revision {revision or 'main'}) from {constants.ENDPOINT}"
    logging.info("downloading %s", where)
    try:
        found = (fetch or _snapshot)(name, revision)
    except Exception as error:  # those of its HTTP client share no base with its own
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
    if fetch is None and (missing := _missing(found)):
        raise FileNotFoundError(
            f"{name} in {found} lacks {', '.join(missing)}: expected a model with config.json "
            "and safetensors, whole; without network the cache must hold all of it"
        )
    return found


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


def _missing(directory: Path) -> list[str]:
    """What a model cannot do without, as far as the directory lacks it."""
    names = {"config.json"}
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        names |= set(json.loads(index.read_text())["weight_map"].values())
    else:
        names.add("model.safetensors")
    return sorted(name for name in names if not (directory / name).is_file())


def _status(error: BaseException | None) -> int | None:
    """The hub's answer behind an error, None where there was none."""
    while error is not None:
        response = getattr(error, "response", None)
        if response is not None:
            return response.status_code
        error = error.__cause__
    return None
