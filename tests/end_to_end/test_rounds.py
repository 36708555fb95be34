"""Frozen rankings, live sessions and rounds of retraining, with agents that answer by their
keys; no model is loaded."""

import json
import os
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from alignuser_jax.datasets.formats import synthetic
from alignuser_jax.driver.backend import Backend
from alignuser_jax.language.parsing import answer_text
from alignuser_jax.randomness import stable_key
from alignuser_jax.recommenders import (
    ALS,
    Degraded,
    Popularity,
    Random,
    ShuffledAcrossUsers,
    from_callable,
    load_saved,
)
from alignuser_jax.recommenders.rounds import check_fittable, ratings_of, with_ratings
from alignuser_jax.records import Event, Interaction, Slate
from alignuser_jax.runs import simulate as simulation
from alignuser_jax.runs.backend import with_context
from alignuser_jax.runs.experiment import load_experiment
from alignuser_jax.runs.simulate import SimulationSettings
from alignuser_jax.sampling import ScriptedGenerator
from alignuser_jax.views import simulation_view

ROOT = Path(__file__).parents[2]
EVENTS = "events.parquet"


@pytest.fixture(scope="module")
def dataset():
    config = synthetic.SyntheticConfig(users=20, items=60, ratings_per_user=16)
    return synthetic.generate(config)


class Spy:
    """Answers as `inner` does and keeps what it was asked."""

    stateful = False

    def __init__(self, inner, log=None):
        self.inner, self.asked = inner, [] if log is None else log
        self.name, self.version = "spy", inner.version

    def fit(self, dataset, log):
        return Spy(self.inner.fit(dataset, log), self.asked)

    def recommend(self, requests):
        self.asked += [(self.version, r) for r in requests]
        return self.inner.recommend(requests)


class Killed(BaseException):
    pass


def simulate(dataset, out, arms, stop_after=None, **options):
    answered = []

    def reply(request):
        if stop_after is not None and len(answered) >= stop_after:
            raise Killed
        answered.append(request)
        choices = [stable_key(request.key, n) % len(a) for n, a in enumerate(request.answer)]
        return answer_text(choices, request.answer)

    experiment = with_context(load_experiment(ROOT / "configs" / "tiny.py"), 8192)
    table = simulation.simulate(
        experiment, dataset, simulation_view(dataset), arms,
        Backend(ScriptedGenerator(reply, 1 if stop_after else None), len, "scripted"), out,
        SimulationSettings(
            progress=False, **{"horizon": 3, "users": dataset.user_ids[:6], **options}
        ),
    )  # fmt: skip
    return table, len(answered)


def fitted(dataset):
    log = dataset.log.of_split("train")
    return {
        "als": ALS(factors=4, iterations=3, threads=1).fit(dataset, log),
        "popular": Popularity().fit(dataset, log),
    }


def by_visit(spy):
    found = defaultdict(list)
    for version, request in spy.asked:
        found[request.user_id].append((version, request))
    return found


def test_a_frozen_ranking_is_walked_down(dataset, tmp_path):
    spies = {"als": Spy(fitted(dataset)["als"]), "random": Spy(Random(dataset.item_ids))}
    table, _ = simulate(dataset, tmp_path / "frozen", spies, refresh="frozen")
    for spy in spies.values():
        for visit in by_visit(spy).values():
            requests = [request for _, request in visit]
            assert [r.page for r in requests] == [1, 2, 3]
            assert {r.session for r in requests} == {()} and len(
                {r.seed for r in requests}
            ) == 1
            whole = spy.inner.recommend([replace(requests[0], k=12)])[0].item_ids
            shown = [i for s in spy.inner.recommend(requests) for i in s.item_ids]
            assert tuple(shown) == whole  # one ranking, made at the start
    live = {"als": Spy(fitted(dataset)["als"])}
    simulate(dataset, tmp_path / "live", live)
    assert any(request.session for _, request in live["als"].asked)


def test_rounds_retrain_on_what_was_simulated_in_the_own_arm(dataset, tmp_path):
    arms = {name: Spy(r) for name, r in fitted(dataset).items()}
    table, _ = simulate(dataset, tmp_path, arms, refresh="retrain", rounds=3)
    sessions = table.group_by(["arm", "user_id", "session"]).aggregate([])
    assert len(sessions) == 2 * 6 * 3 and simulation.failures(table) == 0
    events = [Event(*row.values()) for row in table.to_pylist()]
    for arm, spy in arms.items():
        versions = list(dict.fromkeys(version for version, _ in spy.asked))
        assert len(versions) == 3 and versions[0] == spy.version
        for turn in (1, 2):
            before = [e for e in events if e.arm == arm and e.session < turn]
            ratings = ratings_of(before)[arm]
            log = with_ratings(dataset, dataset.log.of_split("train"), ratings)
            assert len(log) == len(dataset.log.of_split("train")) + sum(
                e.kind == "rate" for e in before
            )
            expected = spy.inner.fit(dataset, log).version
            record = json.loads(
                (tmp_path / "recommenders" / arm / f"round-{turn}.json").read_text()
            )
            assert record["version"] == expected == versions[turn] and not record["saved"]
            for version, request in spy.asked:
                if version == versions[turn]:
                    known = {i.item_id for i in ratings.get(request.user_id, ())}
                    assert known <= request.exclude
                    assert known <= {i.item_id for i in request.history}


