import pytest

from alignuser_jax.agents import SessionConfig, rate_item
from alignuser_jax.alignment.rating_runs import rating_runs, run_examples
from alignuser_jax.alignment.visits import stars
from alignuser_jax.records import Interaction
from alignuser_jax.views.sites import Sites, agent_user
from alignuser_jax.world import SiteConfig

PAST = [Interaction(f"i{n}", 1.0 + n % 5, n) for n in range(200)]


def test_runs_hold_every_rating_once_in_order_and_have_every_length():
    runs = rating_runs("u1", PAST, longest=4)
    assert [past for run in runs for past in run.rated] == PAST
    assert {len(run.rated) for run in runs[:-1]} == {1, 2, 3, 4}
    assert [run.number for run in runs] == list(range(len(runs)))
    assert runs == rating_runs("u1", PAST, longest=4) != rating_runs("u2", PAST, longest=4)
    assert rating_runs("u1", PAST, longest=4, seed=1) != runs
    with pytest.raises(ValueError, match="longest is 0"):
        rating_runs("u1", PAST, longest=0)


def test_an_item_comes_once_in_a_run():
    twice = [Interaction("i1", 2.0), Interaction("i1", 5.0)] * 20
    runs = rating_runs("u1", twice, longest=8)
    assert all(len(run.rated) == 1 for run in runs)


def test_a_run_is_the_rating_protocol_asked_again_and_again(dataset, view):
    """The first question is that of `evaluate`; each later one follows the true answers."""
    session = SessionConfig(recall=True, history_items=3)
    sites = Sites(dataset.items, view, SiteConfig())
    user_id = dataset.user_ids[0]
    rated = dataset.history(view.targets, user_id)[:6]
    (run,) = [r for r in rating_runs(user_id, rated, longest=100) if len(r.rated) > 1][:1]
    (example,) = run_examples(run, sites, session)
    assert example.task == "rating" and example.user_id == user_id
    replies = [m for m in example.messages if m.role == "assistant"]
    assert [m.content for m in replies] == [str(stars(past.rating)) for past in run.rated]
    assert all(span.trained and span.action for m in replies for span in m.spans)
    user = agent_user(view, user_id, session)
    first = next(rate_item(user, run.rated[0].item_id, sites.of_one_item(), session, seed=9))
    assert example.messages[:2] == first.messages
    for number, message in enumerate(example.messages[3::2], 2):
        assert message.content.startswith(f"{number}. ") and "History" not in message.content


def test_a_run_that_is_too_long_starts_anew_with_what_was_rated(dataset, view):
    session = SessionConfig(history_items=0, context_tokens=300, page_reserve_tokens=20)
    sites = Sites(dataset.items, view, SiteConfig())
    user_id = dataset.user_ids[0]
    rated = dataset.history(view.targets, user_id)
    longest = max(rating_runs(user_id, rated, longest=100), key=lambda run: len(run.rated))
    windows = list(run_examples(longest, sites, session, count_tokens=lambda t: len(t.split())))
    replies = [
        m.content
        for window in windows
        for m in window.messages
        if m.role == "assistant" and m.spans[0].trained
    ]
    assert replies == [str(stars(past.rating)) for past in longest.rated]
