"""A toy log and its training view."""

import pytest

from alignuser_jax.views import training_view
from tests.alignment.alignment_toy import toy


@pytest.fixture(scope="session")
def dataset():
    return toy()


@pytest.fixture(scope="session")
def view(dataset):
    return training_view(dataset)
