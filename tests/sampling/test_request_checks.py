"""Requests that no back end could follow are refused by the name of what is wrong."""

from dataclasses import replace

import pytest

from alignuser_jax.records import Message, Request
from alignuser_jax.sampling.request_checks import check_request

TEXT = Request((Message.of("user", "Tell me."),), "test")
ANSWER = replace(TEXT, answer=(("RATING: 1", "RATING: 2"),))


def test_requests_that_make_sense_pass():
    check_request(TEXT)
    check_request(replace(ANSWER, scored=True, reasoning_tokens=9))
    check_request(replace(TEXT, stop=("\n",), temperature=0, top_k=50, min_p=0.1))


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (replace(TEXT, temperature=-1), "temperature=-1"),
        (replace(TEXT, temperature=float("nan")), "temperature=nan"),
        (replace(TEXT, top_p=7), "top_p=7"),
        (replace(TEXT, top_p=0), "top_p=0"),
        (replace(TEXT, min_p=-0.1), "min_p=-0.1"),
        (replace(TEXT, top_k=-1), "top_k=-1"),
        (replace(TEXT, samples=0), "samples=0"),
        (replace(TEXT, max_tokens=-5), "max_tokens=-5"),
        (replace(TEXT, max_tokens=4.5), "max_tokens=4.5"),
        (replace(TEXT, reasoning_tokens=-1), "reasoning_tokens=-1"),
        (replace(TEXT, key=2**64), "key="),
        (replace(TEXT, timeout_seconds=0), "timeout_seconds=0"),
        (replace(TEXT, stop=("",)), "stop="),
        (replace(ANSWER, stop=("x",)), "stop="),
        (replace(TEXT, scored=True), "exactly one answer line, got 0"),
        (replace(TEXT, messages=()), "has no messages"),
        (replace(TEXT, messages=(Message.of("assistant", "Hi."),)), "ends with a reply"),
    ],
)
def test_nonsense_is_refused_by_name(request_, message):
    with pytest.raises(ValueError, match=message):
        check_request(request_)
