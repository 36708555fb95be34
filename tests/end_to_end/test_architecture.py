"""The house rules that a program can check: import direction, jax-free rooms, no torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "alignuser_jax"
ROOMS = [
    "records",
    "durable",
    "datasets",
    "recommenders",
    "world",
    "language",
    "memory",
    "personas",
    "parallel",
    "model",
    "training",
    "sampling",
    "agents",
    "alignment",
    "evaluation",
    "experiment",
    "pipeline",
    "simulation",
    "backend",
    "programs",
]
"""Ground floor first: a room imports only rooms above it in this list."""

PARALLEL_ROOMS = {("agents", "training"), ("agents", "sampling"), ("sampling", "training")}
"""Below in the list but must not know each other (the table of ARCHITECTURE.md)."""


def modules():
    return sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")


def room_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
            if node.module == "alignuser_jax":
                names = [f"alignuser_jax.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "alignuser_jax" and len(parts) > 1:
                found.add(parts[1])
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_room_imports_only_rooms_above_it(path):
    room = room_of(path)
    assert room in ROOMS, f"{room} is not in the list of rooms"
    below = {r for r in imported_rooms(path) - {room} if ROOMS.index(r) > ROOMS.index(room)}
    assert not below, f"{path} imports {below}, which stand below {room}"
    forbidden = {r for a, r in PARALLEL_ROOMS if a == room} & imported_rooms(path)
    assert not forbidden, f"{path}: {room} must not know {forbidden}"


def test_the_library_imports_no_program():
    for path in modules():
        names = {
            name.split(".")[0]
            for node in ast.walk(ast.parse(path.read_text()))
            for name in (
                [a.name for a in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
        }
        assert not names & {"launch", "data_prep", "inference", "configs", "tests"}, path


def run_python(code: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_rooms_without_a_model_import_no_jax():
    run_python(
        "import sys, importlib\n"
        "rooms = 'records datasets recommenders world language memory personas agents'\n"
        "for room in rooms.split():\n"
        "    importlib.import_module('alignuser_jax.' + room)\n"
        "assert 'jax' not in sys.modules, 'jax was imported'\n"
    )


def test_everything_imports_without_torch_and_tensorflow():
    names = [
        ".".join(p.relative_to(ROOT).with_suffix("").parts)
        for folder in ("alignuser_jax", "launch", "data_prep", "inference")
        for p in sorted((ROOT / folder).rglob("*.py"))
        if p.name != "__init__.py"
    ]
    blocked = (
        "import sys, importlib.abc\n"
        "class Block(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('torch', 'tensorflow', 'peft'):\n"
        "            raise ImportError(name + ' is not in the base install')\n"
        "sys.meta_path.insert(0, Block())\n"
    )
    # absl flags of two programs may share a name: each program in its own flag registry
    run_python(
        blocked + "import importlib\nfrom absl import flags\n"
        f"for name in {names!r}:\n"
        "    importlib.import_module(name)\n"
        "    for flag in list(flags.FLAGS):\n"
        "        if flags.FLAGS.find_module_defining_flag(flag) == name:\n"
        "            delattr(flags.FLAGS, flag)\n"
    )
