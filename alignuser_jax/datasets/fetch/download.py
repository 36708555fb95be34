"""A published data set in a folder: fetched, checked, unpacked, and written down."""

from __future__ import annotations

import fnmatch
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from alignuser_jax.datasets.fetch import archives
from alignuser_jax.datasets.fetch.fetching import fetch
from alignuser_jax.datasets.fetch.published import Published, WebFile

RECORD = ".download/record.json"
"""What lies in the folder, whence it came, what was checked, and the terms accepted; apart, so
that no adapter takes it for data."""


def download(
    name: str,
    published: Published,
    folder: str | Path,
    *,
    urls: Sequence[str] = (),
    endpoint: str | None = None,
    gunzip: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Fetch `published` into `folder` and give back what `RECORD` then says.

    A .zip or .tar.gz is unpacked in a folder of its name; a .gz of one file stays as it is,
    since `import-logs` reads it; with `gunzip` its content takes its place. Every archive's own
    checksums are held against it. `urls` replace the files' (as many, in their order),
    `endpoint` the hub's. What is there whole is not asked for again. Raises what `fetch` and
    `archives.unpack` do, and `ValueError` for another number of urls.
    """
    folder = Path(folder)
    (folder / RECORD).parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock((folder / RECORD).parent / "lock")
    try:
        with lock.acquire(timeout=0):
            if published.repositories:
                files = _from_hub(published, folder, urls, endpoint)
            else:
                files = _from_web(published, folder, urls, gunzip, quiet)
            record = {
                "dataset": name,
                "files": files,
                "terms_accepted": published.terms,
                "terms_url": published.terms_url,
                "cite": published.cite,
            }
            text = json.dumps(record, indent=2, ensure_ascii=False)
            (folder / RECORD).write_text(text + "\n", encoding="utf-8")
    except Timeout as error:
        raise RuntimeError(f"another download into {folder} is at work: wait for it") from error
    return record


# --- web servers ---


def _from_web(
    published: Published, folder: Path, urls: Sequence[str], gunzip: bool, quiet: bool
) -> dict[str, Any]:
    files = published.files
    if urls:
        if len(urls) != len(files):
            wanted = ", ".join(file.name for file in files)
            raise ValueError(f"{len(urls)} urls are given, expected {len(files)}: {wanted}")
        files = tuple(replace(f, url=url) for f, url in zip(files, urls, strict=True))
    known = _known(folder)
    found = {}
    for file, original in zip(files, published.files, strict=True):
        path = folder / original.name
        before = known.get(path.name)
        if before is None or not _is_here(path, folder, before):
            fetched = fetch(file.url, path, md5=original.md5, quiet=quiet)
            before = asdict(fetched) | {"url": file.url}
            del before["path"]
        if path.is_file():
            try:
                before |= _unpacked(path, folder, original, gunzip)
            except archives.HostileArchive:
                path.rename(path.with_name(path.name + ".refused"))
                raise
        found[path.name] = before
    return found


def _is_here(path: Path, folder: Path, before: Mapping[str, Any]) -> bool:
    """Whether what an earlier download recorded is there: as it came, or its content."""
    content = folder / before["contents"]
    if "content_bytes" in before and content.is_file():
        return content.stat().st_size == before["content_bytes"]
    same = path.is_file() and path.stat().st_size == before["bytes"]
    return same and _sha256(path) == before["sha256"]


def _known(folder: Path) -> Mapping[str, dict[str, Any]]:
    try:
        return json.loads((folder / RECORD).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _unpacked(path: Path, folder: Path, file: WebFile, gunzip: bool) -> dict[str, Any]:
    """What the archive became, after its own checksums were held against it."""
    suffixes = path.suffixes
    if suffixes[-1:] == [".zip"] or ".tar" in suffixes or suffixes[-1:] == [".tgz"]:
        target = folder / path.name.split(".")[0]
        if not target.is_dir():
            archives.unpack(path, target, max_bytes=file.unpacked_bytes)
        return {"contents": target.name}
    if suffixes[-1:] != [".gz"]:
        return {"contents": path.name}
    if not gunzip:
        archives.check_gzip(path, max_bytes=file.unpacked_bytes)
        return {"contents": path.name}
    target = archives.gunzip(path, path.with_suffix(""), max_bytes=file.unpacked_bytes)
    path.unlink()
    return {"contents": target.name, "content_bytes": target.stat().st_size}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- the Hugging Face hub ---


def _from_hub(
    published: Published, folder: Path, urls: Sequence[str], endpoint: str | None
) -> dict[str, Any]:
    """Every repository in a folder of its name, or in `folder` itself where there is one."""
    if urls:
        raise ValueError(
            "this data set is on the Hugging Face hub: give --hub_endpoint, no --url"
        )
    found = {}
    for repository in published.repositories:
        single = len(published.repositories) == 1
        target = folder if single else folder / repository.partition("/")[2]
        for name, described in _repository(repository, published, target, endpoint).items():
            found[name if single else f"{target.name}/{name}"] = described
    return found


def _repository(
    repository: str, published: Published, target: Path, endpoint: str | None
) -> dict[str, Any]:
    from huggingface_hub import HfApi

    try:
        hub = HfApi(endpoint=endpoint)
        info = hub.dataset_info(repository, files_metadata=True)
        hub.snapshot_download(
            repository,
            repo_type="dataset",
            revision=info.sha,
            local_dir=target,
            ignore_patterns=list(published.left_out),
        )
    except Exception as error:  # those of its HTTP client share no base with its own
        status = getattr(getattr(error, "response", None), "status_code", None)
        reason = " ".join(str(error).split()) or type(error).__name__
        message = f"cannot download {repository} from {endpoint or 'the hub'}: {reason}"
        if status in (401, 403):
            raise PermissionError(
                f"{message}. Accept its terms on {published.terms_url} and set HF_TOKEN"
            ) from error
        if status == 404:
            raise FileNotFoundError(message) from error
        raise ConnectionError(
            f"{message}. Run the same command again to go on: whole files are kept"
        ) from error
    found = {}
    for file in info.siblings or ():
        name = file.rfilename
        if any(fnmatch.fnmatch(name, pattern) for pattern in published.left_out):
            continue
        path = target / name
        digest = _sha256(path)
        stated = file.lfs.sha256 if file.lfs else None
        size = path.stat().st_size
        if (stated and stated != digest) or (file.size is not None and file.size != size):
            path.unlink()
            raise ValueError(
                f"{repository}: {name} ({size:,} bytes) is not what the hub says it is: it was "
                "removed; run again"
            )
        found[name] = {
            "bytes": size,
            "sha256": digest,
            "checked": "sha256" if stated else "size" if file.size is not None else "nothing",
            "url": f"{repository}@{info.sha}",
            "contents": name,
        }
    return found
