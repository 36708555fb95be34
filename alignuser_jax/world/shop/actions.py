"""What a user can do in a web shop: click, type, terminate; as tokens and as OPeRA's JSON.

Agents write `[CLICK:<name>]`, `[INPUT:<name>|<text>]` and `[TERMINATE]` (docs/method.md section
3, DEFAULT); OPeRA's wire form is `{"type": "click", "name": ...}`.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from functools import lru_cache

from alignuser_jax.datasets.sessions import CLICK_TYPES
from alignuser_jax.records import Action

MAX_INPUT_CHARS = 400
"""The most characters of a text that can be typed."""
TERMINATE = Action("terminate")
"""Ends the visit."""

_TOKEN = re.compile(r"\[(CLICK|INPUT|TERMINATE)(?::(.*))?\]", re.DOTALL)
_WIRE_FIELDS = {"click": ("name",), "input": ("name", "text"), "terminate": ()}


class ActionError(ValueError):
    """A text or a JSON value that is no action of a web shop."""


@lru_cache(maxsize=1 << 15)  # a page lists dozens, most of them on every page
def click(name: str) -> Action:
    """Return the click on a semantic id."""
    return Action("click_element", name)


def type_text(name: str, text: str) -> Action:
    """Return the action that types `text` into the field `name` and submits it.

    As in a one-line field of a browser, line breaks vanish; white space at the ends stays.
    """
    return Action("input", name, text=re.sub(r"[\r\n]", "", text))


def is_typable(text: str) -> bool:
    """Return whether a one-line search field takes this text.

    It takes 1 to `MAX_INPUT_CHARS` printable characters that are not all blank.
    """
    return 0 < len(text) <= MAX_INPUT_CHARS and text.isprintable() and not text.isspace()


def from_token(token: str) -> Action:
    """Return the action that a token names, the inverse of `Action.token`.

    The text of an input begins after the first `|`, so a field's name never holds one. Raises
    `ActionError` if the token is of another form.

    Example:
        >>> from_token("[INPUT:nav_bar.search_input|green tea]").text
        'green tea'
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
    """Return the action in OPeRA's wire form.

    Raises `ActionError` for an action of a recommendation site.
    """
    if action.kind == "click_element":
        return {"type": "click", "name": action.target}
    if action.kind == "input":
        return {"type": "input", "name": action.target, "text": action.text}
    if action.kind == "terminate":
        return {"type": "terminate"}
    raise ActionError(f"{action.token} is no action of a web shop")


def from_json(value: object) -> Action:
    """Return the action of OPeRA's wire form.

    Names and texts lose the white space at their ends (docs/method.md section 12.5).

    Args:
        value: The action, or a whole answer that holds it as `action`.

    Raises:
        ActionError: If it is neither.
    """
    wire = value.get("action", value) if isinstance(value, Mapping) else value
    fields = dict(wire) if isinstance(wire, Mapping) else {}
    kind = fields.get("type")
    names = _WIRE_FIELDS.get(kind) if isinstance(kind, str) else None
    if names is None or not all(
        isinstance(fields.get(n), str) and fields[n].strip() for n in names
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
    """Return the click type of each semantic id.

    An id that the log gives several types gets the most frequent one, of equals the first in
    the alphabet. Empty ids and types that are not among `CLICK_TYPES` are left out.

    Args:
        clicks: (semantic id, click type) of each logged click.
    """
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for name, kind in clicks:
        if name and kind in CLICK_TYPES:
            counts[name][kind] += 1
    return {
        name: min(count, key=lambda t: (-count[t], t)) for name, count in sorted(counts.items())
    }


def click_type(action: Action, types: Mapping[str, str]) -> str:
    """Return the type of a click, "other" if `types` lacks its id; "" if it is no click."""
    return types.get(action.target, "other") if action.kind == "click_element" else ""
