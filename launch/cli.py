"""The `alignuser` command: one verb per program, `alignuser VERB` = `python -m FOLDER.VERB`."""

from __future__ import annotations

import ast
import os
import runpy
import sys
from difflib import get_close_matches
from pathlib import Path

from alignuser_jax.programs import make_importable, programs_root

FOLDERS = ("data_prep", "launch", "inference")


def verbs() -> dict[str, tuple[str, str]]:
    """Return each verb's module and the first line of its docstring.

    The files are read, not imported: one program's imports would slow down every other's help.
    """
    programs = {}
    for folder in FOLDERS:
        for path in sorted((programs_root() / folder).glob("[a-z]*.py")):
            if path.name == Path(__file__).name:
                continue
            docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            verb = path.stem.replace("_", "-")
            programs[verb] = (f"{folder}.{path.stem}", docstring.split("\n")[0])
    return programs


def usage(programs: dict[str, tuple[str, str]]) -> str:
    """Return the text of `alignuser --help`: every verb with its summary."""
    width = max(map(len, programs))
    lines = [f"  {verb:<{width}}  {summary}" for verb, (_, summary) in programs.items()]
    return (
        "alignuser VERB [--flag=value ...]      (alignuser VERB --help lists the flags)\n\n"
        + "\n".join(lines)
    )


def main(argv: list[str] | None = None) -> int:
    """Run the program that `argv[1]` names, with the arguments after it.

    Args:
        argv: The command line, the command itself first; `sys.argv` if it is `None`.

    Returns:
        The exit code: 2 for an unknown verb. A program that fails exits by itself.
    """
    argv = sys.argv if argv is None else argv
    programs = verbs()
    if len(argv) < 2 or argv[1] in ("-h", "--help", "help"):
        print(usage(programs))
        return 0
    verb = argv[1]
    if verb not in programs:
        near = get_close_matches(verb, programs, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        message = f"alignuser: unknown verb {verb!r}{hint}\n\n{usage(programs)}"
        print(message, file=sys.stderr)
        return 2
    make_importable()
    sys.argv = [f"alignuser {verb}", *argv[2:]]
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # XLA's own log lines
    runpy.run_module(programs[verb][0], run_name="__main__", alter_sys=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
