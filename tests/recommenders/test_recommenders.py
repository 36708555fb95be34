"""Random, popularity, ALS and the degraded ones: what they show, and that it never wavers."""

from dataclasses import replace

import numpy as np
import pytest

from alignuser_jax.recommenders import (
    ALS,
    Degraded,
    Popularity,
    Random,
    ShuffledAcrossUsers,
    load_recommender,
    load_saved,
)
from alignuser_jax.recommenders.base import ItemIndex
from alignuser_jax.records import Interaction, RecommendationRequest

ITEMS = tuple(f"i{n:03d}" for n in range(100))


def request(user="u0", history=(), **more):
    return RecommendationRequest(user, tuple(Interaction(i, 5.0) for i in history), **more)


def items(recommender, *requests):
    slates = recommender.recommend(requests)
    return slates[0].item_ids if len(requests) == 1 else [s.item_ids for s in slates]


def test_top_breaks_ties_by_code_and_keeps_the_order():
    index = ItemIndex("abcdefgh")
    scores = np.array([1, 2, 2, 0, 2, 2, 3, 1], np.float32)
    assert index.slate(scores, 3).item_ids == ("g", "b", "c")
    assert index.slate(scores, 3).scores == (3.0, 2.0, 2.0)
    assert index.slate(scores, 3, {"g", "b", "nowhere"}).item_ids == ("c", "e", "f")
    assert index.slate(scores, 8, "abcdef").item_ids == ("g", "h")
    assert index.slate(scores, 4, "abcdefgh").item_ids == ()
    assert scores[6] == 3  # the caller's scores are left alone


def test_an_index_refuses_repeated_ids():
    with pytest.raises(ValueError, match="3 ids were given, 2"):
        ItemIndex(["a", "b", "a"])


def test_random_pages_of_a_session_do_not_repeat_and_are_fixed_by_names():
    random, seen = Random(ITEMS), frozenset()
    first = items(random, request(seed=7))
    for page in range(1, 26):
        slate = items(random, request(seed=7, page=page, exclude=seen))
        assert len(slate) == 4 and not seen & set(slate)
        seen |= set(slate)
    assert seen == set(ITEMS)
    assert items(Random(ITEMS[::-1]), request(seed=7)) == first
    assert items(random, request(seed=8)) != first
    assert items(random, request("u1", seed=7)) != first
    rest = items(random, request(seed=7, exclude=frozenset(first[:1])))
    assert rest[:3] == first[1:]  # excluding one item moves no other


def test_random_is_uniform():
    slates = items(Random(ITEMS[:10]), *(request(seed=n) for n in range(2000)))
    counts = np.array([sum(item in s for s in slates) for item in ITEMS[:10]])
    assert abs(counts / 2000 - 0.4).max() < 0.05


def test_popularity_counts_the_log_it_was_given(tiny):
    popularity = Popularity().fit(tiny, tiny.log.of_split("train"))
    slate = popularity.recommend([request(k=12)])[0]
    counts = np.bincount(tiny.log.of_split("train").item, minlength=12)
    assert slate.item_ids[0] == "i00" and slate.scores[0] == counts[0]
    assert list(slate.scores) == sorted(counts.tolist(), reverse=True)
    assert popularity.version != Popularity().fit(tiny, tiny.log).version


@pytest.mark.parametrize("make", [Popularity, ALS])
def test_asking_before_fitting_says_so(make):
    with pytest.raises(RuntimeError, match="call fit"):
        make().recommend([request()])


def test_als_finds_the_two_groups_and_follows_the_session(tiny):
    als = ALS(factors=2, iterations=10).fit(tiny, tiny.log.of_split("train"))
    seen = frozenset({"i00", "i01", "i03"})  # i00 everybody has watched
    odd = items(als, request("nobody", ["i01", "i03"], exclude=seen, k=3))
    assert set(odd) <= {"i05", "i07", "i09", "i11"}
    even = request(
        "nobody", (), session=(Interaction("i02", 5.0), Interaction("i04", 5.0)), k=3
    )
    assert all(int(i[1:]) % 2 == 0 for i in items(als, even))


def test_als_without_anything_known_falls_back_to_popularity(tiny):
    als = ALS(factors=2).fit(tiny, tiny.log)
    popular = items(Popularity().fit(tiny, tiny.log), request())
    assert items(als, request()) == popular
    assert items(als, request(history=["not an item"])) == popular


