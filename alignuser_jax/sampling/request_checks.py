"""Refuse requests whose parameters no back end could follow, by the parameter's name."""

from __future__ import annotations

import numpy as np

from alignuser_jax.records import Request

COUNTS = (
    *(("samples", 1), ("max_tokens", 1), ("reasoning_tokens", 0), ("top_k", 0)),
    *(("line_tokens", 0), ("no_repeat", 0)),
)
"""The whole numbers of a request, each with its least value."""

MOST = 2**31
"""Counts are below this: programs hold them as 32-bit integers."""


def check_request(request: Request) -> None:
    """Raise `ValueError` if a request's conversation or parameters make no sense.

    Example:
        >>> from alignuser_jax.records import Message
        >>> check_request(Request((Message.of("user", "Hi."),), "greet", top_p=7))
        Traceback (most recent call last):
        ValueError: top_p=7: expected at least 1e-6 and at most 1
    """
    if not request.messages or request.messages[-1].role == "assistant":
        raise ValueError(
            "a request ends with a user turn; this one "
            + ("ends with a reply" if request.messages else "has no messages")
        )
    if request.scored and len(request.answer) != 1:
        raise ValueError(
            f"a scored request needs exactly one answer line, got {len(request.answer)}"
        )
    _check_numbers(request)
    _check_form(request)
    if request.stop and (request.answer or not all(request.stop)):
        raise ValueError(
            f"stop={request.stop}: stop strings are not empty and go with free text; a reply "
            "with an answer ends with its last line"
        )
    if request.timeout_seconds is not None and not request.timeout_seconds > 0:
        raise ValueError(
            f"timeout_seconds={request.timeout_seconds}: expected more than 0, or None"
        )


def _check_form(request: Request) -> None:
    """Refuse a start or lines of a reply that do not fit each other, or an answer."""
    for name in ("reply_start", "lines", "no_repeat"):
        if request.answer and (value := getattr(request, name)):
            raise ValueError(
                f"{name}={value!r}: it is for replies of free text; this request has an answer "
                "of its own"
            )
    if request.no_repeat_of and not request.no_repeat:
        raise ValueError(
            f"no_repeat_of has {len(request.no_repeat_of)} texts and no_repeat is 0: say how "
            "many tokens of a text must not come in a row"
        )
    if bool(request.lines) != bool(request.line_tokens):
        raise ValueError(
            f"lines={request.lines!r} and line_tokens={request.line_tokens}: give what lines "
            "begin with and the tokens of a line, or neither"
        )
    if any(not line.strip() or "\n" in line for line in request.lines):
        raise ValueError(
            f"lines={request.lines!r}: each begins with some text, and has no newline in it"
        )
    start = request.reply_start
    if start and request.lines and ("\n" in start or not start.startswith(request.lines[0])):
        raise ValueError(
            f"reply_start={start!r}: expected the beginning of the first line, which begins "
            f"with {request.lines[0]!r}"
        )


def _check_numbers(request: Request) -> None:
    for name, least in COUNTS:
        value = getattr(request, name)
        if not isinstance(value, int | np.integer) or not least <= value < MOST:
            raise ValueError(
                f"{name}={value}: expected one of the whole numbers from {least} to 2**31 - 1"
            )
    if not 0 <= request.key < 2**64:
        raise ValueError(f"key={request.key}: expected 0 to 2**64 - 1 (stable_key)")
    if not (request.temperature == 0 or 1e-6 <= request.temperature <= 1e6):
        raise ValueError(
            f"temperature={request.temperature}: expected 0 (the likeliest token), or 1e-6 to "
            "1e6"
        )
    if not 1e-6 <= request.top_p <= 1:
        raise ValueError(f"top_p={request.top_p}: expected at least 1e-6 and at most 1")
    if not 0 <= request.min_p <= 1:
        raise ValueError(f"min_p={request.min_p}: expected 0 to 1")
