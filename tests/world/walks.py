"""Random walks through any world, and what must hold on them: `step` is pure, what is listed is
accepted, anything else refused.

    python -m tests.world.walks tests.world.walks:site_subject 2000

prints the digest of a walk, the same in every process whatever its PYTHONHASHSEED.
"""

from __future__ import annotations

import hashlib
import importlib
import pickle
import random
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from alignuser_jax.datasets.formats import synthetic
from alignuser_jax.recommenders import Random
from alignuser_jax.records import RATINGS, Action, State, World
from alignuser_jax.world import (
    CatalogueConfig,
    GeneratedShop,
    SiteConfig,
    make_catalogue,
    site_of_dataset,
)

INVALID = "Invalid action: "


@dataclass(frozen=True)
class Subject:
    """A world to walk through. `answer` gives what `state.needs` asks for; `others` are actions
    of all kinds, each valid in some states at most. A world whose states list only a part of
    what is valid says the whole with `valid_actions(state)`."""

    world: World
    answer: Callable[[Any], Any]
    user_ids: Sequence[str]
    others: Sequence[Action]

    def valid(self, state: State) -> tuple[Action, ...]:
        tell = getattr(self.world, "valid_actions", None)
        return state.actions if tell is None else tell(state)

    def start(self, rng: random.Random) -> State:
        return self.complete(self.world.reset(rng.choice(self.user_ids), rng.getrandbits(62)))

    def complete(self, state: State) -> State:
        while state.needs is not None:
            state = self.world.resolve(state, self.answer(state.needs))
        return state


@dataclass(frozen=True)
class Walked:
    steps: int
    visits: int
    kinds: Counter
    digest: str


def walk(subject: Subject, steps: int, seed: int = 0, leave: float = 0.1) -> Walked:
    """`steps` random valid actions, from visit to visit; nothing is checked. An action that
    ends the visit is taken only with the chance `leave`, so that visits get long."""
    rng, hasher = random.Random(seed), hashlib.blake2b(digest_size=16)
    state, visits, kinds = subject.start(rng), 1, Counter()
    for _ in range(steps):
        action = _draw(subject, state, rng, leave)
        state = subject.complete(subject.world.step(state, action))
        kinds[action.kind] += 1
        hasher.update(canonical(state).encode())
        if state.terminal:
            state, visits = subject.start(rng), visits + 1
    return Walked(steps, visits, kinds, hasher.hexdigest())


def check_walk(subject: Subject, steps: int, seed: int = 0, leave: float = 0.1) -> Walked:
    """`walk`, and in each state: the action taken and one other valid one are accepted, one
    that is not valid changes nothing but the error line, and the state itself never changes.
    Raises AssertionError naming the state otherwise."""
    rng, world = random.Random(seed), subject.world
    state, visits, kinds = subject.start(rng), 1, Counter()
    hasher = hashlib.blake2b(digest_size=16)
    for _ in range(steps):
        before, name = pickle.dumps(state), hash(state)
        valid = subject.valid(state)
        action = _draw(subject, state, rng, leave)
        after = world.step(state, action)
        assert not after.feedback.startswith(INVALID), (state, action)
        assert world.step(state, action) == after, (state, action)
        other = _of_a_kind(valid, rng)
        assert not world.step(state, other).feedback.startswith(INVALID), (state, other)
        stranger = _of_a_kind(subject.others, rng)
        if stranger not in valid:
            check_refused(world, state, stranger)
            kinds["refused"] += 1
        assert pickle.dumps(state) == before and hash(state) == name, (state, action)
        assert after.needs is not None or after.terminal == (not after.actions), after
        if after.needs is not None:
            unresolved, answer = pickle.dumps(after), subject.answer(after.needs)
            resolved = world.resolve(after, answer)
            assert world.resolve(after, answer) == resolved, after
            assert pickle.dumps(after) == unresolved
            after = resolved
        state = subject.complete(after)
        kinds[action.kind] += 1
        hasher.update(canonical(state).encode())
        if state.terminal:
            assert not subject.valid(state) and world.step(state, action) == state
            state, visits = subject.start(rng), visits + 1
    return Walked(steps, visits, kinds, hasher.hexdigest())


def check_refused(world: World, state: State, action: Action) -> None:
    """docs/method.md section 2.5: the page as it was and one error line."""
    after = world.step(state, action)
    assert after.feedback.startswith(INVALID), (state, action, after.feedback)
    assert len(after.feedback.splitlines()) == 1
    assert after.text.endswith("\n" + after.feedback)
    same = {"feedback": state.feedback, "text": state.text}
    assert replace(after, **same) == state, (state, action)


def _draw(subject: Subject, state: State, rng: random.Random, leave: float) -> Action:
    valid = subject.valid(state)
    staying = [a for a in valid if a.kind not in ("exit", "terminate")]
    return _of_a_kind(staying if staying and rng.random() > leave else valid, rng)


def _of_a_kind(actions: Sequence[Action], rng: random.Random) -> Action:
    """First a kind, then one of its actions: the few of a kind come as often as the many."""
    by_kind: dict[str, list[Action]] = {}
    for action in actions:
        by_kind.setdefault(action.kind, []).append(action)
    return rng.choice(by_kind[rng.choice([*by_kind])])


def canonical(state: State) -> str:
    """The state as text that does not depend on how sets are ordered."""
    values = [(f.name, getattr(state, f.name)) for f in fields(state) if f.name != "needs"]
    if state.needs is not None:
        request = ((f.name, getattr(state.needs, f.name)) for f in fields(state.needs))
        values += [(n, sorted(v) if isinstance(v, frozenset) else v) for n, v in request]
    return repr(values)


# --- the recommendation site --------------------------------------------------------------


def site_subject(**config) -> Subject:
    """A site of the generated data, with search; random slates."""
    dataset = synthetic.generate(synthetic.SyntheticConfig(users=40, items=80))
    recommender = Random(dataset.item_ids)
    site = site_of_dataset(dataset, SiteConfig(**{"search": True, "max_pages": 8} | config))
    targets = ["", "0", "01", "x\ny", *(f"{n}" for n in range(1, 8))]
    others = [Action(kind) for kind in ("next_page", "previous_page", "exit", "search")]
    others += [Action("search", query) for query in ("Comedy", "war", "Nothing", "[EXIT]")]
    others += [Action("click", target) for target in targets]
    others += [Action("rate", t, v) for t in targets for v in (0, *RATINGS, 6, -1)]
    return Subject(
        site, lambda needs: recommender.recommend([needs])[0], dataset.user_ids, others
    )


# --- the generated web shop ---------------------------------------------------------------


def shop_subject() -> Subject:
    """A small catalogue; in the search field any text may be typed, so `others` type none."""
    shop = GeneratedShop(make_catalogue(config=CatalogueConfig(goals=25)), max_pages=60)
    names = (
        "nonsense.1",
        "pagination.next",
        "buybox.purchase_form.add_to_cart",
        "nav_bar.cart",
    )
    others = [Action("click_element", name) for name in (*names, "", "a\nb")]
    others += [Action("click", "1"), Action("next_page"), Action("exit")]
    others += [Action("input", "nav_bar.cart", text="tea"), Action("terminate", "x")]
    return Subject(shop, lambda needs: None, [f"u{n}" for n in range(20)], others)


if __name__ == "__main__":
    module, name = sys.argv[1].split(":")
    print(walk(getattr(importlib.import_module(module), name)(), int(sys.argv[2])).digest)