@pytest.mark.parametrize("alpha", [1.0, 7.0])
def test_als_user_vectors_are_those_of_implicit(tiny, alpha):
    from implicit.cpu.als import AlternatingLeastSquares
    from scipy.sparse import csr_matrix

    als = ALS(factors=3, alpha=alpha, iterations=5).fit(tiny, tiny.log)
    theirs = AlternatingLeastSquares(factors=3, regularization=0.05, alpha=alpha, num_threads=1)
    theirs.item_factors = als.item_factors
    seen = [np.array([0, 2, 5]), np.array([1, 7])]
    rows = np.repeat([0, 1], [3, 2])
    pairs = csr_matrix((np.ones(5, np.float32), (rows, np.concatenate(seen))), shape=(2, 12))
    np.testing.assert_allclose(
        als.user_vectors(seen), theirs.recalculate_user(np.arange(2), pairs), atol=2e-4
    )


def test_als_is_the_same_for_any_number_of_threads_and_counts_a_pair_once(tiny):
    log = tiny.log
    one = ALS(factors=4, threads=1).fit(tiny, log)
    two = ALS(factors=4, threads=2).fit(tiny, log)
    assert np.array_equal(one.item_factors, two.item_factors) and one.version == two.version
    twice = type(log)(*(np.tile(a, 2) for a in (log.user, log.item, log.rating, log.split)))
    assert np.array_equal(ALS(factors=4).fit(tiny, twice).item_factors, one.item_factors)
    assert ALS(factors=4, seed=1).fit(tiny, log).version != one.version


def test_als_says_what_it_cannot_take(tiny):
    with pytest.raises(ValueError, match="factors >= 1"):
        ALS(factors=0)
    with pytest.raises(ValueError, match="empty log"):
        ALS().fit(tiny, tiny.log.of_split())


class Fixed:
    """Shows the catalogue in order; remembers what it was asked."""

    name, version, stateful = "fixed", "1", False

    def recommend(self, requests):
        self.received = list(requests)
        index = ItemIndex(ITEMS)
        falling = -np.arange(len(ITEMS), dtype=np.float32)
        return [index.slate(falling, r.k, r.exclude) for r in requests]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_degraded_replaces_the_share_it_says(share):
    requests = [request(f"u{n}", k=5, exclude=frozenset(ITEMS[10:20])) for n in range(400)]
    original = Fixed().recommend(requests)[0].item_ids
    slates = items(Degraded(Fixed(), share, ITEMS), *requests)
    assert all(len(set(s)) == 5 and not requests[0].exclude & set(s) for s in slates)
    changed = np.mean([[a != b for a, b in zip(s, original, strict=True)] for s in slates])
    assert changed == pytest.approx(share, abs=0.03)
    moved = np.mean([[s[n] != original[n] for n in range(5)] for s in slates], axis=0)
    assert abs(moved - share).max() < 0.1  # no slot is spared


def test_degraded_keeps_the_inner_items_where_nothing_else_is_left():
    degraded = Degraded(Fixed(), 1.0, ITEMS)
    slate = items(degraded, request(exclude=frozenset(ITEMS[5:])))
    assert len(set(slate)) == 4 and set(slate) < set(ITEMS[:5])


def test_degraded_depends_on_its_seed_and_the_page():
    one = request(k=20)
    first = items(Degraded(Fixed(), 0.5, ITEMS), one)
    assert items(Degraded(Fixed(), 0.5, ITEMS[::-1]), one) == first
    assert items(Degraded(Fixed(), 0.5, ITEMS, seed=1), one) != first
    assert items(Degraded(Fixed(), 0.5, ITEMS), replace(one, page=2)) != first
    with pytest.raises(ValueError, match="between 0 and 1, not 50"):
        Degraded(Fixed(), 50, ITEMS)


def test_shuffled_asks_for_another_user_once_each():
    histories = {f"u{n}": (Interaction(ITEMS[n], 5.0),) for n in range(7)}
    inner = Fixed()
    shuffled = ShuffledAcrossUsers(inner, histories)
    own = frozenset(ITEMS[50:60])
    requests = [
        request(u, [ITEMS[99]], session=(Interaction(ITEMS[98], 1.0),), exclude=own)
        for u in histories
    ]
    slates = items(shuffled, *requests)
    partners = [r.user_id for r in inner.received]
    assert sorted(partners) == sorted(histories)
    assert all(a.user_id != p for a, p in zip(requests, partners, strict=True))
    for partner_request, slate in zip(inner.received, slates, strict=True):
        assert partner_request.history == histories[partner_request.user_id]
        assert partner_request.session == ()
        assert partner_request.exclude == own | {partner_request.history[0].item_id}
        assert len(slate) == 4 and not partner_request.exclude & set(slate)
    other_seed = ShuffledAcrossUsers(inner, histories, seed=1)
    assert other_seed.partner != shuffled.partner
    assert shuffled.partner_of("stranger") in histories
    assert shuffled.partner_of("stranger") == shuffled.partner_of("stranger")


