"""How long to wait before a failed call to a server is made again.

The clients of recommender servers and of language-model servers share these rules: what the
server asks for in its Retry-After header comes first, and without one the wait doubles.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

LONGEST_BACKOFF_SECONDS = 30.0
"""Doubling the wait stops here."""

JITTER = (0.75, 1.25)
"""Range of the random factor of a wait, so that many clients do not return at the same time."""


def backoff_seconds(first_seconds: float, failures: int) -> float:
    """Return the wait after the n-th failure in a row: doubled each time, with some jitter.

    Args:
        first_seconds: the wait after the first failure.
        failures: failures in a row so far, 1 or more.
    """
    doubled = first_seconds * 2 ** (failures - 1)
    return min(doubled, LONGEST_BACKOFF_SECONDS) * random.uniform(*JITTER)


def retry_after_seconds(headers: Mapping[str, str]) -> float | None:
    """Return the wait that a response's Retry-After header asks for (RFC 9110, section 10.2.3).

    The header holds seconds or a date. Returns `None` when it is missing or neither.

    Example:
        >>> retry_after_seconds({"retry-after": "1.5"})
        1.5

    Args:
        headers: the response's headers; names are in lower case or looked up without case.
    """
    value = headers.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        pass
    else:
        return None if math.isnan(seconds) else max(0.0, seconds)
    try:
        wait = parsedate_to_datetime(value) - datetime.now(UTC)
    except (TypeError, ValueError):
        return None
    return max(0.0, wait.total_seconds())
