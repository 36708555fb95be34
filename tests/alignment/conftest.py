import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from alignment_toy import toy  # noqa: E402

from alignuser_jax.alignment import training_view  # noqa: E402


@pytest.fixture(scope="session")
def dataset():
    return toy()


@pytest.fixture(scope="session")
def view(dataset):
    return training_view(dataset)
