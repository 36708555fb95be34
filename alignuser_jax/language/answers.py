"""Build the alternatives of an answer: whole numbers, and JSON objects of closed fields.

They go into `records.Request.answer`, so that a constrained engine can write nothing else.
`parsing` reads the replies of back ends that cannot be constrained.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

AnswerLines = tuple[tuple[str, ...], ...]
"""One entry per answer line: the line's alternatives (`records.Request.answer`)."""


def integers(low: int, high: int, before: str = "") -> tuple[str, ...]:
    """Return one answer line whose alternatives are the whole numbers from `low` to `high`.

    Both ends are included, and the text `before` precedes each number. Alternative i is the
    number low + i.

    >>> integers(1, 3, before="RATING: ")
    ('RATING: 1', 'RATING: 2', 'RATING: 3')
    """
    if low > high:
        raise ValueError(f"there are no integers from {low} to {high}: give low <= high")
    return tuple(f"{before}{number}" for number in range(low, high + 1))


def json_answer(fields: Mapping[str, Iterable[Any]]) -> AnswerLines:
    """Return the answer lines of a JSON object with exactly these fields, in this order.

    There is one line per field and one for each brace; each field has one of its values. The
    reply is `json.dumps(chosen, indent=0, ensure_ascii=False)`. A value can be anything that
    JSON has; the values of a field must differ as JSON text (1 and "1" do).

    >>> json_answer({"watch": ["yes", "no"], "rating": range(1, 3)})
    (('{',), ('"watch": "yes",', '"watch": "no",'), ('"rating": 1', '"rating": 2'), ('}',))
    """
    lines = []
    for number, (name, values) in enumerate(_values(fields).items(), start=1):
        before, after = f"{_dump(name)}: ", "," if number < len(fields) else ""
        texts = [_dump(value) for value in values]
        if len(set(texts)) < len(texts):
            raise ValueError(f"field {name!r} has a value that comes twice: {values!r}")
        lines.append(tuple(before + text + after for text in texts))
    return (("{",), *lines, ("}",))


def json_value(choices: Sequence[int], fields: Mapping[str, Iterable[Any]]) -> dict[str, Any]:
    """Return the object that the `Completion.choices` of a `json_answer` stand for.

    >>> json_value((0, 1, 0, 0), {"watch": ["yes", "no"], "rating": range(1, 3)})
    {'watch': 'no', 'rating': 1}
    """
    lists = _values(fields)
    if len(choices) != len(lists) + 2:
        raise ValueError(
            f"{len(choices)} choices for {len(lists)} fields: expected one per field and one "
            "for each brace, as in Completion.choices"
        )
    pairs = zip(lists.items(), choices[1:-1], strict=True)
    return {name: values[choice] for (name, values), choice in pairs}


def _values(fields: Mapping[str, Iterable[Any]]) -> dict[str, list[Any]]:
    if not fields:
        raise ValueError("a JSON answer needs at least one field")
    if bad := [name for name, values in fields.items() if isinstance(values, str | bytes)]:
        raise ValueError(f"the values of {bad} are one text: give a list of values")
    lists = {name: list(values) for name, values in fields.items()}
    if empty := [name for name, values in lists.items() if not values]:
        raise ValueError(f"the fields {empty} have no values: give at least one each")
    return lists


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
