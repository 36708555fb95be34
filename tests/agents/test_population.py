import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from alignuser_jax.agents.events import write_events
from alignuser_jax.agents.population import SessionSpec, run_population
from alignuser_jax.agents.session import RecommendationFailed
from alignuser_jax.agents.slates import RecommenderError
from alignuser_jax.durable.journal import Journal
from alignuser_jax.durable.whole import JournalError
from alignuser_jax.records import Action, NextPageRequest, RecommenderUnavailable
from tests.agents.agents_toy import CATALOGUE, ToyGenerator, ToyRecommender, toy_session

MANIFEST = {"seed": 1}


def make_specs(users=4, arms=("a", "b"), **options):
    def spec(arm, user_id):
        return SessionSpec(arm, user_id, 0, lambda: toy_session(arm, user_id, 0, **options))

    return [spec(arm, f"u{n}") for n in range(users) for arm in arms]


def run(folder, specs=None, generator=None, recommenders=None, concurrency=3, **options):
    specs = make_specs() if specs is None else specs
    recommenders = recommenders or {arm: ToyRecommender() for arm in ("a", "b")}
    with Journal.open(folder, MANIFEST) as journal:
        return run_population(
            specs,
            generator or ToyGenerator(),
            recommenders,
            journal,
            concurrency=concurrency,
            catalogue=CATALOGUE,
            **options,
        )


def table(events, path):
    return write_events(events, path / "events.parquet").read_bytes()


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference")
    return table(run(folder), folder), folder


def test_all_sessions_run_and_a_rerun_gives_the_same_bytes(reference, tmp_path):
    events = run(tmp_path)
    assert sum(event.kind == "exit" for event in events) == 8
    assert not any(event.kind == "failure" for event in events)
    assert table(events, tmp_path) == reference[0]


@pytest.mark.parametrize("concurrency", [1, 2, 100])
def test_neither_order_nor_concurrency_shows(reference, tmp_path, concurrency):
    specs = random.Random(concurrency).sample(make_specs(), 8)
    generator = ToyGenerator(at_once=concurrency)
    events = run(tmp_path, specs, generator, concurrency=concurrency)
    assert table(events, tmp_path) == reference[0]
    assert generator.most == min(concurrency, 8)


def test_an_arm_that_is_away_stops_the_run_and_nothing_is_asked_twice(reference, tmp_path):
    class Away(ToyRecommender):
        """Answers three requests, then is away until `left` is raised."""

        left, asked = 3, ()

        def recommend(self, requests):
            slates = {}
            for n, request in enumerate(requests):
                if not self.left:
                    raise RecommenderUnavailable("http://x does not answer", slates)
                self.left -= 1
                self.asked = (*self.asked, (request.user_id, request.page))
                slates[n] = self.slate(request)
            return list(slates.values())

    arms = {"a": Away(), "b": Away()}
    arms["a"].left = 1000
    with pytest.raises(RecommenderUnavailable, match="does not answer"):
        run(tmp_path, recommenders=arms, concurrency=8)
    arms["b"].left = 1000
    events = run(tmp_path, recommenders=arms, concurrency=8)
    assert table(events, tmp_path) == reference[0]
    for arm in arms.values():
        assert len(arm.asked) == len(set(arm.asked)) == 8


def test_recommendations_of_an_arm_are_asked_in_one_call(tmp_path):
    recommenders = {"a": ToyRecommender(), "b": ToyRecommender()}
    run(tmp_path, recommenders=recommenders, concurrency=8)
    assert recommenders["a"].batches[0] == 4
    assert recommenders["b"].batches[0] == 4


