"""The examples in the docstrings of worlds, memories and text run as they stand."""

import doctest
import importlib
from pathlib import Path

import pytest

import alignuser_jax

ROOT = Path(alignuser_jax.__file__).parent
FILES = [
    path
    for path in (
        *sorted((ROOT / "world").rglob("*.py")),
        *sorted((ROOT / "memory").rglob("*.py")),
        ROOT / "text.py",
        ROOT / "randomness.py",
        ROOT / "datasets" / "shop_page_text.py",
    )
    if ">>> " in path.read_text()
]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_examples(path):
    name = ".".join(path.relative_to(ROOT.parent).with_suffix("").parts)
    module = importlib.import_module(name)
    results = doctest.testmod(module)
    assert results.attempted > 0 and results.failed == 0
