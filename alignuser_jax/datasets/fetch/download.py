"""Download a published data set into a folder: fetch, check, unpack, and record it.

Example:
    >>> from alignuser_jax.datasets.fetch.download import download
    >>> from alignuser_jax.datasets.fetch.published import PUBLISHED
    >>> name = "movielens-1m"
    >>> record = download(name, PUBLISHED[name], f"downloads/{name}")
"""

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
from alignuser_jax.durable.whole import write_whole

RECORD = ".download/record.json"
"""What is in the folder, where it came from, what was checked, and the terms accepted. It lies
in a folder of its own, so that no adapter takes it for data."""


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
    """Fetch a data set into `folder`, and return what `RECORD` then says.

    A .zip or .tar.gz is unpacked into a folder of its name. A .gz of one file stays as it is,
    since `import-logs` reads it. Every archive is checked against its own checksums. Files that
    an earlier call completed are not fetched again.

    Args:
        name: Name of the data set, a key of `PUBLISHED`.
        published: Where it is published, and on what terms.
        folder: The folder to write to.
        urls: Other URLs of the files: as many, in their order.
        endpoint: Another Hugging Face hub.
        gunzip: Whether to replace a .gz of one file by its content.
        quiet: Whether to show no progress bar.

    Raises:
        ValueError: If there is another number of `urls`, or a file is not what its publisher
            says.
        DownloadFailed: If a file does not arrive; the same call goes on where it stopped.
        FileNotFoundError: If the server has no such file.
        PermissionError: If the server refuses it.
        ConnectionError: If the hub cannot be reached.
        HostileArchive: If an archive is damaged or not safe; it is kept as NAME.refused.
        RuntimeError: If another download into `folder` is running.
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
            write_whole(folder / RECORD, text + "\n")
    except Timeout as error:
        raise RuntimeError(
            f"another download into {folder} is running: wait until it ends"
        ) from error
    return record


# --- web servers ---


def _from_web(
    published: Published, folder: Path, urls: Sequence[str], gunzip: bool, quiet: bool
) -> dict[str, Any]:
    files = published.files
    if urls:
        if len(urls) != len(files):
            names = ", ".join(file.name for file in files)
            raise ValueError(f"{len(urls)} urls are given, expected {len(files)}: {names}")
        files = tuple(replace(f, url=url) for f, url in zip(files, urls, strict=True))
    earlier = _recorded_files(folder)
    record: dict[str, Any] = {}
    for file, original in zip(files, published.files, strict=True):
        path = folder / original.name
        before = earlier.get(path.name)
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
        record[path.name] = before
    return record


def _is_here(path: Path, folder: Path, before: Mapping[str, Any]) -> bool:
    """Whether what an earlier download recorded is still there: the file, or its content."""
    content = folder / before["contents"]
    if "content_bytes" in before and content.is_file():
        return content.stat().st_size == before["content_bytes"]
    same = path.is_file() and path.stat().st_size == before["bytes"]
    return same and _sha256(path) == before["sha256"]


def _recorded_files(folder: Path) -> Mapping[str, dict[str, Any]]:
    """Return the files of `RECORD`; a missing or damaged record has none."""
    try:
        return json.loads((folder / RECORD).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _unpacked(path: Path, folder: Path, file: WebFile, gunzip: bool) -> dict[str, Any]:
    """Check and unpack an archive, and return what it became, for the record."""
    suffixes = path.suffixes
    if suffixes[-1:] == [".zip"] or ".tar" in suffixes or suffixes[-1:] == [".tgz"]:
        target = folder / path.name.split(".")[0]
        if not target.is_dir():
            archives.unpack_archive(path, target, max_bytes=file.unpacked_bytes)
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
    """Fetch each repository into a folder of its name; a single one, into `folder` itself."""
    if urls:
        raise ValueError(
            "this data set is on the Hugging Face hub: give --hub_endpoint, no --url"
        )
    record: dict[str, Any] = {}
    for repository in published.repositories:
        single = len(published.repositories) == 1
        target = folder if single else folder / repository.partition("/")[2]
        for name, described in _repository(repository, published, target, endpoint).items():
            record[name if single else f"{target.name}/{name}"] = described
    return record


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
    except Exception as error:  # errors of the hub's HTTP client share no base with its own
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
    record: dict[str, Any] = {}
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
        record[name] = {
            "bytes": size,
            "sha256": digest,
            "checked": "sha256" if stated else "size" if file.size is not None else "nothing",
            "url": f"{repository}@{info.sha}",
            "contents": name,
        }
    return record
