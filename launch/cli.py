"""The `alignuser` command: one verb per program, `alignuser VERB` = `python -m FOLDER.VERB`."""

from __future__ import annotations

import ast
import os
import runpy
import sys
from pathlib import Path

FOLDERS = ("data_prep", "launch", "inference")
ROOT = Path(__file__).resolve().parents[1]


def verbs() -> dict[str, tuple[str, str]]:
    """verb -> (module, first line of its docstring), read without importing any program."""
    found = {}
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).glob("[a-z]*.py")):
            if path == Path(__file__).resolve():
                continue
            summary = (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n")[0]
            found[path.stem.replace("_", "-")] = (f"{folder}.{path.stem}", summary)
    return found


def usage() -> str:
    known = verbs()
    width = max(map(len, known))
    lines = [f"  {verb:<{width}}  {summary}" for verb, (_, summary) in known.items()]
    return (
        "alignuser VERB [--flag=value ...]      (alignuser VERB --help lists the flags)\n\n"
        + "\n".join(lines)
    )


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv if argv is None else argv
    if len(argv) < 2 or argv[1] in ("-h", "--help", "help"):
        print(usage())
        return 0
    known, verb = verbs(), argv[1]
    if verb not in known:
        from difflib import get_close_matches

        near = get_close_matches(verb, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        print(f"alignuser: unknown verb {verb!r}{hint}\n\n{usage()}", file=sys.stderr)
        return 2
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    sys.argv = [f"alignuser {verb}", *argv[2:]]
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    runpy.run_module(known[verb][0], run_name="__main__", alter_sys=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
