"""Recommenders of other libraries, wrapped as their users would, against the library itself."""

import warnings

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from threadpoolctl import threadpool_limits

from alignuser_jax.recommenders import (
    check_contract,
    from_callable,
    from_cornac,
    from_implicit,
)
from alignuser_jax.records import Interaction, RecommendationRequest, Slate

USERS, ITEMS = 30, 40
USER_IDS = tuple(f"u{n}" for n in range(USERS))
ITEM_IDS = tuple(f"i{n:02d}" for n in range(ITEMS))


@pytest.fixture(scope="module")
def pairs():
    """(user, item) codes: item 0 is everybody's, the rest mostly of the user's own half."""
    draw = np.random.default_rng(0)
    rows = {(u, 0) for u in range(USERS)}
    for user in range(USERS):
        for item in draw.choice(np.arange(1, ITEMS), 9, replace=False):
            rows.add((user, int(item - (item % 2) + user % 2)))
    return sorted(rows)


@pytest.fixture(scope="module")
def user_items(pairs):
    user, item = zip(*pairs, strict=True)
    return csr_matrix((np.ones(len(pairs), np.float32), (user, item)), shape=(USERS, ITEMS))


@pytest.fixture(scope="module")
def histories(pairs):
    histories = {user: [] for user in USER_IDS}
    for user, item in pairs:
        histories[USER_IDS[user]].append(Interaction(ITEM_IDS[item], 4.0))
    return {user: tuple(rows) for user, rows in histories.items()}


def request(user="u3", history=(), session=(), exclude=(), k=4):
    return RecommendationRequest(user, history, session, k, exclude=frozenset(exclude))


def items(recommender, *requests):
    slates = [slate.item_ids for slate in recommender.recommend(requests)]
    return slates[0] if len(slates) == 1 else slates


def seen(history):
    return frozenset(i.item_id for i in history)


def codes_of(history):
    return [ITEM_IDS.index(i.item_id) for i in history]


# --- implicit ---


def test_implicit_als_follows_the_live_history(user_items, histories):
    from implicit.als import AlternatingLeastSquares

    model = AlternatingLeastSquares(factors=4, iterations=5, random_state=0, num_threads=1)
    model.fit(user_items, show_progress=False)
    mine = from_implicit(model, user_items, USER_IDS, ITEM_IDS)
    history = histories["u3"]
    theirs, scores = model.recommend(
        0, user_items[3], N=4, recalculate_user=True, filter_already_liked_items=True
    )
    [slate] = mine.recommend([request("anybody", history, exclude=seen(history))])
    assert slate.item_ids == tuple(ITEM_IDS[code] for code in theirs)
    np.testing.assert_allclose(slate.scores, scores, rtol=1e-4)
    later = Interaction(ITEM_IDS[2], 5.0)
    row = user_items[3].tolil()
    row[0, 2] = 1
    theirs, _ = model.recommend(0, row.tocsr(), N=4, recalculate_user=True)
    asking = request("u3", history, (later,), exclude=seen(history) | {ITEM_IDS[2]})
    assert items(mine, asking) == tuple(ITEM_IDS[code] for code in theirs)
    report = check_contract(mine, ITEM_IDS, histories, rounds=1)
    assert report.passed, str(report)


def test_implicit_item_item_and_models_that_cannot_recalculate(user_items, histories):
    from implicit.bpr import BayesianPersonalizedRanking
    from implicit.nearest_neighbours import CosineRecommender

    cosine = CosineRecommender(K=5)
    cosine.fit(user_items, show_progress=False)
    mine = from_implicit(cosine, user_items, USER_IDS, ITEM_IDS)
    history = histories["u5"][:2]
    theirs, scores = cosine.recommend(0, _row(history), N=4)
    [slate] = mine.recommend([request("new", history, exclude=seen(history))])
    assert slate.scores == tuple(scores.astype(np.float32).tolist())
    sure = scores > scores.min()  # ties come in another order
    assert slate.item_ids[: sure.sum()] == tuple(ITEM_IDS[code] for code in theirs[sure])
    assert check_contract(mine, ITEM_IDS, histories, rounds=1).passed

    bpr = BayesianPersonalizedRanking(factors=4, iterations=5, random_state=0, num_threads=1)
    bpr.fit(user_items, show_progress=False)
    mine = from_implicit(bpr, user_items, USER_IDS, ITEM_IDS)
    theirs, _ = bpr.recommend(3, user_items[3], N=4)
    asking = request("u3", exclude=seen(histories["u3"]))
    assert items(mine, asking) == tuple(ITEM_IDS[code] for code in theirs)
    popular = np.argsort(-user_items.sum(axis=0).A1, kind="stable")[:4]
    assert items(mine, request("new")) == tuple(ITEM_IDS[code] for code in popular)
    assert check_contract(mine, ITEM_IDS, histories, rounds=1).passed