def test_order_and_kills_change_no_byte_across_rounds(dataset, tmp_path):
    options = {"refresh": "retrain", "rounds": 3, "horizon": 1, "users": dataset.user_ids[:4]}
    arms = fitted(dataset)
    _, calls = simulate(dataset, tmp_path / "first", arms, **options)
    whole = (tmp_path / "first" / EVENTS).read_bytes()
    simulate(dataset, tmp_path / "shuffled", arms, shuffle=3, **options)
    assert (tmp_path / "shuffled" / EVENTS).read_bytes() == whole
    snapshots = sorted((tmp_path / "first" / "recommenders" / "als").glob("round-*.json"))
    versions = [json.loads(path.read_text())["version"] for path in snapshots]
    assert versions == [load_saved(path.with_suffix("")).version for path in snapshots]
    asked = 0
    for share in (0.3, 0.5, 0.8):  # in each round
        with pytest.raises(Killed):
            simulate(dataset, tmp_path / "killed", arms, int(calls * share) - asked, **options)
        asked = int(calls * share)
    _, rest = simulate(dataset, tmp_path / "killed", arms, **options)
    assert asked + rest == calls  # nothing was asked twice
    assert (tmp_path / "killed" / EVENTS).read_bytes() == whole


def test_another_snapshot_is_refused(dataset, tmp_path):
    options = {"refresh": "retrain", "rounds": 2, "horizon": 1}
    arms = {"popular": Spy(fitted(dataset)["popular"])}
    simulate(dataset, tmp_path, arms, **options)
    record = tmp_path / "recommenders" / "popular" / "round-1.json"
    about = json.loads(record.read_text())
    os.unlink(tmp_path / EVENTS)
    for changed, said in (
        ({"version": "x"}, "fit is not deterministic"),
        ({"log_hash": "y"}, "another log"),
    ):
        record.write_text(json.dumps(about | changed))
        with pytest.raises(RuntimeError, match=said):
            simulate(dataset, tmp_path, arms, **options)
    record.write_text(json.dumps(about))
    simulate(dataset, tmp_path, arms, **options)


def test_what_cannot_be_retrained_is_refused_before_anything_runs(dataset, tmp_path):
    arms = fitted(dataset)
    log = dataset.log.of_split("train")
    fixed = from_callable(lambda r: Slate(()))
    bad = {"f": fixed, "g": Degraded(fixed, 0.5, dataset.item_ids), **arms}
    with pytest.raises(ValueError, match="arm f, g cannot be fitted again"):
        simulate(dataset, tmp_path, bad, refresh="retrain", rounds=2)
    with pytest.raises(ValueError, match="2 to retrain"):
        simulate(dataset, tmp_path, arms, refresh="retrain")
    with pytest.raises(ValueError, match="expected one of frozen, session, retrain"):
        simulate(dataset, tmp_path, arms, refresh="daily")
    assert not any(tmp_path.iterdir())
    als = arms["als"]
    wrapped = {
        "half": Degraded(als, 0.5, dataset.item_ids, seed=2),
        "other": ShuffledAcrossUsers.of(als, dataset, log, seed=3),
    }
    check_fittable(wrapped)
    part = dataset.log.of_split("train", "validation")
    for recommender in wrapped.values():
        again = recommender.fit(dataset, part)
        assert again.name == recommender.name and again.seed == recommender.seed
        assert (
            again.inner.version
            == ALS(factors=4, iterations=3, threads=1).fit(dataset, part).version
        )
        assert again.inner.version != recommender.inner.version == als.version


def test_simulated_ratings_join_the_log_in_order(dataset):
    log = dataset.log.of_split("train")
    user, item = dataset.user_ids[3], dataset.item_ids[7]
    ratings = {user: (Interaction(item, 5.0), Interaction(dataset.item_ids[8], 2.0))}
    grown = with_ratings(dataset, log, ratings)
    assert dataset.history(grown, user)[:-2] == dataset.history(log, user)
    last = int(log.timestamp.max())
    assert dataset.history(grown, user)[-2:] == (
        Interaction(item, 5.0, last + 1),
        Interaction(dataset.item_ids[8], 2.0, last + 2),
    )
    others = [u for u in dataset.user_ids if u != user]
    assert all(dataset.history(grown, u) == dataset.history(log, u) for u in others)
    assert np.all(np.diff(grown.user) >= 0) and with_ratings(dataset, log, {}) is log
