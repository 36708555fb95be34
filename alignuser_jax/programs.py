"""Find the programs and the configs, and start the `alignuser` command.

In a checkout the program folders (`launch`, `data_prep`, `inference`) and `configs` stand
beside this package. In a wheel they lie inside it, in `_programs`, since their names are too
general for site-packages (docs/architecture.md, "The programs in a wheel").
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
SHIPPED = PACKAGE / "_programs"
"""Where a wheel holds the program folders; `setup.py` puts them there."""


def programs_root() -> Path:
    """Return the folder that holds `launch`, `data_prep`, `inference` and `configs`."""
    return SHIPPED if SHIPPED.is_dir() else PACKAGE.parent


def make_importable() -> None:
    """Let this process import the program folders, and configs each other, by their names."""
    root = str(programs_root())
    if root not in sys.path:
        sys.path.insert(0, root)


def find_config(path: str | Path) -> Path:
    """Return the config file that is meant by a path or by a name.

    Args:
        path: A file; or the name of a config that comes with the software, as `small`,
            `small.py` or `configs/small.py`. A file of that path is taken first.

    Raises:
        FileNotFoundError: If there is neither; lists the configs that come with the software.

    Example:
        >>> find_config("tiny").name
        'tiny.py'
    """
    path = Path(path)
    if path.is_file():
        return path
    shipped = programs_root() / "configs"
    if path.parent in (Path(), Path("configs")):
        file = shipped / path.with_suffix(".py").name
        if file.is_file() and file.stem != "__init__":
            return file
    names = sorted(file.stem for file in shipped.glob("[a-z]*.py"))
    raise FileNotFoundError(
        f"no config file {path}: expected a Python file that defines `experiment`, or one of "
        f"{', '.join(names)}"
    )


def main() -> int:
    """Run the verb on the command line; the entry point of `alignuser`."""
    make_importable()
    return import_module("launch.cli").main()
