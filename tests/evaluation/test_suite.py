"""Protocols as values: how they are chosen, what they need, what happens when one fails."""

from dataclasses import replace

import numpy as np
import pytest

from alignuser_jax.datasets.formats import synthetic
from alignuser_jax.evaluation import suite
from alignuser_jax.evaluation.protocol import (
    EvaluationConfig,
    Protocol,
    ProtocolResult,
    Subject,
)
from alignuser_jax.sampling import RequestsFailed


@pytest.fixture(scope="module")
def subject():
    dataset = synthetic.generate(
        synthetic.SyntheticConfig(users=20, items=40, ratings_per_user=24)
    )

    def unopened(name, protocol, reply):
        raise AssertionError("no policy is needed here")

    return Subject(dataset, np.arange(4), ("agents",), unopened)


def test_protocols_are_chosen_by_name_in_the_order_given():
    assert suite.NAMES == ("ratings", "rating_turns", "preference", "next_state")
    chosen = suite.choose(["next_state", "ratings"])
    assert [protocol.name for protocol in chosen] == ["next_state", "ratings"]
    with pytest.raises(ValueError, match=r"unknown \['rating'\]; choose from ratings, rating_"):
        suite.choose(["rating"])


def test_what_a_protocol_needs_is_checked_before_any_runs(subject):
    ran = []
    first = Protocol("first", (), lambda s: ran.append(s))
    with pytest.raises(ValueError, match="the protocol next_state needs transitions"):
        list(suite.run_protocols([first, *suite.choose(["next_state"])], subject))
    assert not ran


def test_a_protocol_whose_requests_fail_does_not_end_the_others(subject):
    def fails(subject):
        raise RequestsFailed("2 of 3 requests failed")

    size = Protocol("size", (), lambda s: ProtocolResult(f"{len(s.users)} users"))
    outcomes = suite.run_protocols([Protocol("fails", (), fails), size], subject)
    assert [(o.text, o.error) for o in outcomes] == [
        ("NOT MEASURED: 2 of 3 requests failed", "2 of 3 requests failed"),
        ("4 users", ""),
    ]


def test_next_states_without_transitions_say_what_to_do(subject):
    empty = replace(subject, transitions=lambda: iter(()))
    with pytest.raises(ValueError, match="build shards with the task world_model"):
        list(suite.run_protocols(suite.choose(["next_state"]), empty))


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"cap": 0}, "cap is 0, expected 1 or more"),
        ({"reasoning_samples": -1}, "reasoning_samples is -1, expected 0 or more"),
        ({"reasoning_tokens": 0}, "reasoning_tokens is 0"),
        ({"next_states": 0}, "next_states is 0"),
    ],
)
def test_settings_refuse_nonsense(settings, text):
    with pytest.raises(ValueError, match=text):
        EvaluationConfig(**settings)
