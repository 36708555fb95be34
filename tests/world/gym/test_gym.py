"""The Gymnasium views: the checker, masks, and users that are language models."""

import subprocess
import sys
import warnings
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

from alignuser_jax.agents import SessionConfig, session
from alignuser_jax.datasets.formats import synthetic
from alignuser_jax.recommenders import Random
from alignuser_jax.records import Request, Slate
from alignuser_jax.world import SiteConfig, site_of_dataset
from alignuser_jax.world.gym import (
    BehaviouralUsers,
    RecSysEnv,
    StagedVectorEnv,
    UserEnv,
    characters_of,
    estimated_taste,
    listed_menu,
    recsys_env,
    true_taste,
    user_env,
    user_vector_env,
)
from tests.agents import visits

ROOT = Path(__file__).parents[3]
IDS = ("alignuser/RecSys-v0", "alignuser/User-v0")


@pytest.fixture(scope="module")
def dataset():
    return synthetic.generate(
        synthetic.SyntheticConfig(users=40, items=60, ratings_per_user=20)
    )


@pytest.fixture(scope="module")
def folder(dataset, tmp_path_factory):
    return dataset.save(tmp_path_factory.mktemp("data") / "synthetic")


def play(env, steps, seed=0, masked=True):
    """Everything that a random agent meets."""
    env.action_space.seed(seed)
    met = [env.reset(seed=seed)]
    for _ in range(steps):
        info = met[-1][-1]
        mask = info["action_mask"] if masked else None
        met.append(env.step(env.action_space.sample(mask)))
        if met[-1][2]:
            met.append(env.reset())
    return met


