"""Whole sessions of scripted shoppers in the generated shop: their shapes, a file of them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from alignuser_jax.durable.whole import write_whole
from alignuser_jax.randomness import generator_of, stable_key
from alignuser_jax.records import Transition
from alignuser_jax.world.generated_shop.session_shapes import KINDS, SessionShapes
from alignuser_jax.world.generated_shop.shop import GeneratedShop
from alignuser_jax.world.generated_shop.shopper import Shopper, ShopperConfig, begin
from alignuser_jax.world.generated_shop.views import generated_click_type
from alignuser_jax.world.shop.actions import to_json

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
    pages loaded by kind, clicks by type, whether something was bought. Synthetic.
    """

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
    shop: GeneratedShop,
    user_id: str,
    seed: int,
    config: ShopperConfig | None = None,
    *,
    epsilon: float = 0.0,
    max_actions: int | None = None,
) -> ShopSession:
    """The same session for the same shop, user, seed and configuration. With chance `epsilon`
    an action is not the shopper's but drawn from the listed ones, and the shopper knows what
    became of its visit; `max_actions` cuts off.
    """
    state = shop.reset(user_id, seed)
    shopper = begin(shop.goal(state), stable_key(seed, user_id, "shopper"), config)
    transitions = []
    pages = Counter({KIND_OF_PLACE[state.place]: 1})
    clicks: Counter[str] = Counter()
    while not state.terminal and (max_actions is None or len(transitions) < max_actions):
        before = shopper
        action, shopper = before.choose(state)
        replaced = False
        if epsilon:
            key = stable_key(seed, user_id, "explore", len(transitions))
            rng = generator_of(key)
            replaced = rng.random() < epsilon
            if replaced:
                action = state.actions[int(rng.integers(len(state.actions)))]
        after = shop.step(state, action)
        if replaced:
            inside = after.inside
            shopper = replace(
                before, done=before.done + 1, pages=inside.loads, taken=bool(inside.cart)
            )
        if kind := shop.click_type(action):
            clicks[kind] += 1
        seen = not after.terminal or after.inside.ordered  # else the visit was cut before it
        if seen and after.inside.loads > state.inside.loads:
            pages[KIND_OF_PLACE[after.place]] += 1
        transitions.append(Transition(state, action, after, "rollout"))
        state = after
    bought = bool(state.inside.ordered)
    return ShopSession(user_id, tuple(transitions), shopper, dict(pages), dict(clicks), bought)


def simulate_sessions(
    shop: GeneratedShop,
    count: int,
    seed: int = 0,
    config: ShopperConfig | None = None,
    first: int = 0,
) -> Iterator[ShopSession]:
    """Sessions `first` to `count`, each of a user of its own, made when they are asked for."""
    for n in range(first, count):
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


def _object(data: bytes, path: Path, names: Iterable[str]) -> dict[str, Any]:
    """The JSON object with `names` in `data`; `ValueError` for anything else."""
    try:
        found = json.loads(data)
        if not (isinstance(found, dict) and set(names) <= set(found)):
            raise ValueError("another form")
    except (ValueError, RecursionError):
        raise ValueError(
            f"{path} is not what this program wrote: use another folder, or remove this one"
        ) from None
    return found


def write_sessions(
    shop: GeneratedShop,
    folder: str | Path,
    count: int,
    seed: int = 0,
    progress: Callable[[Iterable, int], Iterable] = lambda sessions, done: sessions,
    config: ShopperConfig | None = None,
) -> SessionShapes:
    """`count` sessions in `folder/sessions.jsonl`, a `session_record` a line; their shapes.

    Goes on after the last whole line that is there; `progress(sessions, done)` may wrap what is
    still to be made. Raises `ValueError` where the folder holds sessions of another shop, seed
    or shopper.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    catalogue = shop.catalogue
    made_with = {
        "catalogue": f"{stable_key(catalogue.products, catalogue.goals):016x}",
        "source": catalogue.source,
        "shop": f"{shop.config} {shop.max_pages} {shop.max_steps}",
        "shopper": asdict(config or ShopperConfig()),
        "seed": seed,
        "synthetic": True,
    }
    manifest, path = folder / "manifest.json", folder / "sessions.jsonl"
    if manifest.is_file():
        found = _object(manifest.read_bytes(), manifest, made_with)
        if other := [name for name in made_with if found[name] != made_with[name]]:
            raise ValueError(
                f"{folder} holds sessions made with another {', '.join(other)}; "
                "use another folder or the same settings"
            )
    elif path.is_file() and path.stat().st_size:
        raise ValueError(f"{path} is there without its manifest.json: use another folder")
    write_whole(manifest, json.dumps(made_with, indent=1) + "\n")
    shapes = []
    whole = 0  # bytes of whole lines
    if path.is_file():
        with path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                record = _object(line, path, ("pages", "purchase"))
                pages = tuple(dict(record["pages"]).get(kind, 0) for kind in KINDS)
                shapes.append((pages, record["purchase"]))
                whole += len(line)
    with path.open("ab") as file:
        file.truncate(whole)
        todo = simulate_sessions(shop, count, seed, config, len(shapes))
        for session in progress(todo, min(len(shapes), count)):
            record = json.dumps(session_record(session), ensure_ascii=False)
            file.write(record.encode() + b"\n")
            shapes.append(session.shape)
    return shapes_of(shapes[:count])
