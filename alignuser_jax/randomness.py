"""Randomness is named, not ordered: keys from parts, NumPy generators from keys."""

from __future__ import annotations

import hashlib

import numpy as np


def stable_key(*parts: object) -> int:
    """Return a 63-bit key for the name `parts`: the same on every machine and in every run.

    The parts are turned into text with `str`, joined by an ASCII unit separator and hashed with
    blake2. So `("a", 1)` and `("a", "1")` are the same name, on purpose.

    Example:
        >>> stable_key("persona", "u1", 0) == stable_key("persona", "u1", "0")
        True
    """
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator_of(key: int) -> np.random.Generator:
    """Return NumPy's Philox generator for a key: the same draws on every machine."""
    return np.random.Generator(np.random.Philox(key=key))


def named_generator(*parts: object) -> np.random.Generator:
    """Return the generator whose key is `stable_key(*parts)`.

    Example:
        >>> named_generator("visits", 0, "user 7").integers(10) in range(10)
        True
    """
    return generator_of(stable_key(*parts))
