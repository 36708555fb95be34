"""MF, LightGCN and MultVAE learn what was planted, follow a live history, save and resume."""

import copy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from alignuser_jax.datasets import Log
from alignuser_jax.recommenders import (
    MF,
    LightGCN,
    MultVAE,
    Popularity,
    check_contract,
    held_out_ranking,
    load_recommender,
)
from alignuser_jax.recommenders.checks.ranking import interaction_matrix
from alignuser_jax.recommenders.models.trained import FitPlan
from alignuser_jax.records import Interaction, RecommendationRequest
from tests.recommenders.conftest import TinyDataset

BPR = {"factors": 8, "batch_size": 128, "learning_rate": 0.02, "epochs": 15}
SMALL = {
    MF: BPR,
    LightGCN: BPR,
    MultVAE: {
        "latent": 4,
        "hidden": 16,
        "batch_size": 16,
        "learning_rate": 0.01,
        "epochs": 30,
        "kl_epochs": 5,
    },
}
KINDS = list(SMALL)


@pytest.fixture(scope="module")
def planted():
    """60 users and 40 items in two halves: a user takes 12 items, all of their own half."""
    draw = np.random.default_rng(0)
    rows = []
    for user in range(60):
        mine = 20 * (user % 2) + draw.permutation(20)[:12]
        rows += [(user, item, max(0, place // 2 - 3)) for place, item in enumerate(mine)]
    user, item, split = (np.array(column) for column in zip(*rows, strict=True))
    n = len(user)
    log = Log(
        user.astype(np.int32),
        item.astype(np.int32),
        np.full(n, 5, np.float32),
        np.arange(n),
        split.astype(np.int8),
        60,
        40,
    )
    return TinyDataset(
        user_ids=tuple(f"u{n}" for n in range(60)),
        item_ids=tuple(f"i{n:02d}" for n in range(40)),
        log=log,
        synthetic=True,
    )


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: kind.name)
def fitted(request, planted):
    recommender = request.param(**SMALL[request.param])
    train, validation = planted.log.of_split("train"), planted.log.of_split("validation")
    return recommender.fit(planted, train, validation, progress=False)


def ask(recommender, user="nobody", history=(), session=(), k=5):
    parts = [tuple(Interaction(i, 5.0) for i in part) for part in (history, session)]
    seen = frozenset([*history, *session])
    return recommender.recommend([RecommendationRequest(user, *parts, k=k, exclude=seen)])[0]


def arrays_of(recommender):
    return recommender.model.arrays()


def half(slate):
    return {int(item[1:]) // 20 for item in slate.item_ids}


def test_the_planted_halves_are_found(fitted, planted):
    ranking = held_out_ranking(fitted, planted, planted.user_ids, k=10)
    popular = Popularity().fit(planted, planted.log.of_split("train"))
    chance = held_out_ranking(popular, planted, planted.user_ids, k=10)
    # ten of one's own half are left after train and validation: all ten stand first
    assert ranking.recall.mean() > 0.97 and chance.recall.mean() < 0.75
    assert ranking.ndcg.mean() > chance.ndcg.mean() + 0.1
    assert fitted.summary["validation_ndcg@20"] > 0.3


def test_a_live_history_moves_known_and_unknown_users(fitted):
    for half_number in (0, 1):
        own = [f"i{20 * half_number + n:02d}" for n in (3, 7, 11)]
        assert half(ask(fitted, history=own)) == {half_number}
        assert half(ask(fitted, session=own)) == {half_number}
        assert ask(fitted, history=own).item_ids == ask(fitted, session=own).item_ids
    other = [f"i{n}" for n in range(20, 36)]
    assert 1 in half(ask(fitted, "u0", history=other, k=4))  # u0 was of the first half


def test_nothing_known_gets_the_popular_items(fitted, planted):
    popular = Popularity().fit(planted, planted.log.of_split("train"))
    expected = ask(popular).item_ids
    assert ask(fitted).item_ids == expected
    assert ask(fitted, "u0").item_ids == expected
    odd = RecommendationRequest("u0", (Interaction("not an item", 5.0),), k=5)
    assert fitted.recommend([odd])[0].item_ids == expected
    assert fitted.recommend([]) == []


def test_the_contract_is_kept_whatever_the_batch(fitted, planted):
    train = planted.log.of_split("train")
    histories = {user: planted.history(train, user) for user in planted.user_ids}
    report = check_contract(fitted, planted.item_ids, histories, rounds=1)
    assert report.passed, str(report)
    requests = [
        RecommendationRequest(u, h, k=40, exclude=frozenset(i.item_id for i in h[:2]))
        for u, h in histories.items()
    ]
    together = fitted.recommend(requests)
    assert together == [fitted.recommend([one])[0] for one in requests]  # scores bit for bit
    assert together[::-1] == fitted.recommend(requests[::-1])


def test_a_saved_one_is_the_same_bit_for_bit(fitted, tmp_path, planted):
    fitted.save(tmp_path / "saved")
    again = load_recommender(str(tmp_path / "saved"))
    assert type(again) is type(fitted) and again.version == fitted.version
    assert (again.settings, again.summary) == (fitted.settings, fitted.summary)
    for name, array in arrays_of(fitted).items():
        loaded = arrays_of(again)[name]
        assert loaded.dtype == array.dtype and np.array_equal(loaded, array), name
    requests = [ask_for(user, ["i01", "i30"]) for user in ("u0", "u1", "nobody")]
    assert again.recommend(requests) == fitted.recommend(requests)


def ask_for(user, history):
    return RecommendationRequest(user, tuple(Interaction(i, 5.0) for i in history), k=9)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_seed_fixes_the_fit_and_an_interrupted_one_goes_on(kind, planted, tmp_path):
    settings = SMALL[kind] | {"epochs": 7}
    parts = [planted.log.of_split(split) for split in ("train", "validation")]
    whole = kind(**settings).fit(planted, *parts, progress=False)
    file = tmp_path / "unfinished.npz"
    cut = cut_after(5, kind(**settings), planted, parts, file)
    assert file.is_file() and cut is None
    other = kind(**settings | {"seed": 1})
    with pytest.raises(ValueError, match="other settings or data"):
        other.fit(planted, *parts, checkpoint=file, progress=False)
    resumed = kind(**settings).fit(planted, *parts, checkpoint=file, progress=False)
    assert not file.exists() and resumed.summary == whole.summary
    for name, array in arrays_of(whole).items():
        assert np.array_equal(arrays_of(resumed)[name], array), name
    assert resumed.version == whole.version


def cut_after(epochs, recommender, planted, parts, file):
    """Fit, and stop as a kill would after `epochs` epochs."""
    from alignuser_jax.recommenders.models import fitting

    validate, seen = fitting.Validation.__call__, []

    def counted(self, scores):
        seen.append(1)
        if len(seen) > epochs:
            raise KeyboardInterrupt
        return validate(self, scores)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting.Validation, "__call__", counted)
        with pytest.raises(KeyboardInterrupt):
            recommender.fit(planted, *parts, checkpoint=file, progress=False)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_bad_settings_and_data_are_named(kind, planted):
    log = planted.log
    with pytest.raises(RuntimeError, match="call fit"):
        kind().recommend([])
    with pytest.raises(RuntimeError, match="call fit"):
        kind().save("nowhere")
    with pytest.raises(ValueError, match="learning_rate > 0, got -1"):
        kind(learning_rate=-1)
    with pytest.raises(ValueError, match="epochs >= 1, got 0"):
        kind(epochs=0)
    with pytest.raises(ValueError, match="empty log"):
        kind().fit(planted, log.where(log.user < 0))
    train = log.of_split("train")
    with pytest.raises(ValueError, match="no interaction that training lacks"):
        kind(**SMALL[kind]).fit(planted, train, train)
    assert kind().settings.seed == 101 and kind().settings.patience == 20


def test_early_stopping_keeps_the_best_epoch():
    """Validation is scripted: best at epoch 3, so the loop ends at 3 + patience."""
    from alignuser_jax.recommenders.models.fitting import TrainState, fit_epochs

    start = TrainState(np.float32(0), ())
    ndcg = iter([0.1, 0.2, 0.5, 0.5, 0.4, 0.3, 0.9])

    def run_epoch(state, epoch):
        return TrainState(state.params + epoch, ()), 1.0

    plan = FitPlan("toy", epochs=50, patience=3, progress=False)
    result = fit_epochs(plan, start, run_epoch, lambda params: (0.7, next(ndcg)))
    assert result.best == (0.7, 0.5, 3) and result.epochs == 6
    assert result.params == 1 + 2 + 3
    plan = FitPlan("toy", epochs=4, patience=1, progress=False)
    every = fit_epochs(plan, start, run_epoch, None)
    assert every.params == 10 and every.best.epoch == 4
    assert every.summary()["validation_ndcg@20"] is None
    with pytest.raises(FloatingPointError, match="loss of toy is nan in epoch 1"):
        fit_epochs(plan, start, lambda state, epoch: (state, float("nan")), None)


def test_without_validation_all_epochs_are_trained(planted):
    model = MF(**BPR | {"epochs": 3}).fit(planted, planted.log, progress=False)
    assert model.summary["epochs"] == model.summary["best_epoch"] == 3
    assert np.array_equal(model.model.counts, interaction_matrix(planted.log).sum(0).A1)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_fitted_again_it_trains_as_long_as_was_best(kind, planted):
    train, validation = planted.log.of_split("train"), planted.log.of_split("validation")
    model = kind(**SMALL[kind] | {"patience": 2}).fit(
        planted, train, validation, progress=False
    )
    best, first = model.summary["best_epoch"], arrays_of(model)
    assert best < model.settings.epochs
    for _ in range(2):  # as between rounds
        model = copy.copy(model).fit(planted, train, progress=False)
        assert model.summary["epochs"] == model.settings.epochs == best
    again = arrays_of(model)
    numbers = [name for name, value in first.items() if value.dtype.kind == "f"]
    assert all(np.allclose(again[name], first[name], atol=1e-6) for name in numbers)


def test_asking_needs_no_jax(fitted, tmp_path):
    fitted.save(tmp_path / "saved")
    code = (
        "import sys\n"
        "from alignuser_jax.recommenders import load_recommender\n"
        "from alignuser_jax.records import Interaction, RecommendationRequest\n"
        "made = load_recommender(sys.argv[1])\n"
        "request = RecommendationRequest('u0', (Interaction('i01', 5.0),))\n"
        "assert len(made.recommend([request])[0].item_ids) == 4\n"
        "assert 'jax' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "saved")],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[3],
    )
    assert done.returncode == 0, done.stderr


def test_a_pair_seen_twice_counts_once(planted):
    log = planted.log.of_split("train")
    twice = log.where(np.sort(np.tile(np.arange(len(log)), 2)))
    once = MF(**BPR | {"epochs": 1}).fit(planted, log, progress=False)
    again = MF(**BPR | {"epochs": 1}).fit(planted, twice, progress=False)
    assert once.version == again.version
    assert np.array_equal(once.model.items, again.model.items)


def test_a_user_without_training_history_is_served(planted):
    log = planted.log.of_split("train")
    fewer = log.where(log.user != 3)
    model = MF(**BPR | {"epochs": 2}).fit(planted, fewer, progress=False)
    slates = model.recommend([replace(ask_for("u3", ["i21", "i25"]), k=40)])
    assert len(slates[0].item_ids) == 40 and np.isfinite(slates[0].scores).all()
