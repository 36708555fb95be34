"""The driver by itself: coroutines that ask one thing, several at once, or different things."""

import pytest

from alignuser_jax.driver import Answered, FailurePolicy, Job, drive
from alignuser_jax.driver.cost import Load, LoadCounter
from alignuser_jax.durable.journal import Journal
from alignuser_jax.records import (
    Action,
    Completion,
    Message,
    NextPageRequest,
    RecommendationRequest,
    Request,
    Slate,
)
from tests.agents.agents_toy import ToyGenerator


def request(text):
    return Request((Message.of("user", text),), "chat", answer=(("a", "b"),))


def slate_request(user):
    return RecommendationRequest(user, (), k=1)


class Shelf:
    """Answers recommendation requests; fails those of `broken` users."""

    def __init__(self, broken=(), stop=None):
        self.broken, self.stop, self.calls = broken, stop, []

    def answer(self, waiting):
        self.calls.append(len(waiting))
        results = {
            n: LookupError(q.user_id) if q.user_id in self.broken else Slate((q.user_id,))
            for n, (_, q) in enumerate(waiting)
        }
        return Answered(results, self.stop)


def run(folder, jobs, generator=None, shelf=None, **options):
    answerers = {RecommendationRequest: shelf or Shelf()}
    with Journal.open(folder, {}) as journal:
        return drive(jobs, generator or ToyGenerator(), journal, answerers=answerers, **options)


def mixed(user):
    """A batch of both kinds, an empty batch, then one question alone."""
    texts = []
    reply, slate = yield [request(f"{user}, first"), slate_request(user)]
    texts += [reply.text, *slate.item_ids]
    assert (yield ()) == ()
    last = yield request(f"{user}, last, after {texts}")
    return (*texts, last.text)


def jobs_of(make, count=4):
    return [Job("arm", f"u{n}", 0, lambda n=n: make(f"u{n}")) for n in range(count)]


def test_batches_and_single_questions_of_several_kinds(tmp_path):
    shelf, generator = Shelf(), ToyGenerator()
    results = run(tmp_path, jobs_of(mixed), generator, shelf)
    assert [result[1] for result in results] == ["u0", "u1", "u2", "u3"]
    assert shelf.calls == [4] and generator.completed == 8
    again, shelf = ToyGenerator(), Shelf()
    assert run(tmp_path, jobs_of(mixed)[::-1], again, shelf, concurrency=1) == results[::-1]
    assert again.completed == 0 and shelf.calls == [], "all answers come from the journal"


def test_killed_within_a_batch_it_goes_on(tmp_path):
    expected = run(tmp_path / "whole", jobs_of(mixed))
    for _ in range(6):  # each time one answer more is on disk
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "a", jobs_of(mixed), ToyGenerator(at_once=1, stop_after=1))
    assert run(tmp_path / "a", jobs_of(mixed)) == expected


def test_an_error_in_a_batch_is_thrown_in_once_the_batch_is_complete(tmp_path):
    def careful(user):
        try:
            yield [slate_request(user), request(user)]
        except LookupError as error:
            reply = yield request(f"no {error}")
            return f"without a slate, {reply.text}"
        return "with a slate"

    results = run(tmp_path, jobs_of(careful, 2), shelf=Shelf(broken=("u1",)))
    assert results[0] == "with a slate" and results[1].startswith("without a slate, ")


def test_errors_stop_the_run_or_become_results(tmp_path):
    def broken(user):
        if user == "u1":
            raise ZeroDivisionError("the agent broke")
        return (yield request(user)).text

    with pytest.raises(ZeroDivisionError):
        run(tmp_path, jobs_of(broken))
    policy = FailurePolicy(lambda job, error: f"{job.user_id}: {error}")
    results = run(tmp_path, jobs_of(broken), failures=policy)
    assert results[1] == "u1: the agent broke" and set(results[2:]) <= {"a", "b"}


def test_a_question_that_nobody_answers_is_an_error(tmp_path):
    closed = []

    def shopper(user):
        try:
            yield [request(user), NextPageRequest(user, "a page", Action("next_page"))]
        finally:
            closed.append(user)

    generator = ToyGenerator()
    with pytest.raises(TypeError, match="asked a NextPageRequest"):
        run(tmp_path, jobs_of(shopper, 1), generator)
    assert closed == ["u0"] and generator.tickets == 0


def test_an_answerer_that_stops_the_run_has_its_answers_recorded(tmp_path):
    away = ConnectionError("away")
    with pytest.raises(ConnectionError):
        run(tmp_path, jobs_of(mixed), shelf=Shelf(stop=away))
    shelf = Shelf()
    run(tmp_path, jobs_of(mixed), shelf=shelf)
    assert shelf.calls == []


def test_an_answerer_that_leaves_a_question_out_is_named(tmp_path):
    class Silent:
        def answer(self, waiting):
            return Answered({})

    with pytest.raises(RuntimeError, match="4 questions of type RecommendationRequest"):
        run(tmp_path, jobs_of(mixed), shelf=Silent())


def test_failed_completions_are_recorded_or_asked_again(tmp_path):
    class Down(ToyGenerator):
        def answer(self, request):
            return Completion("", finish_reason="error", error="down")

    def ask(user):
        first = yield request(user)
        second = yield request(f"{user} again")
        return first.error, second.error

    for record, asked_again in ((True, 0), (False, 8)):
        folder = tmp_path / str(record)
        policy = FailurePolicy(record=record)
        assert run(folder, jobs_of(ask), Down(), failures=policy) == [("down", "down")] * 4
        generator = ToyGenerator()
        run(folder, jobs_of(ask), generator, failures=policy)
        assert generator.completed == asked_again


def test_the_load_is_counted_with_shared_prefixes():
    counter = LoadCounter(lambda text: len(text.split()), message_tokens=2, repeat_tokens=3)
    first = Request((Message.of("user", "one two three "),), "x", reasoning_tokens=5)
    longer = Request((Message.of("user", "one two three four"),), "x")
    counter.add(first, "a b")
    counter.add(longer, "c", most=2)
    assert counter.expected == Load(2, (3 + 2) + (4 + 2), (5 + 2) + 1)
    assert counter.new_tokens == (3 + 2) + (1 + 2)
    assert counter.worst.requests == 2 + 2 * 2
    counter.next_coroutine()
    counter.add(longer, "c")
    assert counter.new_tokens == (3 + 2) + (1 + 2) + (4 + 2)
    assert counter.expected.scaled(2).requests == 6