@pytest.mark.parametrize("name", IDS)
@pytest.mark.parametrize("site", [None, SiteConfig(search=True, items_per_page=3, horizon=2)])
def test_gymnasium_finds_nothing_to_warn_of(name, site, folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gymnasium.make(name, dataset=folder, site=site)
        check_env(env.unwrapped)
        for step in play(env, 60, masked=False):
            assert step[0] in env.observation_space
        env.close()


@pytest.mark.parametrize("name", IDS)
def test_the_default_is_generated_and_a_vector_says_how_it_resets(name):
    env = gymnasium.make(name)
    assert len(env.unwrapped.user_ids) == synthetic.SyntheticConfig().users
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        envs = gymnasium.make_vec(name, num_envs=3)
    assert isinstance(envs.unwrapped, StagedVectorEnv)
    assert envs.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP
    observed, _ = envs.reset(seed=1)
    assert observed in envs.observation_space


def test_only_on_demand():
    code = "import sys, alignuser_jax.world; assert 'gymnasium' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


# --- the user acts ------------------------------------------------------------------------


def test_the_mask_says_what_is_valid(dataset):
    env = user_env(dataset, SiteConfig(search=True, max_pages=4))
    rng = np.random.default_rng(1)
    _, info = env.reset(seed=1)
    refused = set()
    for _ in range(150):
        invalid = np.flatnonzero(info["action_mask"] == 0)
        if len(invalid):
            before = env.state
            number = int(rng.choice(invalid))
            text, reward, over, _, info = env.step(number)
            token = info["actions"][number]
            assert text.endswith(f"\nInvalid action: {token}") and not over and reward == 0
            assert (env.state.pages, env.state.session) == (before.pages, before.session)
            refused.add(token)
        valid = np.flatnonzero(info["action_mask"])
        text, _, over, _, info = env.step(int(rng.choice(valid)))
        assert "Invalid action" not in text and text == env.state.text
        if over:
            assert not info["action_mask"].any()
            _, info = env.reset()
    assert {"[PREVIOUS_PAGE]", "[CLICK_ITEM:]"} <= refused


def test_numbers_keep_their_meaning(dataset):
    env = user_env(dataset, SiteConfig(items_per_page=2))
    tokens = env.reset(seed=0)[1]["actions"]
    assert tokens[:3] == ("[NEXT_PAGE]", "[PREVIOUS_PAGE]", "[EXIT]")
    assert tokens[3:5] == ("[CLICK_ITEM:1]", "[CLICK_ITEM:2]")
    assert tokens[5] == "[RATE:1:1]" and tokens[-1] == "[RATE:2:5]"
    assert len(tokens) == env.action_space.n == 15
    text, _, _, _, info = env.step(8)
    assert text.endswith("You rated 1: 4/5") and info["actions"] == tokens
    assert env.state.session[-1].rating == 4
    assert env.step(0)[4]["page"] == 2
    text, reward, over, truncated, info = env.step(2)
    assert (text, reward, over, truncated) == ("SESSION ENDED", 0.0, True, False)
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(0)


def test_any_world_by_what_it_lists(dataset):
    site = site_of_dataset(dataset, SiteConfig(items_per_page=3))
    named = {"characters": characters_of(dataset.items.values())}
    env = UserEnv(site, Random(dataset.item_ids), dataset.user_ids, listed_menu(8), **named)
    _, info = env.reset(seed=3)
    assert info["actions"][:5] == tuple(action.token for action in env.state.actions)
    assert info["action_mask"].tolist() == [1] * 5 + [0] * 3
    assert env.step(7)[0].endswith("Invalid action: [CLICK_ITEM:]")
    small = UserEnv(
        site, Random(dataset.item_ids), dataset.user_ids, listed_menu(4),
        **named, most_characters=30,
    )  # fmt: skip
    with pytest.raises(ValueError, match="lists 5 actions"):
        small.reset(seed=3)


def test_text_outside_the_space_is_made_to_fit(dataset):
    site = site_of_dataset(dataset)
    env = UserEnv(
        site, Random(dataset.item_ids), dataset.user_ids, listed_menu(8),
        characters="PAGE 1\n[]", most_characters=40,
    )  # fmt: skip
    text, _ = env.reset(seed=0)
    assert text.startswith("PAGE 1\n1? ???") and len(text) == 40
    assert text in env.observation_space


def test_rewards_are_the_callers(dataset):
    def reward(state, action, after):
        return 2.0 if action.kind == "rate" and len(after.session) > len(state.session) else -1

    env = user_env(dataset, reward=reward)
    env.reset(seed=0)
    assert [env.step(n)[1] for n in (9, 0, 1)] == [2.0, -1.0, -1.0]


# --- the recommender acts -----------------------------------------------------------------


def test_a_slate_is_shown_as_chosen_or_mended(dataset):
    env = recsys_env(dataset)
    _, info = env.reset(seed=5)
    masked, free = np.flatnonzero(info["action_mask"] == 0), np.flatnonzero(info["action_mask"])
    history = {past.item_id for past in env.site.histories[info["user_id"]]}
    assert {env.item_ids[code] for code in masked} == history
    chosen = free[[7, 3, 9, 1]]
    _, reward, _, _, info = env.step(chosen)
    assert info["slate"] == tuple(env.item_ids[code] for code in chosen)
    assert info["replaced"] == 0
    assert reward == (info["rated"] >= 4).sum()

    env.reset(seed=5)
    _, _, _, _, info = env.step([free[0], free[0], masked[0], free[1]])
    assert len(set(info["slate"])) == 4 and not history & set(info["slate"])
    assert info["slate"][:2] == (env.item_ids[free[0]], env.item_ids[free[1]])
    assert info["replaced"] >= 2
    strict = recsys_env(dataset, strict=True)
    strict.reset(seed=5)
    with pytest.raises(ValueError, match="may not be shown"):
        strict.step([free[0], free[0], free[1], free[2]])
    for wrong in ([0, 1, 2], [0, 1, 2, 60], [-1, 0, 1, 2], 3):
        with pytest.raises(ValueError, match="expected 4 codes from 0 to 59"):
            env.step(wrong)


def test_a_catalogue_that_runs_out(dataset):
    users = BehaviouralUsers(
        site_of_dataset(dataset, SiteConfig(max_pages=50)),
        true_taste(dataset),
        bored=0,
        pleased=0,
    )
    env = RecSysEnv(users.site, users, dataset.user_ids)
    user = dataset.user_ids[0]
    env.reset(seed=0, options={"user_id": user})
    slate_items, over = [], False
    while not over:
        _, _, over, _, info = env.step(env.action_space.sample())
        slate_items += info["slate"]
    assert sorted([*slate_items, *(p.item_id for p in users.site.histories[user])]) == sorted(
        dataset.item_ids
    )
    assert info["outcome"].state.terminal
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step([0, 1, 2, 3])


def test_the_same_item_meets_the_same_answer_wherever_it_is_shown(dataset):
    env = recsys_env(dataset, SiteConfig(horizon=3))
    options = {"user_id": dataset.user_ids[3], "seed": 11}

    def ratings(order):
        _, info = env.reset(options=options)
        free = np.flatnonzero(info["action_mask"])[:12][order]
        rated = {}
        for page in free.reshape(3, 4):
            info = env.step(page)[4]
            rated |= dict(zip(info["slate"], info["rated"].tolist(), strict=True))
        return rated

    assert ratings(np.arange(12)) == ratings(np.arange(12)[::-1])


def test_users_follow_their_taste(dataset):
    site = site_of_dataset(dataset, SiteConfig(horizon=10))
    taste = true_taste(dataset)
    env = RecSysEnv(site, BehaviouralUsers(site, taste), dataset.user_ids)
    env.action_space.seed(0)
    expected, met, deviation = [], [], []
    for visit in range(60):
        env.reset(options={"user_id": dataset.user_ids[visit % 40], "seed": visit})
        over = False
        while not over:
            _, _, over, _, info = env.step(env.action_space.sample())
            for item, stars in zip(info["slate"], info["rated"], strict=False):
                watch, utility = taste(info["user_id"], item)
                expected.append(watch)
                met.append(stars > 0)
                deviation += [stars - utility] if stars else []
    error = np.sqrt(np.mean(np.array(expected) * (1 - np.array(expected))) / len(met))
    assert abs(np.mean(met) - np.mean(expected)) < 4 * error
    assert abs(np.mean(deviation)) < 4 * np.std(deviation) / np.sqrt(len(deviation))


def test_tastes_estimated_from_a_log(dataset):
    taste, truth = estimated_taste(dataset), true_taste(dataset)
    pairs = [(user, item) for user in dataset.user_ids for item in dataset.item_ids]
    mine = np.array([taste(*pair) for pair in pairs])
    true = np.array([truth(*pair) for pair in pairs])
    assert ((mine[:, 0] > 0) & (mine[:, 0] < 1)).all()
    assert ((mine[:, 1] >= 1) & (mine[:, 1] <= 5)).all()
    for column in (0, 1):
        assert np.corrcoef(mine[:, column], true[:, column])[0, 1] > 0.6


# --- language models ---


class Model:
    """A generator whose language model watches all, rates 4 and goes on; keeps count."""

    def __init__(self):
        self.waiting, self.most, self.requests = {}, 0, 0

    def submit(self, request):
        assert isinstance(request, Request)
        self.requests += 1
        self.waiting[self.requests] = request
        self.most = max(self.most, len(self.waiting))
        return self.requests

    def collect(self):
        ticket = min(self.waiting)
        return [(ticket, visits.constant(self.waiting.pop(ticket)))]


def agents(site):
    config = SessionConfig()
    return lambda user_id, seed: session(
        visits.USER, site, config, arm="gym", number=0, seed=seed
    )


def test_language_model_agents_as_users():
    site, model = visits.site(), Model()  # three items a page, two pages
    env = RecSysEnv(site, agents(site), ["u1"], generator=model)
    observed, info = env.reset(seed=0)
    assert info["action_mask"].sum() == 38 and model.requests == 0
    rewards = []
    over = False
    while not over:
        slate = np.flatnonzero(info["action_mask"])[:3]
        observed, reward, over, _, info = env.step(slate)
        rewards.append(reward)
        assert observed in env.observation_space
    # constant(): of three items the first and the last are watched and rated 4
    assert rewards == [2.0, 2.0] and info["rated"].tolist() == [4, 0, 4]
    outcome = info["outcome"]
    assert [event.kind for event in outcome.events].count("rate") == 4
    assert outcome.events[-1].kind == "interview"


def test_the_agents_of_a_vector_ask_their_model_together():
    site, model = visits.site(), Model()
    envs = StagedVectorEnv(
        lambda: RecSysEnv(site, agents(site), ["u1"], generator=model), num_envs=5
    )
    _, info = envs.reset(seed=0)
    for _ in range(2):
        slates = [np.flatnonzero(mask)[:3] for mask in info["action_mask"]]
        _, reward, over, _, info = envs.step(np.array(slates))
        assert reward.tolist() == [2.0] * 5
    assert over.all() and model.most == 5


# --- misuse -------------------------------------------------------------------------------


def test_misuse(dataset):
    site = visits.site()
    env = RecSysEnv(site, agents(site), ["u1"])
    env.reset(seed=0)
    with pytest.raises(ValueError, match="generator="):
        env.step([0, 1, 2])

    def strange(user_id, seed):
        yield "a question"

    with pytest.raises(TypeError, match="yielded a str"):
        RecSysEnv(site, strange, ["u1"]).reset(seed=0)

    class Silent(Model):
        def collect(self):
            return []

    env = RecSysEnv(site, agents(site), ["u1"], generator=Silent())
    env.reset(seed=0)
    with pytest.raises(RuntimeError, match="owes 1 replies"):
        env.step([0, 1, 2])
    with pytest.raises(ValueError, match="none of the 40 users"):
        user_env(dataset).reset(options={"user_id": "nobody"})
    with pytest.raises(ValueError, match="expected a number from 0 to 26"):
        env = user_env(dataset)
        env.reset(seed=0)
        env.step(27)
    with pytest.raises(ValueError, match="user_ids is empty"):
        user_env(dataset, user_ids=[])
    with pytest.raises(ValueError, match="num_envs is 0"):
        user_vector_env(num_envs=0, dataset=dataset)
    with pytest.raises(ValueError, match="seed has 2 values"):
        user_vector_env(num_envs=3, dataset=dataset).reset(seed=[1, 2])
    with pytest.raises(ValueError, match="bored=0.1, pleased=0.2"):
        BehaviouralUsers(site, true_taste(dataset), bored=0.1, pleased=0.2)
    with pytest.raises(ValueError, match="whole catalogue"):
        everything = {"u": tuple(Slate(tuple(site.items)).item_ids)}
        past = tuple(site.histories["u1"][0]._replace(item_id=i) for i in everything["u"])
        full = type(site)(site.items, {"u": past}, {})
        RecSysEnv(full, agents(full)).reset(seed=0)
