"""Settings of a session that make no sense are refused, by name."""

import pytest

from alignuser_jax.agents import SessionConfig


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -1}, "temperature is -1, expected 0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_p": 7}, "top_p is 7, expected at least 1e-6 and at most 1"),
        ({"top_p": 0}, "top_p is 0"),
        ({"history_items": -1}, "history_items is -1, expected 0 or more"),
        ({"memory_items": -1}, "memory_items is -1"),
        ({"max_clicks": -1}, "max_clicks is -1"),
        ({"max_actions": 0}, "max_actions is 0, expected 1 or more"),
        ({"reasoning_tokens": -1}, "reasoning_tokens is -1"),
        ({"rate_reasoning_tokens": -1}, "rate_reasoning_tokens is -1"),
        ({"page_reserve_tokens": -1}, "page_reserve_tokens is -1"),
        ({"context_tokens": 0}, "context_tokens is 0, expected 1 or more, or None"),
        ({"item_type": " "}, "item_type is empty"),
    ],
)
def test_nonsense_is_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=message):
        SessionConfig(**settings)


def test_the_bounds_themselves_are_allowed():
    SessionConfig(
        history_items=0, memory_items=0, max_clicks=0, max_actions=1, temperature=0, top_p=1,
        context_tokens=1, page_reserve_tokens=0,
    )  # fmt: skip