def test_killed_at_every_record_boundary_and_inside_every_record(reference, tmp_path):
    expected, folder = reference
    (segment,) = folder.glob("segment-*.bin")
    data = segment.read_bytes()
    ends, at = [0], 0
    while at < len(data):
        at += 12 + int.from_bytes(data[at : at + 4], "little")
        ends.append(at)
    assert len(ends) == 1 + 8 * 4
    cuts = set(ends) | {end - 5 for end in ends[1:]} | {end + 7 for end in ends[:-1]}
    for cut in sorted(cuts):
        resumed = tmp_path / str(cut)
        resumed.mkdir()
        shutil.copy(folder / "manifest.json", resumed)
        (resumed / segment.name).write_bytes(data[:cut])
        generator = ToyGenerator(at_once=2)
        recommenders = {"a": ToyRecommender(), "b": ToyRecommender()}
        assert table(run(resumed, None, generator, recommenders), resumed) == expected
        asked = generator.completed + sum(sum(r.batches) for r in recommenders.values())
        assert asked == 32 - sum(end <= cut for end in ends[1:])  # nothing is asked twice


@pytest.mark.parametrize("stop_after", [0, 1, 4, 11])
def test_ctrl_c_leaves_a_journal_that_resumes(reference, tmp_path, stop_after):
    generator = ToyGenerator(stop_after=stop_after)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, generator=generator, concurrency=6)
    assert not generator.queue and generator.cancelled  # what was outstanding
    resumed = random.Random(1).sample(make_specs(), 8)
    assert table(run(tmp_path, resumed, concurrency=5), tmp_path) == reference[0]


KILLED = """
import os, signal, sys
from tests.agents.agents_toy import CATALOGUE, ToyGenerator, ToyRecommender, toy_session
from alignuser_jax.agents import SessionSpec, run_population
from alignuser_jax.durable.journal import Journal

class Killed(ToyGenerator):
    def answer(self, request):
        if self.completed == 6:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().answer(request)

def spec(arm, user_id):
    return SessionSpec(arm, user_id, 0, lambda: toy_session(arm, user_id, 0))

specs = [spec(arm, f"u{n}") for n in range(4) for arm in "ab"]
recommenders = {"a": ToyRecommender(), "b": ToyRecommender()}
with Journal.open(sys.argv[1], {"seed": 1}) as journal:
    run_population(specs, Killed(), recommenders, journal, concurrency=3)
"""


def test_a_killed_process_has_on_disk_all_that_its_agents_were_told(reference, tmp_path):
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], cwd=root)
    assert done.returncode == -signal.SIGKILL
    with Journal.open(tmp_path, MANIFEST) as journal:
        assert journal.recovered >= 6 + 3  # completions sent in, and the slates before them
        assert journal.dropped_bytes == 0
    generator = ToyGenerator()
    assert table(run(tmp_path, None, generator), tmp_path) == reference[0]
    assert generator.completed == 16 - 6


def test_resuming_with_other_agents_names_the_field(tmp_path):
    run(tmp_path)
    changed = [
        SessionSpec(s.arm, s.user_id, 0, lambda s=s: toy_session(s.arm, s.user_id, 1))
        for s in make_specs()
    ]
    with pytest.raises(JournalError, match="seed differ"):
        run(tmp_path, changed)


def test_one_broken_agent_does_not_stop_the_others(tmp_path):
    specs = make_specs()
    specs[3] = SessionSpec("b", "u1", 0, lambda: toy_session("b", "u1", 0, break_on_page=2))

    def unmakeable():
        raise OSError("no such persona")

    specs[4] = SessionSpec("a", "u2", 0, unmakeable)
    events = run(tmp_path, specs)
    failures = [event for event in events if event.kind == "failure"]
    assert [(e.arm, e.user_id, e.text) for e in failures] == [
        ("a", "u2", "OSError: no such persona"),
        ("b", "u1", "ZeroDivisionError: the agent broke"),
    ]
    assert sum(event.kind == "exit" for event in events) == 6


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (("i2", "i3"), "expected 3 different ids"),
        (("i2", "i3", "i3"), "expected 3 different ids"),
        (("i0", "i3", "i4"), r"\['i0'\], which were excluded"),
        (("i2", "i3", "zz"), r"\['zz'\], which are not in the catalogue"),
        (ValueError("no factors"), "raised ValueError: no factors"),
    ],
)
def test_a_bad_slate_fails_its_session_only(tmp_path, wrong, message):
    recommenders = {"a": ToyRecommender({"u1": wrong}), "b": ToyRecommender()}
    events = run(tmp_path, recommenders=recommenders, concurrency=8)
    (failure,) = [event for event in events if event.kind == "failure"]
    assert (failure.arm, failure.user_id) == ("a", "u1")
    with pytest.raises(AssertionError, match="recommender of arm 'a' .*" + message):
        raise AssertionError(failure.text)
    assert sum(event.kind == "exit" for event in events) == 7


