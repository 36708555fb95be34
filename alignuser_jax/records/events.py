"""Events and outcomes: what a session leaves behind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from alignuser_jax.records.world import State


@dataclass(frozen=True, slots=True)
class Event:
    """One row of the event table, which is sorted by (arm, user_id, session, sequence).

    An event holds no clock time: the same run must give the same bytes. The kinds on a
    recommendation site (`agents.shop_session` has those of a web shop):

    - "page": one row per item shown; `probability` is its propensity, 0 where the recommender
      gives none.
    - "screen": `value` is 1 for watch and 0 for skip, `probability` is P(watch).
    - "rate": `value` is the rating, `expected` the expected rating.
    - "act": `text` is the action token.
    - "interview": `value` is the satisfaction, 1 to 10.
    - "exit": `value` is the last page.
    - "failure": `text` says what went wrong.

    Attributes:
        arm: Which recommender, of those compared.
        user_id: Who acted.
        session: The number of the user's session.
        sequence: The number of the event in its session, from 0.
        kind: What happened.
        page: The number of the page, from 1.
        position: The item's place on the page, from 1; 0 where the event has no item.
        item_id: The item, "" for none.
        value: See the kinds above.
        probability: The probability of what was chosen, unless a kind says otherwise.
        expected: The mean of the distribution that `value` was drawn from.
        text: See the kinds above.
    """

    arm: str
    user_id: str
    session: int
    sequence: int
    kind: str
    page: int = 0
    position: int = 0
    item_id: str = ""
    value: float = 0.0
    probability: float = 0.0
    expected: float = 0.0
    text: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a session coroutine returns.

    Attributes:
        events: The events, in order.
        state: The state in which the session ended.
        extra: Further results by name ("messages", "failures", "memory", "restarts").
    """

    events: tuple[Event, ...]
    state: State
    extra: Mapping[str, Any] = field(default_factory=dict)
