"""The web shop as a Gymnasium environment in which the user acts."""

import string

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from alignuser_jax.records import Action
from alignuser_jax.world import CatalogueConfig, GeneratedShop, make_catalogue
from alignuser_jax.world.gym import StagedVectorEnv, UserEnv, listed_menu

USERS = ("ann", "bob", "eve")
BUYING = (
    *("place_order", "proceed_to_checkout", "go_to_cart", "add_to_cart", "product_options"),
    "product_link",
)


def bought(state, action, after):
    return float(after.terminal and "ORDER PLACED" in after.text)


@pytest.fixture(scope="module")
def make():
    shop = GeneratedShop(make_catalogue(config=CatalogueConfig(goals=15)), max_steps=60)

    def make_env(size=150):
        menu = listed_menu(size)
        return UserEnv(shop, None, USERS, menu, characters=string.printable, reward=bought)

    return make_env


@pytest.mark.filterwarnings("error")
def test_it_is_a_gymnasium_environment(make):
    env = make()
    env.spec = gymnasium.envs.registration.EnvSpec("Shop-v0", entry_point=make)
    check_env(env, skip_render_check=True)


def test_the_mask_is_what_the_shop_takes_and_purchases_are_rewarded(make):
    env, rng, orders = make(), np.random.default_rng(0), 0.0
    for episode in range(30):
        text, info = env.reset(seed=episode)
        over = False
        while not over:
            state, valid = env.state, np.flatnonzero(info["action_mask"])
            assert text == state.text and len(valid) == len(state.actions)
            assert [info["actions"][n] for n in valid] == [a.token for a in state.actions]
            wanted = [n for word in BUYING for n in valid if word in info["actions"][n]]
            number = wanted[0] if wanted and rng.random() < 0.7 else rng.choice(valid)
            text, reward, over, _, info = env.step(number)
            assert env.state == env.world.step(state, state.actions[number])
            orders += reward
    assert orders > 0


def test_what_is_not_listed_changes_nothing_but_a_line(make):
    env = make()
    text, info = env.reset(seed=1)
    last = env.action_space.n - 1
    assert not info["action_mask"][last]
    after, reward, over, _, _ = env.step(last)
    assert after == f"{text}\nInvalid action: {Action('click').token}" and not (reward or over)


def test_a_menu_that_is_too_small_says_so(make):
    with pytest.raises(ValueError, match="the menu has room for 2: give listed_menu a larger"):
        make(2)


def test_a_vector_does_what_each_does_alone(make):
    envs = StagedVectorEnv(make, 3)
    texts, _ = envs.reset(seed=5)
    alone = [make() for _ in range(3)]
    assert [env.reset(seed=5 + n)[0] for n, env in enumerate(alone)] == list(texts)
    for number in (0, 1, 2):
        texts, rewards, over, _, _ = envs.step(np.array([number] * 3))
        for n, env in enumerate(alone):
            text, reward, ended, _, _ = env.step(number)
            assert (text, reward, ended) == (texts[n], rewards[n], over[n])
