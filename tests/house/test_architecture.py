"""The house rules that a program can check: import direction, jax-free rooms, no torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "alignuser_jax"
ROOMS = [
    "programs",
    "randomness",
    "retrying",
    "records",
    "text",
    "parallel",
    "statistics",
    "durable",
    "model",
    "datasets",
    "driver",
    "recommenders",
    "world",
    "language",
    "memory",
    "sampling",
    "agents",
    "judges",
    "personas",
    "shards",
    "training",
    "views",
    "alignment",
    "evaluation",
    "decision",
    "runs",
    "report",
]
"""Ground floor first: a room imports only rooms above it in this list."""

PARALLEL_ROOMS = {("agents", "training"), ("agents", "sampling"), ("sampling", "training")}
"""Pairs that must not know each other in either direction (docs/architecture.md)."""

MOST_FILES = 12
"""A folder holds at most so many files beside its `__init__.py`."""

PROGRAMS = {"launch", "data_prep", "inference", "configs", "tests"}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def dotted(path: Path) -> str:
    """The module name of a file of the package."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {dotted(path): path for path in modules()}


def room_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0].removesuffix(".py")


def imported_names(path: Path) -> set[str]:
    """Every dotted name that the file imports, wherever the statement stands."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import in line {node.lineno}"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def imported_modules(path: Path) -> set[str]:
    """The package's own modules among them: the longest prefix that is a file or a folder."""
    found = set()
    for name in imported_names(path):
        while name not in MODULES and "." in name:
            name = name.rpartition(".")[0]
        if name in MODULES:
            found.add(name)
    return found - {dotted(path)}


def imported_rooms(path: Path) -> set[str]:
    return {name.split(".")[1] for name in imported_modules(path) if "." in name}


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_room_imports_only_rooms_above_it(path):
    if path == PACKAGE / "__init__.py":
        return
    room = room_of(path)
    assert room in ROOMS, f"{room} is not in the list of rooms"
    imported = imported_rooms(path) - {room}
    below = {r for r in imported if ROOMS.index(r) > ROOMS.index(room)}
    assert not below, f"{path} imports {below}, which stand below {room}"
    forbidden = {r for pair in PARALLEL_ROOMS if room in pair for r in pair} & imported
    assert not forbidden, f"{path}: {room} must not know {forbidden}"


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of nodes that reach each other: what is left when leaves are taken away."""
    order, reach = sorted(graph), {}
    for start in order:
        seen, stack = set(), [start]
        while stack:
            for name in graph[stack.pop()] - seen:
                seen.add(name)
                stack.append(name)
        reach[start] = seen
    groups = {tuple(sorted(b for b in reach[a] if a in reach[b])) for a in order}
    return [list(group) for group in sorted(groups) if group]


def test_no_two_files_import_each_other():
    graph = {name: imported_modules(path) for name, path in MODULES.items()}
    assert circles(graph) == []


def test_a_circle_would_be_seen():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set()}) == [["a", "b", "c"]]


def draws_or_builds_html(path: Path) -> set[str]:
    """What the file imports for pictures or HTML, and the HTML tags in its strings."""
    libraries = {"matplotlib", "plotly", "seaborn", "PIL"}
    signs = {name for name in imported_names(path) if name.split(".")[0] in libraries}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            signs |= {tag for tag in ("<html", "</div>", "</body>") if tag in node.value}
    return signs


def test_only_the_report_room_draws_and_builds_html():
    """Simulated shop pages are text; `datasets` reads HTML but writes none."""
    signs = {
        str(path.relative_to(PACKAGE)): draws_or_builds_html(path)
        for path in modules()
        if room_of(path) != "report"
    }
    assert {name: found for name, found in signs.items() if found} == {}
    assert draws_or_builds_html(PACKAGE / "report" / "plots.py"), "the test sees what it seeks"


def test_the_library_imports_no_program():
    for path in modules():
        roots = {name.split(".")[0] for name in imported_names(path)}
        assert not roots & PROGRAMS, path


def test_a_folder_holds_few_files():
    folders = {path.parent for path in modules()}
    sizes = {
        str(folder.relative_to(ROOT)): len(list(folder.glob("*.py"))) - 1 for folder in folders
    }
    assert {name: size for name, size in sizes.items() if size > MOST_FILES} == {}


def run_python(code: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_rooms_without_a_model_import_no_jax():
    run_python(
        "import sys, importlib\n"
        "rooms = 'records datasets recommenders world language memory personas agents views'\n"
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
