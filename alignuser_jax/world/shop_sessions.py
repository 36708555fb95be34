"""Whole sessions of scripted shoppers in the generated shop, and their shapes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from alignuser_jax.datasets.session_shapes import KINDS, SessionShapes
from alignuser_jax.records import Transition, stable_key
from alignuser_jax.world.generated_shop import GeneratedShop
from alignuser_jax.world.generated_views import generated_click_type
from alignuser_jax.world.shop_actions import to_json
from alignuser_jax.world.shopper import Shopper, ShopperConfig, begin

KIND_OF_PLACE = {
    "account": "Administrative",
    "cart": "Administrative",
    "checkout": "Administrative",
    "end": "Administrative",  # the page that confirms an order
    "help": "Informational",
    "browse": "ProductRelated",
    "search": "ProductRelated",
    "detail": "ProductRelated",
}
"""Which kind of page of the UCI sessions a place counts as. UCI says of no page what it was:
this is our reading."""


@dataclass(frozen=True)
class ShopSession:
    """One simulated session: its transitions (`source` "rollout"), the shopper that it left,
    pages loaded by kind, clicks by type, whether something was bought. Synthetic."""

    user_id: str
    transitions: tuple[Transition, ...]
    shopper: Shopper
    pages: dict[str, int]
    clicks: dict[str, int]
    purchase: bool

    @property
    def shape(self) -> tuple[tuple[int, ...], bool]:
        """Pages by kind, in the order of `KINDS`, and whether something was bought."""
        return tuple(self.pages.get(kind, 0) for kind in KINDS), self.purchase


def simulate_session(
    shop: GeneratedShop, user_id: str, seed: int, config: ShopperConfig | None = None
) -> ShopSession:
    """The same session for the same shop, user, seed and configuration."""
    state = shop.reset(user_id, seed)
    shopper = begin(shop.goal(state), stable_key(seed, user_id, "shopper"), config)
    transitions = []
    pages = Counter({KIND_OF_PLACE[state.place]: 1})
    clicks: Counter[str] = Counter()
    while not state.terminal:
        action, shopper = shopper.choose(state)
        after = shop.step(state, action)
        if kind := shop.click_type(action):
            clicks[kind] += 1
        if after.inside.loads > state.inside.loads:
            pages[KIND_OF_PLACE[after.place]] += 1
        transitions.append(Transition(state, action, after, "rollout"))
        state = after
    bought = bool(state.inside.ordered)
    return ShopSession(user_id, tuple(transitions), shopper, dict(pages), dict(clicks), bought)


def simulate_sessions(
    shop: GeneratedShop, count: int, seed: int = 0, config: ShopperConfig | None = None
) -> Iterator[ShopSession]:
    """`count` sessions, each of a user of its own, made when they are asked for."""
    for n in range(count):
        yield simulate_session(shop, f"shopper{n:06d}", seed, config)


def shapes_of(shapes: Iterable[tuple[tuple[int, ...], bool]]) -> SessionShapes:
    """`ShopSession.shape` of many sessions. Raises `ValueError` where there is none."""
    rows = list(shapes)
    if not rows:
        raise ValueError("no sessions: give one at least")
    pages, purchase = zip(*rows, strict=True)
    return SessionShapes(np.array(pages), np.array(purchase))


def session_record(session: ShopSession) -> dict[str, Any]:
    """The session as JSON values: its goal, and each page with the action taken on it."""
    steps = [
        {
            "place": t.state.place,
            "page": t.state.text,
            "action": to_json(t.action),
            "click_type": generated_click_type(t.action.target)
            if t.action.kind == "click_element"
            else "",
        }
        for t in session.transitions
    ]
    return {
        "user_id": session.user_id,
        "synthetic": True,
        "goal": session.shopper.goal.text,
        "purchase": session.purchase,
        "pages": session.pages,
        "steps": steps,
        "end": session.transitions[-1].next_state.text,
    }
