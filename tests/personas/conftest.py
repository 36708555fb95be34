import pytest

from tests.alignment.alignment_toy import toy


@pytest.fixture(scope="session")
def dataset():
    return toy()