def _row(history):
    codes = sorted(codes_of(history))
    return csr_matrix((np.ones(len(codes)), codes, [0, len(codes)]), shape=(1, ITEMS))


def test_implicit_is_told_what_does_not_fit(user_items):
    class Fitted:
        item_factors = np.zeros((39, 2))

    with pytest.raises(ValueError, match=r"shape \(30, 40\) for 30 users and 39 items"):
        from_implicit(Fitted(), user_items, USER_IDS, ITEM_IDS[1:])
    with pytest.raises(ValueError, match="the model has 39 items, 40 ids were given"):
        from_implicit(Fitted(), user_items, USER_IDS, ITEM_IDS)
    with pytest.raises(ValueError, match="neither item factors nor item similarities"):
        from_implicit(object(), user_items, USER_IDS, ITEM_IDS)


# --- Cornac ---


@pytest.fixture(scope="module")
def cornac():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("cornac", reason="pip install cornac")


@pytest.fixture(autouse=True)
def one_thread():
    with threadpool_limits(1):  # on a busy machine many threads wait for each other
        yield


@pytest.fixture(scope="module")
def train_set(cornac, pairs):
    rows = [(USER_IDS[u], ITEM_IDS[i], 4.0) for u, i in pairs]
    return cornac.data.Dataset.from_uir(rows, seed=0)


def test_cornac(cornac, train_set, histories):
    model = cornac.models.BPR(k=4, max_iter=20, seed=0, num_threads=1).fit(train_set)
    mine = from_cornac(model, train_set)
    theirs = model.recommend("u3", remove_seen=True, train_set=train_set)
    ours = items(mine, request("u3", exclude=seen(histories["u3"]), k=6))
    assert list(ours) == theirs[:6]
    with pytest.raises(ValueError, match="unknown"):
        model.recommend("new")
    assert items(mine, request("new", k=1)) == ("i00",)  # the most popular
    assert mine.name == "BPR" and mine.version
    report = check_contract(mine, ITEM_IDS, histories, rounds=1, batch=8)
    assert report.passed, str(report)
    other = cornac.models.BPR(k=4, max_iter=20, seed=1, num_threads=1).fit(train_set)
    assert from_cornac(other, train_set).version != mine.version


class NextItem:
    """The interface of Cornac's next-item models; shows what follows the last item."""

    name, num_items, num_users = "next", ITEMS, USERS

    def score(self, user_idx, history_items, **more):
        return -np.abs(np.arange(ITEMS) - (history_items[-1] + 1)).astype(float)


class NextBasket(NextItem):
    def score(self, user_idx, history_baskets, **more):
        return np.zeros(ITEMS)


def test_cornac_next_item_models_see_the_session(train_set):
    mine = from_cornac(NextItem(), train_set)
    order = sorted(train_set.iid_map, key=train_set.iid_map.get)
    history = (Interaction(order[3], 4.0),)
    assert items(mine, request("new", history, k=1)) == (order[4],)
    session = (Interaction(order[20], 4.0),)
    assert items(mine, request("new", history, session, k=1)) == (order[21],)
    assert items(mine, request("new", k=1)) == ("i00",)
    with pytest.raises(ValueError, match="next-basket"):
        from_cornac(NextBasket(), train_set)


# --- a function ---


def best(request):
    return (i for i in ITEM_IDS if i not in seen(request.session))


def test_a_function(histories):
    mine = from_callable(best, version="3")
    assert (mine.name, mine.version) == ("best", "3")
    asking = request(exclude=ITEM_IDS[:2], session=(Interaction("i02", 1.0),), k=2)
    assert items(mine, asking) == ("i03", "i04")
    assert check_contract(mine, ITEM_IDS, histories, rounds=1).passed
    whole = from_callable(lambda r: Slate(("x",), scores=(1.0,)))
    assert whole.recommend([asking]) == [Slate(("x",), scores=(1.0,))]
    with pytest.raises(TypeError, match="no function"):
        from_callable("best")
    with pytest.raises(TypeError, match="expected item ids, best first"):
        from_callable(lambda r: "i00").recommend([asking])
    with pytest.raises(TypeError, match="gave None"):
        from_callable(lambda r: None).recommend([asking])
