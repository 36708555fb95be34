"""Many users at once: killed anywhere, in any order, at any number at a time, one result; and
nothing that must not be known gets into a request."""

import json
from dataclasses import replace

import numpy as np
import pytest

from alignuser_jax.driver import Backend
from alignuser_jax.durable.journal import Journal
from alignuser_jax.durable.whole import JournalError
from alignuser_jax.language import REPROMPT
from alignuser_jax.personas import (
    UserRatings,
    estimate,
    match_users,
    read_personas,
    save_matches,
)
from alignuser_jax.records import Completion
from tests.personas.matching_toy import CONFIG, Model, log_of, noise

RATINGS = [[1 + noise(u, n, most=5) for n in range(4 + noise(u, most=9))] for u in range(8)]
USERS = tuple(f"u{n}" for n in range(8))


@pytest.fixture(scope="module")
def ratings():
    return UserRatings(*log_of(RATINGS))


def fits(job, user):
    return 1 + noise("fit", job, user, most=10)


def some_fail(request):
    """Errors and unreadable replies here and there, by the request alone."""
    if request.purpose == "fit" and request.key % 29 == 0:
        return Completion("", finish_reason="error", error="down")
    return "What?" if request.key % 11 == 0 else None


def count(text):
    return len(text.split())


def run(folder, ratings, users=USERS, model=None, concurrency=8, **options):
    backend = Backend(model or Model(fits, some_fail), count, "m", concurrency=concurrency)
    with Journal.open(folder / "journal", {"run": 1}) as journal:
        matches = match_users(users, ratings, CONFIG, backend, journal, **options)
    save_matches(folder, matches, {"dataset_hash": "d", "dataset": "toy", "part": "profile"})
    return matches


def read_matches(folder):
    return [json.loads(line) for line in (folder / "matches.jsonl").read_text().splitlines()]


def files(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.is_file()}


def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(ratings, tmp_path):
    whole = Model(fits, some_fail)
    run(tmp_path / "whole", ratings, model=whole)
    asked = kills = 0
    stop_after = 7
    while True:
        model = Model(fits, some_fail, stop_after=stop_after)
        try:
            run(tmp_path / "killed", ratings, model=model, concurrency=1 + kills % 5)
        except KeyboardInterrupt:
            kills += 1
            asked += model.answered
            assert not model.queue, "what was outstanding is cancelled"
            continue
        asked += model.answered
        break
    assert kills > 10
    assert files(tmp_path / "killed") == files(tmp_path / "whole")
    assert set(files(tmp_path / "whole")) == {
        "personas.jsonl",
        "matches.jsonl",
        "manifest.json",
    }
    again = Model(fits, some_fail)
    run(tmp_path / "killed", ratings, model=again)
    assert 0 < again.answered < whole.answered, "what failed is asked again, and what followed"


def test_a_request_that_failed_is_asked_again_by_a_run_that_goes_on(ratings, tmp_path):
    def down(request):
        third = request.purpose == "propose" and request.subject == "3"
        return Completion("", finish_reason="error", error="down") if third else None

    whole = run(tmp_path / "whole", ratings, model=Model(fits))
    first = Model(fits, down)
    run(tmp_path / "a", ratings, model=first)
    assert any("down" in text for m in read_matches(tmp_path / "a") for text in m["failures"])
    again = Model(fits)
    assert run(tmp_path / "a", ratings, model=again) == whole
    assert min(int(r.subject) for r in again.requests if r.purpose == "propose") == 3
    last = Model(fits)
    assert run(tmp_path / "a", ratings, model=last) == whole and last.requests == []


def test_neither_order_nor_company_changes_a_match(ratings, tmp_path):
    found = run(tmp_path / "a", ratings)
    assert [match.user_id for match in found] == list(USERS)
    assert any(match.failures for match in found) and all(match.persona for match in found)
    alone = run(tmp_path / "b", ratings, users=USERS[::-3], concurrency=1)
    assert alone == [found[USERS.index(user)] for user in USERS[::-3]]


def test_users_are_matched_together(ratings, tmp_path):
    model = Model(fits)
    run(tmp_path / "a", ratings, model=model, concurrency=4)
    assert model.most >= 4 * 8, "all judgements of several users are outstanding at once"
    model = Model(fits)
    run(tmp_path / "b", ratings, model=model, concurrency=1)
    assert model.most == 16


def test_another_question_is_refused(ratings, tmp_path):
    run(tmp_path, ratings)
    changed = [[6 - r for r in ratings] for ratings in RATINGS]
    with pytest.raises(JournalError, match="messages differ"):
        run(tmp_path, UserRatings(*log_of(changed)))


def test_bad_arguments(ratings, tmp_path):
    with pytest.raises(ValueError, match="'u1', 0. is given twice"):
        run(tmp_path, ratings, users=("u1", "u2", "u1"))
    with pytest.raises(ValueError, match="concurrency is 0"):
        run(tmp_path, ratings, concurrency=0)
    with pytest.raises(KeyError):
        run(tmp_path, ratings, users=("nobody",))

    class Idle(Model):
        def collect(self):
            return []

    with pytest.raises(RuntimeError, match="every ticket once"):
        run(tmp_path, ratings, model=Idle(fits))


def test_progress_goes_to_stderr(ratings, tmp_path, capsys):
    run(tmp_path, ratings, progress=True)
    out, err = capsys.readouterr()
    assert out == "" and "8/8" in err and "user" in err


