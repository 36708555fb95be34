"""Usage examples in the docstrings of datasets that need no files are run as they stand."""

import doctest

import pytest

from alignuser_jax.datasets import log, report, shop_page_text
from alignuser_jax.datasets.dataset import Dataset
from alignuser_jax.datasets.filters import Filters
from alignuser_jax.datasets.formats import synthetic
from alignuser_jax.datasets.formats.tabular import TableFile
from alignuser_jax.datasets.reading import cleaning


@pytest.mark.parametrize("module", [log, report, shop_page_text, synthetic, cleaning])
def test_modules(module):
    result = doctest.testmod(module)
    assert result.attempted and not result.failed


@pytest.mark.parametrize("thing", [Dataset, Filters, TableFile])
def test_classes(thing):
    examples = doctest.DocTestFinder(recurse=False).find(thing, globs={thing.__name__: thing})
    results = [doctest.DocTestRunner().run(example) for example in examples]
    assert sum(r.attempted for r in results) and not sum(r.failed for r in results)
