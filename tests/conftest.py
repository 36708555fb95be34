"""Fixtures shared by all tests; real data is used where it is beside the checkout."""

import os
import tempfile
from pathlib import Path

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")

SHARED_DATA = Path(__file__).parents[1].parent / "shared" / "data"


def pytest_configure(config: pytest.Config) -> None:
    """Equal programs are compiled once: workers and what tests start share a cache."""
    if not hasattr(config, "workerinput"):  # not in a worker of xdist: they inherit it
        folder = tempfile.TemporaryDirectory(prefix="alignuser-compiled-")
        config.add_cleanup(folder.cleanup)
        os.environ["JAX_COMPILATION_CACHE_DIR"] = folder.name
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"


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
