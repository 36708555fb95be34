"""Answers beyond a list of phrases: whole numbers, and JSON objects of closed fields.

What these functions give is put into `records.Request.answer`, so a constrained engine can
write nothing else; `parsing` reads replies of back ends that are not constrained.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

AnswerLines = tuple[tuple[str, ...], ...]
"""One entry per answer line: the line's alternatives (`records.Request.answer`)."""


def integers(low: int, high: int, before: str = "") -> tuple[str, ...]:
    """The alternatives of one answer line: the whole numbers from `low` to `high`, both
    included, after the text `before`. Alternative i is the number low + i.

    >>> integers(1, 3, before="RATING: ")
    ('RATING: 1', 'RATING: 2', 'RATING: 3')
    """
    if low > high:
        raise ValueError(f"integers from {low} to {high}: there are none; give low <= high")
    return tuple(f"{before}{number}" for number in range(low, high + 1))


def json_answer(fields: Mapping[str, Iterable[Any]]) -> AnswerLines:
    """The answer lines of a JSON object with exactly these fields, in this order, each with
    one of its values: one line per field, a brace before and after.

    The reply is `json.dumps(chosen, indent=0, ensure_ascii=False)`. Values are whatever JSON
    has; a field's values must differ as JSON does (1 and "1" do).

    >>> json_answer({"watch": ["yes", "no"], "rating": range(1, 3)})
    (('{',), ('"watch": "yes",', '"watch": "no",'), ('"rating": 1', '"rating": 2'), ('}',))
    """
    lines = []
    for number, (name, values) in enumerate(_values(fields).items(), start=1):
        before, after = f"{_dump(name)}: ", "," if number < len(fields) else ""
        texts = [_dump(value) for value in values]
        if len(set(texts)) < len(texts):
            raise ValueError(f"field {name!r}: a value comes twice in {values!r}")
        lines.append(tuple(before + text + after for text in texts))
    return (("{",), *lines, ("}",))


def json_value(choices: Sequence[int], fields: Mapping[str, Iterable[Any]]) -> dict[str, Any]:
    """The object that `Completion.choices` of a `json_answer` stand for.

    >>> json_value((0, 1, 0, 0), {"watch": ["yes", "no"], "rating": range(1, 3)})
    {'watch': 'no', 'rating': 1}
    """
    known = _values(fields)
    if len(choices) != len(known) + 2:
        raise ValueError(
            f"{len(choices)} choices for {len(known)} fields: expected one per field and one "
            "for each brace, as in Completion.choices"
        )
    pairs = zip(known.items(), choices[1:-1], strict=True)
    return {name: values[choice] for (name, values), choice in pairs}


def _values(fields: Mapping[str, Iterable[Any]]) -> dict[str, list[Any]]:
    if not fields:
        raise ValueError("a JSON answer needs at least one field")
    if bad := [name for name, values in fields.items() if isinstance(values, str | bytes)]:
        raise ValueError(f"the values of {bad} are one text: give a list of values")
    known = {name: list(values) for name, values in fields.items()}
    if empty := [name for name, values in known.items() if not values]:
        raise ValueError(f"the fields {empty} have no values: give at least one each")
    return known


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
