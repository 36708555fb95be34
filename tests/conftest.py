"""Fixtures shared by all tests; real data is used where it is beside the checkout."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")

SHARED_DATA = Path(__file__).parents[1].parent / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    if not SHARED_DATA.is_dir():
        pytest.skip("no ../shared/data beside the checkout: tests on real data are skipped")
    return SHARED_DATA


@pytest.fixture(scope="session")
def ml1m(shared_data: Path) -> Path:
    if not (shared_data / "ml-1m" / "ratings.dat.gz").is_file():
        pytest.skip("no MovieLens-1M in ../shared/data/ml-1m")
    return shared_data / "ml-1m"
