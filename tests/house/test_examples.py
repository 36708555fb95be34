"""Usage examples in docstrings: all are Python, and what they import is there.

Many need a data set or a model and are run by the tests of their rooms; those of the modules
listed here need nothing and are run as they stand.
"""

import ast
import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "alignuser_jax"
RUN = (
    "randomness",
    "text",
    "durable.whole",
    "runs.folder",
    "runs.experiment",
    "runs.simulate",
    "sampling.config",
    "sampling.engine.automaton",
    "sampling.engine.pages",
    "sampling.generate",
    "sampling.request_checks",
    "sampling.scripted",
    "sampling.servers.structured",
    "sampling.workload",
)


def examples():
    """(where, docstring) of every docstring with an example."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text())
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        for node in ast.walk(tree):
            if isinstance(node, documented) and ">>> " in (
                text := ast.get_docstring(node) or ""
            ):
                name = getattr(node, "name", "")
                found.append((f"{path.relative_to(PACKAGE)}:{name}", text))
    return found


EXAMPLES = examples()


@pytest.mark.parametrize("text", [t for _, t in EXAMPLES], ids=[w for w, _ in EXAMPLES])
def test_an_example_is_python_and_imports_what_exists(text):
    source = "".join(e.source for e in doctest.DocTestParser().get_examples(text))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("alignuser_jax"):
            exec(ast.unparse(node), {})


@pytest.mark.parametrize("name", RUN)
def test_examples_that_need_nothing_run(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    result = doctest.testmod(
        importlib.import_module(f"alignuser_jax.{name}"), optionflags=doctest.ELLIPSIS
    )
    assert result.attempted and not result.failed
