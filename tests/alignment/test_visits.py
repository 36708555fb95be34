from collections import Counter, defaultdict

import numpy as np
import pytest

from alignuser_jax.alignment import ExposureMixture, VisitConfig, reconstruct_visits
from alignuser_jax.alignment.visits import Visit
from alignuser_jax.datasets.formats import movielens
from alignuser_jax.recommenders import ALS
from alignuser_jax.records import Interaction
from alignuser_jax.views import policy_and_agent_users, training_view
from tests.alignment.alignment_toy import Listed, toy

UNIFORM = ExposureMixture(popularity=0, model_top=0)


def visits_of(dataset, view, config=None, **arguments):
    config = config or VisitConfig(exposure=UNIFORM)
    return reconstruct_visits(dataset, view, config, **arguments)


def filler_of(visit):
    return [i for page in visit.pages for i in page if i not in visit.ratings]


def test_the_shape_of_visits(dataset, view):
    als = ALS(factors=4, iterations=2).fit(dataset, view.profile)
    visits = visits_of(dataset, view, VisitConfig(), model=als)
    assert {v.user_id for v in visits} == set(dataset.user_ids)
    for visit in visits:
        on_pages = [item for page in visit.pages for item in page]
        assert 1 <= len(visit.pages) <= 5
        assert len(set(on_pages)) == len(on_pages) == 4 * len(visit.pages)
        assert all(set(page) & set(visit.ratings) for page in visit.pages)
        assert set(visit.ratings) <= set(on_pages)
        times = [r.timestamp for r in visit.rated]
        assert times == sorted(times) and max(np.diff(times), default=0) <= 1800
        page_of = {item: n for n, page in enumerate(visit.pages) for item in page}
        order = [page_of[r.item_id] for r in visit.rated]
        assert order == sorted(order), "rated items are placed in time order"


def test_every_target_is_in_one_visit_with_its_rating(dataset, view):
    rated_by_user = defaultdict(list)
    for visit in visits_of(dataset, view):
        rated_by_user[visit.user_id] += visit.rated
    for user in dataset.user_ids:
        assert tuple(rated_by_user[user]) == dataset.history(view.targets, user)


def test_filler_excludes_what_was_rated_before_and_not_what_is_rated_later(dataset, view):
    later_shown = 0
    for user in dataset.user_ids:
        rated = {i.item_id for i in view.histories[user]}
        own = visits_of(dataset, view, users=[user])
        later = {i for v in own for i in v.ratings}
        for visit in own:
            later -= set(visit.ratings)
            assert not set(filler_of(visit)) & rated
            later_shown += len(set(filler_of(visit)) & later)
            rated |= set(visit.ratings)
    assert later_shown > 0


def test_visits_are_seeded_per_user(dataset, view):
    both = visits_of(dataset, view, users=["u03", "u07"])
    assert [v for v in both if v.user_id == "u07"] == visits_of(dataset, view, users=["u07"])
    assert both != visits_of(dataset, view, users=["u03", "u07"], seed=1)
    first = visits_of(dataset, view, users=["u03"], max_visits=1)
    assert first == visits_of(dataset, view, users=["u03"])[:1]


def test_sources_of_the_filler(dataset, view):
    top = Listed(dataset.item_ids[:60])
    only_top = ExposureMixture(uniform=0, popularity=0, model_top_n=20)
    visits = visits_of(dataset, view, VisitConfig(exposure=only_top), model=top)
    offered = {
        r.user_id: set(s.item_ids)
        for batch in list(top.batches)
        for r, s in zip(batch, top.recommend(batch), strict=True)
    }
    requests = [r for batch in top.batches for r in batch]
    assert all(len(r.history) == len(r.exclude) == 24 for r in requests), "the profile only"
    first = [v for v in visits if v.number == 0 and len(v.pages) == 1]
    assert first and all(set(filler_of(v)) <= offered[v.user_id] for v in first)

    counts = Counter(view.profile.item.tolist())
    popular = ExposureMixture(uniform=0, model_top=0)

    def mean_count(mixture):
        codes = {item: n for n, item in enumerate(dataset.item_ids)}
        visits = visits_of(dataset, view, VisitConfig(exposure=mixture))
        return np.mean([counts[codes[i]] for v in visits for i in filler_of(v)])

    assert mean_count(popular) > mean_count(UNIFORM) + 0.2


