"""Waits before a call is made again: what the server asks for, else doubled each time."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from alignuser_jax.retrying import LONGEST_BACKOFF_SECONDS, backoff_seconds, retry_after_seconds


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7.0),
        ("-3", 0.0),
        ("nan", None),
        ("inf", float("inf")),
        ("soon", None),
        ("", None),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
    ],
)
def test_seconds_and_past_dates(value, seconds):
    assert retry_after_seconds({"retry-after": value}) == seconds


def test_a_coming_date_and_no_header():
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    assert 80 < retry_after_seconds({"retry-after": date}) <= 90
    assert retry_after_seconds({}) is None


def test_the_backoff_doubles_up_to_a_limit():
    for failures, expected in ((1, 0.5), (2, 1.0), (4, 4.0), (30, LONGEST_BACKOFF_SECONDS)):
        for _ in range(20):
            assert 0.75 * expected <= backoff_seconds(0.5, failures) <= 1.25 * expected
