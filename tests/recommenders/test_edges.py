"""What is damaged, odd or at the edge of a number's range."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from alignuser_jax.recommenders import (
    ALS,
    Degraded,
    Random,
    check_contract,
    from_cornac,
    from_implicit,
    from_recs_file,
    from_scores,
    load_recommender,
)
from alignuser_jax.recommenders.http.protocol import (
    MalformedMessage,
    decode_slates,
    encode_slates,
    read_object,
)
from alignuser_jax.records import Interaction, RecommendationRequest, Slate

ITEMS = tuple(f"i{n}" for n in range(9))


def request(user="u0", **more):
    return RecommendationRequest(user, **{"history": (), "k": 3, **more})


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("arrays.npz", lambda data: data[: len(data) // 2]),
        ("arrays.npz", lambda data: b""),
        ("recommender.json", lambda data: data[:-4]),
        ("recommender.json", lambda data: b"[]"),
        ("recommender.json", lambda data: b"\xff"),
    ],
)
def test_a_damaged_folder_says_so(tmp_path, name, damage):
    Random(ITEMS).save(tmp_path)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(damage(data))
    with pytest.raises(ValueError, match="is damaged .* save it again"):
        load_recommender(tmp_path)
    Random(ITEMS).save(tmp_path)
    assert load_recommender(tmp_path).item_ids == ITEMS


def test_a_save_that_was_cut_short_leaves_no_recommender(tmp_path, monkeypatch):
    Random(ITEMS).save(tmp_path)

    def stopped(*arguments, **arrays):
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", stopped)
    with pytest.raises(KeyboardInterrupt):
        Random(ITEMS[:4]).save(tmp_path)
    with pytest.raises(FileNotFoundError):
        load_recommender(tmp_path)


def test_a_share_is_the_same_whatever_its_type(tmp_path):
    one = Degraded(Random(ITEMS), 1, ITEMS)
    assert one.version == Degraded(Random(ITEMS), 1.0, ITEMS).version
    one.save(tmp_path)
    assert load_recommender(tmp_path).version == one.version


def test_numbers_over_http():
    requests = [request()]
    slate = Slate(("i0",), (np.float32(0.5),), (np.float64(0.25),))
    whole = read_object(encode_slates(requests, [slate], "1"))
    assert decode_slates(whole, requests) == [Slate(("i0",), (0.5,), (0.25,))]
    row = {"user_id": "u0", "item_ids": ["i0"], "scores": [10**400]}
    huge = json.dumps({"slates": [row]}).encode()
    with pytest.raises(MalformedMessage, match="are no finite numbers"):
        decode_slates(read_object(huge), requests)


def test_scores_that_differ_only_as_doubles_are_no_ties():
    scores = 1e9 + np.arange(9)[None] * 1e-3
    assert from_scores(scores, ["u0"], ITEMS).recommend([request()])[0].item_ids == (
        *("i8", "i7", "i6"),
    )


def test_als_settings():
    for wrong in ({"alpha": float("nan")}, {"seed": -1}, {"seed": 1 << 32}):
        with pytest.raises(ValueError, match="ALS needs"):
            ALS(**wrong)


def test_an_unfitted_model_of_implicit():
    with pytest.raises(ValueError, match="a model of implicit, fitted"):
        from_implicit(SimpleNamespace(item_factors=None), [[0]], ["u"], ["i"])


def test_quotes_are_letters_between_tabs_and_quotes_between_commas(tmp_path):
    (tmp_path / "a.tsv").write_text('u\t"i\t2\nu\tj"\t1\n')
    assert from_recs_file(tmp_path / "a.tsv").recommend([request("u")])[0].item_ids == (
        *('"i', 'j"'),
    )
    (tmp_path / "a.csv").write_text('"user_id","item_id","score"\n"u","a,b",2\n')
    assert from_recs_file(tmp_path / "a.csv").recommend([request("u")])[0].item_ids == ("a,b",)


def test_a_contract_check_of_scores_that_are_arrays():
    class Arrays:
        def recommend(self, requests):
            return [
                Slate(s.item_ids, np.ones(len(s.item_ids))) for s in inner.recommend(requests)
            ]

    inner = Random(ITEMS)
    histories = {f"u{n}": (Interaction(ITEMS[n], 4.0, n),) for n in range(3)}
    report = check_contract(Arrays(), ITEMS, histories, k=2, rounds=1)
    (numbers,) = (c for c in report.checks if c.name == "scores and propensities")
    assert numbers.passed and numbers.seen == "scores given"


class NextItem:
    """A next-item model in Cornac's form: the item after the last, the user's taste."""

    name, num_items, num_users = "next", 9, 4

    def __init__(self, personal, step=1):
        self.personal, self.step = personal, step

    def score(self, user_idx, history_items, item_idx=None, **kwargs):
        scores = np.zeros(9)
        scores[(history_items[-1] + self.step) % 9] = 1
        if self.personal:
            scores[user_idx] += 2
        return scores


def test_next_item_models_of_cornac():
    pairs = (np.arange(9) % 4, np.arange(9), np.ones(9))
    train = SimpleNamespace(
        iid_map={item: n for n, item in enumerate(ITEMS)},
        uid_map={f"u{n}": n for n in range(4)},
        uir_tuple=pairs,
    )
    seen = (Interaction("i3", 5.0, 1),)
    same, personal = (from_cornac(NextItem(kind), train) for kind in (False, True))
    for user in ("u1", "nobody"):
        assert same.recommend([request(user, history=seen)])[0].item_ids[0] == "i4"
    first = personal.recommend([request("u1", history=seen)])[0]
    assert first.item_ids[:2] == ("i1", "i4")
    popular = personal.recommend([request("nobody", history=seen)])[0]
    assert popular.item_ids == ("i0", "i1", "i2")  # nobody is not user 0
    assert (
        len({same.version, personal.version, from_cornac(NextItem(False, 2), train).version})
        == 3
    )
