"""Random walks through both web shops: pure, the same in every process, and what is listed is
exactly what is accepted."""

import copy
import hashlib
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from alignuser_jax.datasets.sessions import CLICK_TYPES
from alignuser_jax.randomness import named_generator
from alignuser_jax.records import Action
from alignuser_jax.world import (
    CatalogueConfig,
    GeneratedShop,
    WebShop,
    WebShopConfig,
    build_index,
    make_catalogue,
)
from alignuser_jax.world.shop.actions import (
    TERMINATE,
    click,
    from_json,
    from_token,
    to_json,
    type_text,
)
from alignuser_jax.world.shop.page import read_page
from tests.world.shop import shop_toy as toy

FIELD = "nav_bar.search_input"
TEXTS = ("red cable", "x", "[TERMINATE]", "a | b", "<- -> <-", "千", "search " * 50)


def generated():
    return GeneratedShop(make_catalogue(config=CatalogueConfig(goals=25)), max_pages=60)


def logged(sources=("log", "rule", "model")):
    config = WebShopConfig(sources=sources, max_steps=60)
    return WebShop(build_index(toy.STEPS), {"ann": ("tea",)}, config)


def written(request):
    """A language model's stand-in: some page, by the request's seed."""
    names = ("nav_bar.cart", FIELD, "footer.legal", f"made_up.{request.seed % 3}")
    place = ("Home", "Shopping cart", "Product page: Red USB Cable")[request.seed % 3]
    return (
        f"[NEXT STATE]\nPAGE 1\nCONTEXT: {place}\nPRODUCTS:\n"
        "<- Red USB Cable -> <- Price: $1 ->\n"
        f"INTERACTIVE ELEMENTS (semantic IDs):\n{', '.join(names)}"
    )


def walk(world, steps, seed=0, foreign=0.0):
    """(state, action, next state) of `steps` random actions; a share of `foreign` ones are
    typed texts, ids of other pages or nonsense."""
    rng = named_generator("walk", seed)
    seen = [TERMINATE]
    visit = 0
    state = world.reset(f"u{visit}", seed)
    for n in range(steps):
        action = state.actions[rng.integers(len(state.actions))]
        if action == TERMINATE and rng.random() < 0.8:
            action = state.actions[rng.integers(len(state.actions))]
        if rng.random() < foreign:
            action = (
                type_text(FIELD, TEXTS[rng.integers(len(TEXTS))]),
                seen[rng.integers(len(seen))],
                Action("click", "1"),
                click(f"nonsense.{n}"),
            )[rng.integers(4)]
        after = world.step(state, action)
        while after.needs is not None:
            after = world.resolve(after, written(after.needs))
        yield state, action, after
        seen = (seen + [action])[-200:]
        state = after
        if state.terminal:
            visit += 1
            state = world.reset(f"u{visit}", seed)


WORLDS = pytest.mark.parametrize(
    "make", [generated, logged, lambda: logged(("log", "rule"))], ids=["shop", "log", "closed"]
)


def check(world, steps, seed):
    """The promises of a world along one walk; returns the kinds of click that occurred."""
    types, kinds = set(), set()
    for n, (state, action, after) in enumerate(walk(world, steps, seed, foreign=0.3)):
        valid = world.valid_action(state, action)
        refused = after.feedback.startswith("Invalid action: ")
        assert valid != refused, (state.text, action)
        listed = action in state.actions
        assert valid == listed or (valid and action.kind == "input")
        if refused:
            assert after.inside == state.inside and after.actions == state.actions
        assert after.terminal == (not after.actions) == (after.place == "end")
        assert len(set(after.actions)) == len(after.actions)
        types.add(world.click_type(action) if valid else "")
        kinds.add(action.kind)
        if n % 100 == 0:
            before = pickle.dumps(state)
            again = world.step(state, action)
            assert pickle.dumps(state) == before  # the argument stays as it was
            assert copy.deepcopy(state) == state and hash(state) == hash(copy.deepcopy(state))
            if again.needs is None:
                assert again == after
                if not after.terminal:
                    assert read_page(after.text, after.place).elements == tuple(
                        dict.fromkeys(a.target for a in after.actions if a != TERMINATE)
                    )
            if action.kind != "click":
                assert from_token(action.token) == action
                assert from_json(to_json(action)) == replace(action, text=action.text.strip())
    assert {"click_element", "input"} <= kinds
    return types - {""}


@WORLDS
def test_a_walk_keeps_the_promises(make):
    check(make(), 1_500, seed=1)


@WORLDS
def test_every_listed_action_is_accepted(make):
    world = make()
    for n, (state, _, _) in enumerate(walk(world, 150, seed=2)):
        if n % 10:
            continue
        for action in state.actions:
            assert world.valid_action(state, action)
            after = world.step(state, action)
            assert not after.feedback.startswith("Invalid"), action
            assert after.user_id == state.user_id and after.seed == state.seed


def digest(make, steps=300):
    hashed = hashlib.blake2b(digest_size=8)
    for state, action, after in walk(make(), steps, seed=3, foreign=0.2):
        parts = (state.text, action.token, after.text, after.source, after.place, after.page)
        hashed.update(repr(parts).encode())
    return hashed.hexdigest()


def test_equal_across_processes():
    code = (
        "import tests.world.shop.test_shop_walks as t\n"
        "print(t.digest(t.generated), t.digest(t.logged))"
    )
    here = f"{digest(generated)} {digest(logged)}"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[3],
        env=os.environ | {"PYTHONHASHSEED": "12345"},
    )
    assert done.stdout.strip() == here, done.stderr[-2000:]


def test_an_old_state_answers_as_it_did():
    world = generated()
    steps = list(walk(world, 200, seed=4))
    for state, action, after in reversed(steps):
        assert world.step(state, action) == after


@pytest.mark.slow
@WORLDS
def test_long_walks(make):
    types = check(make(), 100_000, seed=5)
    if make is generated:
        assert types == set(CLICK_TYPES)
