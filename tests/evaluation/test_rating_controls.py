"""Ratings in one conversation, and ratings with another user's past: what each one tells."""

from contextlib import contextmanager

import numpy as np
import pytest

from alignuser_jax.agents import SessionConfig
from alignuser_jax.datasets.formats import synthetic
from alignuser_jax.driver import Backend
from alignuser_jax.evaluation import another_history, rating_turns, ratings
from alignuser_jax.evaluation.protocol import EvaluationConfig, OpenPolicy, Subject
from alignuser_jax.sampling import RequestsFailed, ScriptedGenerator
from alignuser_jax.world import SiteConfig

USERS = np.arange(6)


@pytest.fixture(scope="module")
def dataset():
    return synthetic.generate(
        synthetic.SyntheticConfig(users=20, items=40, ratings_per_user=30)
    )


def subject_of(dataset, reply, **config):
    generator = ScriptedGenerator(reply)

    @contextmanager
    def opened(name, protocol, reply_tokens):
        backend = Backend(generator, lambda text: len(text.split()), "scripted")
        yield OpenPolicy(backend, SiteConfig(), SessionConfig())

    quiet = {"config": EvaluationConfig(cap=3, **config), "say": lambda *_: None}
    return Subject(dataset, USERS, ("agents",), opened, **quiet), generator.requests


def cells(text, row):
    line = next(line for line in text.splitlines() if line.startswith(f"| {row} "))
    return [cell.strip() for cell in line.strip("|").split("|")]


def by_persona(request):
    """Always the same rating for the same opening: what knows its user, and nothing else."""
    opening = request.messages[1].content.split("\n\n")[0]
    return f"{1 + sum(map(ord, opening)) % 5}"


def test_each_user_rates_in_one_conversation_and_sees_its_own_answers(dataset):
    subject, requests = subject_of(dataset, lambda request: "2")
    text = rating_turns.run(subject).text
    truth = ratings.held_out_ratings(dataset.log, USERS, cap=3)
    assert len(requests) == len(truth) > len(USERS)
    second = requests[len(USERS)]
    assert [m.role for m in second.messages] == ["system", "user", "assistant", "user"]
    assert second.messages[2].content == "2"
    first = truth.rating[np.unique(truth.user, return_index=True)[1]]
    _, turns, count, rmse, bias, _ = cells(text, "agents")
    assert (turns, int(count)) == ("1", len(USERS))
    assert float(rmse.split()[0]) == pytest.approx(
        np.sqrt(np.mean((2.0 - first) ** 2)), abs=6e-4
    )
    assert float(bias) == pytest.approx(2.0 - first.mean(), abs=6e-4)
    assert "| 2 to 4 " in text and "5 and later" not in text  # at most three are asked for


def test_turns_are_cut_where_the_table_says(dataset):
    log = ratings.held_out_ratings(dataset.log, USERS, cap=3)
    certain = np.eye(5)[log.rating.astype(int) - 1]
    first, later = rating_turns.score("x", log, certain, log.rating + 1)
    assert (first.ratings, later.ratings) == (len(USERS), len(log) - len(USERS))
    assert first.rmse.value == later.rmse.value == later.bias == 0
    assert later.gain.high < 0


def test_a_rating_that_cannot_be_read_twice_is_no_rating(dataset):
    subject, requests = subject_of(dataset, lambda request: "I would rather not.")
    with pytest.raises(RequestsFailed, match="replies are no rating, such as 'I would rather"):
        rating_turns.run(subject)
    assert len(requests) > len(ratings.held_out_ratings(dataset.log, USERS, cap=3))
    with pytest.raises(RequestsFailed, match="replies are no rating"):
        ratings.run(subject)


def test_who_reads_its_user_changes_with_another_past_and_who_does_not_stays(dataset):
    blind, _ = subject_of(dataset, lambda request: "3", swap_history=True)
    sees, _ = subject_of(dataset, by_persona, swap_history=True)
    table = ratings.run(blind).text.split("another user's past\n")[-1]
    assert cells(table, "agents")[1] == "0.000"
    assert cells(table, "agents")[4].startswith("+0.000")
    table = ratings.run(sees).text.split("another user's past\n")[-1]
    assert float(cells(table, "agents")[1]) > 0.3


def test_the_swapped_questions_differ_in_the_past_alone(dataset):
    subject, requests = subject_of(dataset, lambda request: "3", swap_history=True)
    ratings.run(subject)
    own, other = requests[: len(requests) // 2], requests[len(requests) // 2 :]
    assert [r.subject for r in own] == [r.subject for r in other]
    assert all(
        a.messages[1].content != b.messages[1].content for a, b in zip(own, other, strict=True)
    )
    tails = [[r.messages[1].content.splitlines()[-2:] for r in half] for half in (own, other)]
    assert tails[0] == tails[1]


def test_nobody_gets_its_own_past():
    users = np.array([3, 5, 9, 11])
    for seed in range(20):
        past_of = another_history.other_users(users, seed)
        assert sorted(past_of) == sorted(past_of.values()) == users.tolist()
        assert all(user != other for user, other in past_of.items())
    with pytest.raises(ValueError, match="needs at least two users"):
        another_history.other_users(users[:1], 0)


def test_a_reaction_by_hand(dataset):
    truth = ratings.held_out_ratings(dataset.log, USERS, cap=3)
    right = np.eye(5)[truth.rating.astype(int) - 1]
    found = another_history.reaction("x", truth, right, np.full((len(truth), 5), 0.2))
    assert found.rank_own == pytest.approx(1)
    assert np.isnan(found.rank_other)  # a constant has no rank
    assert found.change == pytest.approx(np.abs(truth.rating - 3).mean())
    assert found.rmse_loss.value == pytest.approx(np.sqrt(np.mean((truth.rating - 3) ** 2)))