# --- the cost -----------------------------------------------------------------------------


def test_the_cost_is_what_is_then_asked(ratings, tmp_path):
    config = replace(CONFIG, propose_reasoning_tokens=20, context_tokens=1000)
    cost = estimate(USERS, ratings, config, count, sample=100)
    assert (cost.users, cost.sampled, cost.expected.requests) == (8, 8, 8 * (4 + 4 * 2 * 2))
    model = Model(lambda job, user: 1 + 9 * (job == 2))

    with Journal.open(tmp_path / "journal", {}) as journal:
        match_users(USERS, ratings, config, Backend(model, count, "m"), journal)
    asked = [r for r in model.requests if not r.subject.startswith("1/")]  # without ties
    assert len(asked) == cost.expected.requests
    said = sum(count(m.content) for r in asked for m in r.messages)
    assert said <= cost.expected.prompt_tokens <= said + 8 * sum(len(r.messages) for r in asked)
    assert cost.new_tokens < 0.6 * cost.expected.prompt_tokens, "beginnings are shared"
    least, most = (8 * (4 * (20 + 7 * words) + 16 * 2) for words in (2, 4))
    assert least < cost.expected.generated_tokens < most
    half = estimate(USERS, ratings, config, count, sample=4)
    assert half.sampled == 4 and half.expected.requests == cost.expected.requests


def test_the_cost_in_words(ratings):
    cost = estimate(USERS, ratings, CONFIG, count)
    (line,) = cost.lines()
    assert line.startswith("8 users: 160 requests, ") and "counted for 8 users" in line
    price, time = cost.lines(1800.0, prices=(1.0, 2.0))[1:]
    assert (
        price.startswith("price: 0.") and "at worst 0." in price and "14,400 s (4.0 h)" in time
    )
    with pytest.raises(ValueError, match="no users"):
        estimate((), ratings, CONFIG, count)


def test_users_without_ratings_cost_nothing():
    ratings = UserRatings(*log_of([*RATINGS, [], [], []]))
    users = (*USERS, "u8", "u9", "u10")
    cost = estimate(users, ratings, CONFIG, count, sample=4)
    assert (cost.users, cost.sampled, cost.without, cost.expected.requests) == (8, 4, 3, 8 * 20)
    assert "3 more have no ratings" in cost.lines()[0]
    with pytest.raises(ValueError, match="none of 2 users has ratings"):
        estimate(users[-2:], ratings, CONFIG, count)


def test_the_worst_case_is_an_upper_bound(ratings, tmp_path):
    config = replace(CONFIG, context_tokens=1000)
    cost = estimate(USERS, ratings, config, count)

    def unsure(request):  # everything is asked twice
        return "RATING: maybe" if request.messages[-1].content != REPROMPT else None

    model = Model(lambda job, user: 5, unsure)  # and all are tied
    with Journal.open(tmp_path / "journal", {}) as journal:
        match_users(USERS, ratings, config, Backend(model, count, "m"), journal)
    said = sum(count(m.content) for r in model.requests for m in r.messages)
    assert len(model.requests) == cost.worst[0] == 8 * 2 * (4 + 2 * 16)
    assert cost.expected.prompt_tokens < said <= cost.worst[1]
    assert "without ties or repeats (at worst" in cost.lines()[0]


# --- what must not be known ---------------------------------------------------------------


def requests_of(dataset, log, tmp_path, name):
    model = Model(fits)
    with Journal.open(tmp_path / name, {}) as journal:
        ratings = UserRatings(dataset, log)
        match_users(USERS, ratings, CONFIG, Backend(model, count, "m"), journal)
    return sorted(model.requests, key=lambda r: r.key)


def test_demographics_are_in_no_request(tmp_path):
    dataset, log = log_of(RATINGS)
    before = requests_of(dataset, log, tmp_path, "a")
    text = "\n".join(m.content for r in before for m in r.messages)
    assert "HIDDEN" not in text and "SECRET" not in text
    del dataset.demographics
    assert requests_of(dataset, log, tmp_path, "b") == before


def test_ratings_outside_the_part_change_no_request(tmp_path):
    """The log is cut by the caller; a changed rating outside of it changes nothing, one inside
    does."""
    dataset, log = log_of(RATINGS)
    seen = np.arange(len(log.user)) % 3 != 0

    def part(changed=None):
        rating = log.rating.copy()
        if changed is not None:
            rating[changed] = 6 - rating[changed]
        return type(log)(user=log.user[seen], item=log.item[seen], rating=rating[seen])

    before = requests_of(dataset, part(), tmp_path, "a")
    assert requests_of(dataset, part(np.flatnonzero(~seen)), tmp_path, "b") == before
    assert requests_of(dataset, part(np.flatnonzero(seen)), tmp_path, "c") != before


def test_the_result_reads_back(ratings, tmp_path):
    found = run(tmp_path, ratings)
    given = read_personas(tmp_path)
    assert given.about["users"] == 8 and given.label == f"matched, {given.hash}"
    assert {u: row["occupation"] for u, row in given.rows.items()} == {
        match.user_id: match.persona.occupation for match in found
    }
    (tmp_path / "personas.jsonl").write_text('{"user_id": "u1", "age": "18-24"}\n')
    with pytest.raises(ValueError, match="was changed after"):
        read_personas(tmp_path)
