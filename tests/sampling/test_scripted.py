"""Scripted replies are parsed, ordered, limited and never lost."""

import pytest

from alignuser_jax.records import Completion, Message, Request
from alignuser_jax.sampling import ScriptedGenerator, generate

RATE = (("RATING: 1", "RATING: 2", "RATING: 3"),)


def ask(text="Rate it.", **options):
    return Request((Message.of("user", text),), "rate", **({"answer": RATE} | options))


def test_replies_come_in_order_and_are_parsed():
    scripted = ScriptedGenerator(["RATING: 2", "It was fine.\nRATING: 3", "RATING: 9"])
    first, second, third = generate(scripted, [ask(), ask(), ask()])
    assert (first.text, first.choices) == ("RATING: 2", (1,))
    assert (second.text, second.choices) == ("It was fine.\nRATING: 3", (2,))
    assert (third.text, third.choices, third.finish_reason) == ("RATING: 9", (), "stop")
    assert len(scripted.requests) == 3


def test_a_function_sees_the_request_and_may_return_a_completion():
    ready = Completion("RATING: 1", choices=(0,), choice_probabilities=((0.8, 0.1, 0.1),))
    scripted = ScriptedGenerator(
        lambda request: ready if request.answer else request.messages[-1].content.upper()
    )
    one, two = generate(scripted, [ask(), ask("hello", answer=())])
    assert one == ready and two.text == "HELLO" and two.choices == ()


def test_samples_are_separate_replies():
    scripted = ScriptedGenerator(["RATING: 1", "RATING: 2", "RATING: 3"])
    (completion,) = generate(scripted, [ask(samples=3)])
    assert [sample.choices for sample in completion.samples] == [(0,), (1,), (2,)]
    assert completion.choices == (0,) and completion.usage.generated_tokens == 6


def test_failures_are_completions():
    def reply(request):
        raise KeyError("no such user")

    (failed,) = generate(ScriptedGenerator(reply), [ask()])
    assert failed.finish_reason == "error" and "no such user" in failed.error
    (exhausted,) = generate(ScriptedGenerator([]), [ask()])
    assert exhausted.finish_reason == "error"
    assert "no reply left for a 'rate' request" in exhausted.error


def test_batches_are_limited_and_cancelled_requests_dropped():
    scripted = ScriptedGenerator(lambda request: "RATING: 1", max_batch=2)
    tickets = [scripted.submit(ask()) for _ in range(4)]
    scripted.cancel(tickets[1])
    assert [ticket for ticket, _ in scripted.collect()] == [tickets[0], tickets[2]]
    assert [ticket for ticket, _ in scripted.collect()] == [tickets[3]]
    assert scripted.collect() == []
    with pytest.raises(ValueError, match="max_batch=0"):
        ScriptedGenerator([], max_batch=0)


def test_generate_notices_a_lost_request():
    scripted = ScriptedGenerator(lambda request: "RATING: 1")
    scripted.collect = list
    with pytest.raises(RuntimeError, match="2 of 2 requests have no completion"):
        generate(scripted, [ask(), ask()])