def test_shares_of_the_mixture(dataset, view):
    top = Listed(sorted(dataset.item_ids)[:25])
    config = VisitConfig(exposure=ExposureMixture(uniform=2, popularity=0, model_top=2))
    assert config.exposure.shares == (0.5, 0, 0.5)
    filler = [i for v in visits_of(dataset, view, config, model=top) for i in filler_of(v)]
    share = np.mean([i in top.item_ids for i in filler])
    assert pytest.approx(share, abs=0.1) == 0.5 + 0.5 * 25 / 90


def test_lengths_are_geometric_and_gaps_cut():
    long = toy(users=25, items=2000, ratings=1200, gap_share=0.0)
    view = training_view(long)
    visits = visits_of(long, view, VisitConfig(exposure=UNIFORM, max_pages=50))
    assert np.mean([len(v.rated) for v in visits]) == pytest.approx(6, abs=0.5)
    assert np.mean([len(v.rated) == 1 for v in visits]) == pytest.approx(1 / 6, abs=0.04)
    cut = toy(users=10, gap_share=1.0)
    assert all(len(v.rated) == 1 for v in visits_of(cut, training_view(cut)))


def test_a_page_is_full_or_the_visit_ends():
    small = toy(users=4, items=44, ratings=40)
    visits = visits_of(small, training_view(small))
    assert visits and all(len(page) == 4 for v in visits for page in v.pages)
    assert all(set(v.ratings) <= {i for p in v.pages for i in p} for v in visits)


def test_satisfaction_is_twice_the_mean_rating():
    def visit(*ratings):
        return Visit("u", 0, (("a",),), tuple(Interaction(str(r), r) for r in ratings))

    assert [visit(1).satisfaction, visit(5, 5).satisfaction] == [2, 10]
    assert visit(3, 4).satisfaction == 7
    assert visit(4, 4, 5).satisfaction == 9


def test_bad_settings(dataset, view):
    with pytest.raises(ValueError, match="weights"):
        ExposureMixture(uniform=-1)
    with pytest.raises(ValueError, match="weights"):
        ExposureMixture(0, 0, 0)
    with pytest.raises(ValueError, match="model_top_n is 0"):
        ExposureMixture(model_top_n=0)
    for settings, text in (
        ({"rated_share": 0}, "rated_share is 0, expected 0 < share <= 1"),
        ({"gap_seconds": -1}, "gap_seconds is -1, expected 0 or more"),
        ({"mean_items": 0.5}, "mean_items is 0.5, expected a number of at least 1"),
        ({"mean_items": float("nan")}, "mean_items is nan"),
        ({"max_pages": 0}, "max_pages is 0"),
        ({"items_per_page": 0}, "items_per_page is 0"),
    ):
        with pytest.raises(ValueError, match=text):
            VisitConfig(**settings)
    with pytest.raises(ValueError, match="fitted on the profile"):
        visits_of(dataset, view, VisitConfig())


@pytest.mark.slow
def test_visits_of_movielens_1m(ml1m):
    dataset = movielens.read(ml1m)
    view = training_view(dataset)
    als = ALS().fit(dataset, view.profile)
    users, _ = policy_and_agent_users(dataset, 1000)
    visits = visits_of(dataset, view, VisitConfig(), model=als, users=users)
    targets = sum(len(dataset.history(view.targets, user)) for user in users)
    assert sum(len(v.rated) for v in visits) == targets
    assert 4 < np.mean([len(v.rated) for v in visits]) < 6
    assert max(len(v.pages) for v in visits) == 5
    assert np.mean([len(v.rated) / (4 * len(v.pages)) for v in visits]) < 0.6