@pytest.mark.parametrize(
    ("known", "fails"), [(CATALOGUE, True), (("i0", "i1", "i2", "i3"), False)]
)
def test_a_slate_may_be_short_only_where_the_catalogue_is_used_up(tmp_path, known, fails):
    specs = make_specs(1, ("a",), pages=1) + make_specs(2, ("b",), pages=1)
    recommenders = {arm: ToyRecommender({"*": ("i2", "i3")}) for arm in ("a", "b")}
    with Journal.open(tmp_path, MANIFEST) as journal:
        arguments = (specs, ToyGenerator(), recommenders, journal)
        if fails:
            with pytest.raises(RecommenderError, match="expected 3 different ids"):
                run_population(*arguments, catalogue=known)
        else:
            kinds = {event.kind for event in run_population(*arguments, catalogue=known)}
            assert kinds == {"page", "rate", "exit"}


@pytest.mark.parametrize("wrong", [RuntimeError("not fitted"), ("i2",)])
def test_a_recommender_that_never_works_stops_the_run_by_name(tmp_path, wrong):
    recommenders = {"a": ToyRecommender(), "b": ToyRecommender({"*": wrong})}
    with pytest.raises(RecommenderError, match="recommender of arm 'b'"):
        run(tmp_path, recommenders=recommenders)


def test_a_session_may_handle_a_missing_slate(tmp_path):
    def patient():
        try:
            outcome = yield from toy_session("a", "u0", 0)
        except RecommendationFailed:
            outcome = yield from toy_session("a", "u9", 0)
        return outcome

    specs = [SessionSpec("a", "u0", 0, patient), *make_specs(2, ("a",))[1:]]
    recommenders = {"a": ToyRecommender({"u0": ("i2",)})}
    first = run(tmp_path, specs, recommenders=recommenders)
    assert sum(event.kind == "exit" for event in first) == 2
    generator = ToyGenerator()
    assert run(tmp_path, specs, generator, recommenders) == first
    assert generator.completed == 0


def test_a_question_nobody_answers_fails_the_session(tmp_path):
    def shopper():
        yield NextPageRequest("u9", "a page", Action("next_page"))

    events = run(tmp_path, [*make_specs(1), SessionSpec("a", "u9", 0, shopper)])
    assert [e.text for e in events if e.kind == "failure"] == [
        "TypeError: the session asked a NextPageRequest; nobody answers it"
    ]


def test_bad_arguments_are_refused(tmp_path):
    with pytest.raises(ValueError, match="concurrency is 0"):
        run(tmp_path, concurrency=0)
    with pytest.raises(ValueError, match="'a', 'u0', 0.* is given twice"):
        run(tmp_path, make_specs() + make_specs(1))
    with pytest.raises(ValueError, match="no recommender for arm c; .* for a, b"):
        run(tmp_path, make_specs(arms=("a", "c")))


def test_a_generator_that_loses_requests_is_named(tmp_path):
    generator = ToyGenerator()
    generator.collect = list
    with pytest.raises(RuntimeError, match="3 requests were submitted"):
        run(tmp_path, generator=generator)
