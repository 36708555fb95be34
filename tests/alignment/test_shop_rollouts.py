"""Rollouts in the generated shop as world-model shards."""

import subprocess
import sys
from pathlib import Path

import pytest

from alignuser_jax.alignment.rollouts import RolloutConfig
from alignuser_jax.alignment.shop_rollouts import write_shop_rollouts
from alignuser_jax.shards import read_examples, read_manifest
from alignuser_jax.world import CatalogueConfig, GeneratedShop, make_catalogue
from alignuser_jax.world.generated_shop.sessions import simulate_session
from alignuser_jax.world.shop.actions import from_token

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def shop():
    return GeneratedShop(make_catalogue(config=CatalogueConfig(goals=20)))


def test_every_example_is_a_step_of_the_shop(shop, tmp_path):
    schedule = RolloutConfig(episodes=6, max_actions=8)
    manifest = write_shop_rollouts(shop, tmp_path, schedule, seed=3)
    assert manifest["synthetic"] and manifest["labels"]["rollouts"] == "scripted shopper"
    by_episode = {}
    for example in read_examples(tmp_path):
        _, shop_name, episode, number = example.example_id.split("/")
        assert (shop_name, example.user_id) == ("shop", "")
        by_episode.setdefault(int(episode), []).append((int(number), example))
    assert sorted(by_episode) == list(range(6))
    for episode, examples in by_episode.items():
        state = shop.reset(f"rollout{episode:06d}", 3)
        assert [number for number, _ in examples] == list(range(len(examples)))
        assert len(examples) <= 8
        for _, example in examples:
            system, prompt, reply = example.messages
            assert "You simulate a web shop." in system.content
            page, action = prompt.content.rsplit("\nACTION: ", 1)
            assert page == state.text
            state = shop.step(state, from_token(action))
            assert reply.content == f"[NEXT STATE]\n{state.text}"
        assert len(examples) == 8 or state.terminal


def test_epsilon_is_the_share_of_drawn_actions(shop):
    """With 0 the shopper's own session, with 1 hardly an action of it."""
    own = simulate_session(shop, "u", 1)
    assert simulate_session(shop, "u", 1, epsilon=0.0) == own
    drawn = simulate_session(shop, "u", 1, epsilon=1.0, max_actions=200)
    assert all(t.action in t.state.actions for t in drawn.transitions)
    again = simulate_session(shop, "u", 1, epsilon=1.0, max_actions=200)
    assert again == drawn
    same = [
        a.action == b.action for a, b in zip(own.transitions, drawn.transitions, strict=False)
    ]
    assert sum(same) < len(same)


def test_the_program_writes_the_same_bytes_again(tmp_path):
    def run(name):
        command = [sys.executable, "-m", "data_prep.simulate_shop", f"--out={tmp_path / 'out'}"]
        command += ["--sessions=3", "--catalogue_goals=10", "--noprogress", "--episodes=4"]
        command += [f"--shards={tmp_path / name}", "--max_actions=5"]
        made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert made.returncode == 0, made.stderr
        return made.stdout

    assert "synthetic transitions of 4 rollouts" in run("one")
    run("two")
    assert read_manifest(tmp_path / "one") == read_manifest(tmp_path / "two")
