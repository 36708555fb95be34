"""The worlds are pure, on long random walks and from process to process."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from alignuser_jax.records import Action
from tests.world.walks import (
    Subject,
    check_refused,
    check_walk,
    shop_subject,
    site_subject,
    walk,
)

ROOT = Path(__file__).parents[2]
SUBJECTS = {"recommendation site": site_subject, "generated shop": shop_subject}


@pytest.fixture(scope="module", params=SUBJECTS)
def subject(request) -> Subject:
    return SUBJECTS[request.param]()


def test_a_walk_finds_nothing_wrong(subject):
    walked = check_walk(subject, 4_000, seed=1)
    # every kind of action was taken, visits ended, and much was refused
    assert len(walked.kinds) >= 4
    assert walked.visits > 20 and walked.kinds["refused"] > 1_000


@pytest.mark.slow
def test_a_long_walk_finds_nothing_wrong(subject):
    assert check_walk(subject, 100_000, seed=2).steps == 100_000


def test_in_one_state_exactly_the_listed_actions_are_valid(subject):
    """Not drawn but all of them, in the states of a short walk."""
    rng = random.Random(3)
    state = subject.start(rng)
    for _ in range(60):
        valid = subject.valid(state)
        assert set(state.actions) <= set(valid) and len(set(valid)) == len(valid)
        for action in valid:
            assert not subject.world.step(state, action).feedback.startswith("Invalid")
        for action in set(subject.others) - set(valid):
            check_refused(subject.world, state, action)
        state = subject.complete(subject.world.step(state, rng.choice(valid)))
        if state.terminal:
            state = subject.start(rng)


@pytest.mark.parametrize("name", SUBJECTS)
def test_the_same_walk_in_every_process(name):
    make = SUBJECTS[name]
    command = [sys.executable, "-m", "tests.world.walks"]
    command += [f"{make.__module__}:{make.__name__}", "1000"]
    running = [
        subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, cwd=ROOT,
            env=os.environ | {"PYTHONHASHSEED": hash_seed},
        )
        for hash_seed in ("0", "1234")
    ]  # fmt: skip
    digests = {process.communicate()[0].strip() for process in running}
    assert [process.returncode for process in running] == [0, 0]
    assert digests == {walk(make(), 1_000).digest}


def test_the_checks_can_fail():
    """A world that takes anything, and one that remembers, are found out."""
    subject = site_subject()

    class Anything:
        def step(self, state, action):
            back = action.kind == "previous_page"
            return subject.world.step(state, Action("next_page") if back else action)

        def __getattr__(self, name):
            return getattr(subject.world, name)

    class Counts(Anything):
        calls = 0

        def step(self, state, action):
            self.calls += 1
            return subject.world.step(state, action if self.calls % 50 else Action("exit"))

    for world in (Anything(), Counts()):
        broken = Subject(world, subject.answer, subject.user_ids, subject.others)
        with pytest.raises(AssertionError):
            check_walk(broken, 500)
