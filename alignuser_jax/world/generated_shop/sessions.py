"""Simulate sessions of scripted shoppers in the generated shop and write them to a file."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from alignuser_jax.durable.whole import write_whole
from alignuser_jax.randomness import named_generator, stable_key
from alignuser_jax.records import Transition
from alignuser_jax.world.generated_shop.session_shapes import KINDS, SessionShapes
from alignuser_jax.world.generated_shop.shop import GeneratedShop
from alignuser_jax.world.generated_shop.shopper import Shopper, ShopperConfig, begin_shopper
from alignuser_jax.world.generated_shop.views import browsing, generated_click_type
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
"""The kind of page that a place counts as in the UCI sessions. UCI does not say what its pages
were: this is our reading."""


@dataclass(frozen=True)
class ShopSession:
    """One simulated, so synthetic, session.

    Attributes:
        user_id: Who shopped.
        transitions: The steps, of `source` "rollout".
        shopper: The shopper after the session.
        pages: The pages loaded, by kind.
        clicks: The clicks, by type.
        purchase: Whether something was bought.
    """

    user_id: str
    transitions: tuple[Transition, ...]
    shopper: Shopper
    pages: dict[str, int]
    clicks: dict[str, int]
    purchase: bool

    @property
    def shape(self) -> tuple[tuple[int, ...], bool]:
        """The pages of each kind, in the order of `KINDS`, and whether something was bought."""
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
    """Return one session; the same arguments give the same session.

    Args:
        shop: The shop.
        user_id: Who shops.
        seed: Draws the goal, the shopper and all that they do.
        config: The habits of the shopper.
        epsilon: The chance that an action is not the shopper's but drawn from those that the
            page lists. The shopper then knows what became of its visit.
        max_actions: Cuts the session off; `None` for no limit.
    """
    if not 0 <= epsilon <= 1:
        raise ValueError(f"epsilon is {epsilon}, expected a chance from 0 to 1")
    state = shop.reset(user_id, seed)
    shopper = begin_shopper(shop.goal(state), stable_key(seed, user_id, "shopper"), config)
    transitions: list[Transition] = []
    pages = Counter({KIND_OF_PLACE[state.place]: 1})
    clicks: Counter[str] = Counter()
    while not state.terminal and (max_actions is None or len(transitions) < max_actions):
        before = shopper
        action, shopper = before.choose(state)
        explored = False
        if epsilon:
            rng = named_generator(seed, user_id, "explore", len(transitions))
            explored = rng.random() < epsilon
            if explored:
                action = state.actions[int(rng.integers(len(state.actions)))]
        after = shop.step(state, action)
        visit = browsing(after)
        if explored:
            shopper = replace(
                before,
                actions_taken=before.actions_taken + 1,
                pages_loaded=visit.loads,
                has_cart=bool(visit.cart),
            )
        if kind := shop.click_type(action):
            clicks[kind] += 1
        loaded = visit.loads > browsing(state).loads
        if loaded and (not after.terminal or visit.ordered):  # else the visit ended before it
            pages[KIND_OF_PLACE[after.place]] += 1
        transitions.append(Transition(state, action, after, "rollout"))
        state = after
    return ShopSession(
        user_id,
        tuple(transitions),
        shopper,
        dict(pages),
        dict(clicks),
        shop.has_purchase(state),
    )


def simulate_sessions(
    shop: GeneratedShop,
    count: int,
    seed: int = 0,
    config: ShopperConfig | None = None,
    first: int = 0,
) -> Iterator[ShopSession]:
    """Yield the sessions from number `first` to `count`, each of a user of its own.

    Session n is the same whatever `first` and `count` are.
    """
    for n in range(first, count):
        yield simulate_session(shop, f"shopper{n:06d}", seed, config)


def shapes_of(shapes: Iterable[tuple[tuple[int, ...], bool]]) -> SessionShapes:
    """Return the shapes of many sessions (`ShopSession.shape`).

    Raises `ValueError` if there is none.
    """
    rows = list(shapes)
    if not rows:
        raise ValueError("there are no sessions: at least one is needed")
    pages, purchase = zip(*rows, strict=True)
    return SessionShapes(np.array(pages), np.array(purchase))


def session_record(session: ShopSession) -> dict[str, Any]:
    """Return the session as JSON values: its goal and each page with the action taken there."""
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
    """The JSON object in `data`, which must have the fields `names`."""
    try:
        value = json.loads(data)
        if not (isinstance(value, dict) and set(names) <= set(value)):
            raise ValueError("another form")
    except (ValueError, RecursionError):
        raise ValueError(
            f"{path} was not written by this program: use another folder, or remove this one"
        ) from None
    return value


def write_sessions(
    shop: GeneratedShop,
    folder: str | Path,
    count: int,
    seed: int = 0,
    progress: Callable[[Iterable, int], Iterable] = lambda sessions, done: sessions,
    config: ShopperConfig | None = None,
) -> SessionShapes:
    """Write sessions to `folder/sessions.jsonl`, one `session_record` a line.

    A file that is there already is continued after its last whole line.

    Args:
        shop: The shop.
        folder: Where the file and its `manifest.json` go.
        count: How many sessions the file will have.
        seed: Draws everything.
        progress: `progress(sessions, done)` may wrap the sessions that are still to be made,
            such as with a progress bar.
        config: The habits of the shoppers.

    Returns:
        The shapes of all sessions in the file.

    Raises:
        ValueError: If the folder holds sessions of another shop, seed or shopper, or files that
            this function did not write.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    catalogue = shop.catalogue
    settings = {
        "catalogue": f"{stable_key(catalogue.products, catalogue.goals):016x}",
        "source": catalogue.source,
        "shop": f"{shop.config} {shop.max_pages} {shop.max_steps}",
        "shopper": asdict(config or ShopperConfig()),
        "seed": seed,
        "synthetic": True,
    }
    manifest, path = folder / "manifest.json", folder / "sessions.jsonl"
    if manifest.is_file():
        earlier = _object(manifest.read_bytes(), manifest, settings)
        if other := [name for name in settings if earlier[name] != settings[name]]:
            raise ValueError(
                f"{folder} holds sessions made with another {', '.join(other)}; "
                "use another folder or the same settings"
            )
    elif path.is_file() and path.stat().st_size:
        raise ValueError(f"{path} exists without its manifest.json: use another folder")
    write_whole(manifest, json.dumps(settings, indent=1) + "\n")
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
            line = json.dumps(session_record(session), ensure_ascii=False).encode() + b"\n"
            file.write(line)
            shapes.append(session.shape)
    return shapes_of(shapes[:count])
