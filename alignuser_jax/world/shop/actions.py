"""What can be done in a web shop: click, input, terminate; as tokens, as OPeRA's JSON, by type.

Agents write `[CLICK:<name>]`, `[INPUT:<name>|<text>]` and `[TERMINATE]` (METHOD.md section 3,
DEFAULT); OPeRA's wire form is `{"type": "click", "name": ...}`.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from alignuser_jax.datasets.sessions import CLICK_TYPES
from alignuser_jax.records import Action

MAX_INPUT_CHARS = 400
TERMINATE = Action("terminate")

_TOKEN = re.compile(r"\[(CLICK|INPUT|TERMINATE)(?::(.*))?\]", re.DOTALL)


class ActionError(ValueError):
    """A text or a JSON value that is no action of a web shop."""


@lru_cache(maxsize=1 << 15)  # a page lists dozens, most of them on every page
def click(name: str) -> Action:
    return Action("click_element", name)


def type_text(name: str, text: str) -> Action:
    """`text` typed into the field `name` and submitted. As in a one-line field of a browser,
    line breaks vanish; other white space at the ends is kept.
    """
    return Action("input", name, text=re.sub(r"[\r\n]", "", text))


def is_typable(text: str) -> bool:
    """True for what a one-line search field takes: 1 to `MAX_INPUT_CHARS` printable
    characters, not all of them blank.
    """
    return 0 < len(text) <= MAX_INPUT_CHARS and text.isprintable() and not text.isspace()


def from_token(token: str) -> Action:
    """The action that a token names, the inverse of `Action.token`. The text of an input begins
    after the first `|`, so the name of a field never holds one. Raises `ActionError`.
    """
    match = _TOKEN.fullmatch(token.strip())
    verb, rest = match.groups() if match else ("", None)
    if verb == "TERMINATE" and rest is None:
        return TERMINATE
    if verb == "CLICK" and rest:
        return click(rest)
    if verb == "INPUT" and rest:
        name, bar, text = rest.partition("|")
        if bar and name:
            return Action("input", name, text=text)
    raise ActionError(
        f"{token!r} is no action: expected [CLICK:<name>], [INPUT:<name>|<text>] or [TERMINATE]"
    )


def to_json(action: Action) -> dict[str, str]:
    """The action in OPeRA's wire form; `ActionError` for one of a recommendation site."""
    if action.kind == "click_element":
        return {"type": "click", "name": action.target}
    if action.kind == "input":
        return {"type": "input", "name": action.target, "text": action.text}
    if action.kind == "terminate":
        return {"type": "terminate"}
    raise ActionError(f"{action.token} is no action of a web shop")


def from_json(value: Any) -> Action:
    """The action of OPeRA's wire form, or of a whole answer that holds it as `action`.

    Names and texts lose outer white space (METHOD.md section 12.5). Raises `ActionError`.
    """
    found = value.get("action", value) if isinstance(value, Mapping) else value
    fields = dict(found) if isinstance(found, Mapping) else {}
    kind = fields.get("type")
    needed = {"click": ("name",), "input": ("name", "text"), "terminate": ()}.get(kind)
    if needed is None or not all(
        isinstance(fields.get(n), str) and fields[n].strip() for n in needed
    ):
        raise ActionError(
            f'{value!r} is no action: expected {{"type": "click", "name": …}}, '
            '{"type": "input", "name": …, "text": …} or {"type": "terminate"}'
        )
    if kind == "terminate":
        return TERMINATE
    name = fields["name"].strip()
    return click(name) if kind == "click" else type_text(name, fields["text"].strip())


def click_type_map(clicks: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Semantic id -> click type, from logged (semantic id, click type) pairs.

    An id that the log gives several types keeps the most frequent, of equals the first in the
    alphabet. Types that are not among `CLICK_TYPES` and empty names are left out.
    """
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for name, click_type in clicks:
        if name and click_type in CLICK_TYPES:
            counts[name][click_type] += 1
    return {
        name: min(found, key=lambda t: (-found[t], t)) for name, found in sorted(counts.items())
    }


def click_type(action: Action, known: Mapping[str, str]) -> str:
    """The type of a click, "other" for an id that the map does not know; "" for no click."""
    return known.get(action.target, "other") if action.kind == "click_element" else ""