def test_shuffled_fills_up_from_the_other_history_in_a_small_catalogue():
    everything = tuple(Interaction(i, 5.0) for i in ITEMS)
    shuffled = ShuffledAcrossUsers(Fixed(), {"u0": everything, "u1": everything})
    slate = items(shuffled, request(exclude=frozenset(ITEMS[:50])))
    assert slate == ITEMS[50:54]


def test_shuffling_needs_two_users():
    with pytest.raises(ValueError, match="at least 2 users, not 1"):
        ShuffledAcrossUsers(Fixed(), {"u0": ()})


def test_a_saved_recommender_answers_as_before(tiny, tmp_path):
    als = ALS(factors=3).fit(tiny, tiny.log)
    recommenders = {
        "random": Random(tiny.item_ids),
        "popularity": Popularity().fit(tiny, tiny.log),
        "als": als,
        "degraded": Degraded(als, 0.5, tiny.item_ids, seed=3),
        "shuffled": ShuffledAcrossUsers.of(
            Degraded(als, 0.25, tiny.item_ids), tiny, tiny.log, seed=5, name="arm"
        ),
    }
    requests = [request(u, ["i00", "i04"], seed=n) for n, u in enumerate(tiny.user_ids)]
    for kind, recommender in recommenders.items():
        recommender.save(tmp_path / kind)
        again = load_recommender(str(tmp_path / kind))
        assert type(again) is type(recommender) and not again.stateful
        assert (again.name, again.version) == (recommender.name, recommender.version)
        assert again.recommend(requests) == recommender.recommend(requests)
    assert len({r.version for r in recommenders.values()}) == 5
    with pytest.raises(ValueError, match="kind 'random', not 'als'"):
        ALS.load(tmp_path / "random")
    with pytest.raises(FileNotFoundError, match="no saved recommender"):
        load_saved(tmp_path)
    with pytest.raises(ValueError, match="no save"):
        Degraded(Fixed(), 0.5, ITEMS).save(tmp_path / "unsaved")


def test_loading_a_plugin(tmp_path, monkeypatch):
    """An installed package offers its recommenders as entry points."""
    (tmp_path / "their_plugin.py").write_text(
        "class Mine:\n    def recommend(self, requests): return []\n"
    )
    about = tmp_path / "theirs-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(
        "[alignuser.recommenders]\ntheirs-best = their_plugin:Mine\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert type(load_recommender("theirs-best")).__name__ == "Mine"
    with pytest.raises(FileNotFoundError, match="did you mean the plugin 'theirs-best'"):
        load_recommender("their-best")


def test_loading_by_name(tmp_path, monkeypatch):
    (tmp_path / "their_module.py").write_text(
        "class Mine:\n"
        "    def recommend(self, requests): return []\n"
        "def make(): return Mine()\n"
        "instance = Mine()\n"
        "class box: inside = instance\n"
        "number = 3\n"
    )
    (tmp_path / "their_broken.py").write_text("import a_library_they_lack\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("Mine", "make", "instance", "box.inside"):
        assert type(load_recommender(f"their_module:{name}")).__name__ == "Mine"
    with pytest.raises(ValueError, match="their_module has no attribute 'nothing'"):
        load_recommender("their_module:nothing")
    with pytest.raises(ValueError, match="no module 'no_such_module'"):
        load_recommender("no_such_module:x")
    with pytest.raises(ModuleNotFoundError, match="a_library_they_lack"):
        load_recommender("their_broken:x")
    with pytest.raises(ValueError, match="gave a int without recommend"):
        load_recommender("their_module:number")
    with pytest.raises(ValueError, match="cannot be made without arguments .*'item_ids'"):
        load_recommender("alignuser_jax.recommenders:Random")
    with pytest.raises(FileNotFoundError, match="neither the folder"):
        load_recommender("some/folder")
