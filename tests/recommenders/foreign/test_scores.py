"""Score matrices, factors and recommendation files: the best of what is left, and refusals."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import sparse

from alignuser_jax.recommenders import (
    check_contract,
    from_factors,
    from_lightfm,
    from_recs_file,
    from_scores,
    load_recommender,
)
from alignuser_jax.records import Interaction, RecommendationRequest

USERS, ITEMS = tuple(f"u{n}" for n in range(7)), tuple(f"i{n:02d}" for n in range(40))
HISTORIES = {
    u: tuple(Interaction(ITEMS[(5 * n + m) % 40], 4.0) for m in range(6))
    for n, u in enumerate(USERS)
}


def ask(recommender, user="u3", k=4, exclude=()):
    return recommender.recommend(
        [RecommendationRequest(user, (), k=k, exclude=frozenset(exclude))]
    )[0]


def best(scores, k=4, exclude=()):
    order = np.argsort(-scores, kind="stable")
    return tuple(ITEMS[n] for n in order if ITEMS[n] not in exclude)[:k]


@pytest.fixture
def matrix():
    return np.random.default_rng(0).normal(size=(7, 40)).astype(np.float32)


def test_a_dense_matrix(matrix):
    mine = from_scores(matrix, USERS, ITEMS)
    slate = ask(mine, exclude=ITEMS[:30])
    assert slate.item_ids == best(matrix[3], exclude=ITEMS[:30])
    assert slate.scores == tuple(sorted(matrix[3, 30:].tolist(), reverse=True)[:4])
    assert ask(mine, "new").item_ids == best(matrix.mean(axis=0))
    report = check_contract(mine, ITEMS, HISTORIES, rounds=1)
    assert report.passed, str(report)
    changed = matrix.copy()
    changed[0, 0] += 1
    assert from_scores(changed, USERS, ITEMS).version != mine.version


def test_missing_entries_are_no_recommendations(matrix, caplog):
    stored = np.where(np.random.default_rng(1).random((7, 40)) < 0.2, matrix + 9, 0)
    own = stored[3][stored[3] > 0]
    dense = np.where(stored > 0, stored, -np.inf)
    for scores in (sparse.csr_matrix(stored), sparse.coo_array(stored), dense):
        mine = from_scores(scores, USERS, ITEMS)
        assert ask(mine, k=len(own)).scores == tuple(sorted(own.tolist(), reverse=True))
        slate = ask(mine, k=len(own) + 5)
        assert slate.item_ids[: len(own)] == best(stored[3], len(own)) and slate.scores is None
        left = np.where(stored[3] > 0, -np.inf, mine.fallback)
        assert slate.item_ids[len(own) :] == best(left, 5)
        report = check_contract(mine, ITEMS, HISTORIES, rounds=1)
        assert report.passed, str(report)
    assert ask(from_scores(sparse.csr_matrix(stored), USERS, ITEMS), "new").item_ids == best(
        stored.mean(axis=0)
    )


class LightFM:
    """LightFM's interface after a fit; the library itself has no wheel to test with."""

    def __init__(self):
        draw = np.random.default_rng(2)
        self.users = draw.normal(size=7), draw.normal(size=(7, 5))
        self.items = draw.normal(size=40), draw.normal(size=(40, 5))
        self.features_seen = []

    def get_user_representations(self, features=None):
        self.features_seen.append(features)
        return self.users

    def get_item_representations(self, features=None):
        self.features_seen.append(features)
        return self.items

    def predict(self, user, items):
        (b_u, x), (b_i, y) = self.users, self.items
        return x[user] @ y[items].T + b_u[user] + b_i[items]


def test_lightfm_and_factors():
    model = LightFM()
    mine = from_lightfm(model, USERS, ITEMS, user_features="U", item_features="I")
    assert model.features_seen == ["U", "I"] and mine.name == "lightfm"
    slate = ask(mine)
    scores = model.predict(3, np.arange(40))
    assert slate.item_ids == best(scores)
    np.testing.assert_allclose(slate.scores, np.sort(scores)[::-1][:4], rtol=1e-5)
    x, (b_i, y) = model.users[1], model.items
    assert ask(mine, "new").item_ids == best(y @ x.mean(axis=0) + b_i)
    plain = from_factors(x, y, USERS, ITEMS)
    assert ask(plain).item_ids == best(y @ x[3]) and plain.version != mine.version
    assert check_contract(mine, ITEMS, HISTORIES, rounds=1).passed


def test_what_does_not_fit_is_named(matrix):
    with pytest.raises(ValueError, match=r"shape \(7, 40\) for 6 users and 40 items"):
        from_scores(matrix, USERS[1:], ITEMS)
    with pytest.raises(ValueError, match="8 user ids were given, 7 different"):
        from_scores(matrix, (*USERS, "u0"), ITEMS)
    with pytest.raises(ValueError, match="user id 3 is a int: ids are strings"):
        from_scores(matrix, range(3, 10), ITEMS)
    matrix[2, 2] = np.nan
    with pytest.raises(ValueError, match="NaN or"):
        from_scores(matrix, USERS, ITEMS)
    with pytest.raises(ValueError, match=r"item_factors \(40, 4\), expected \(40, 3\)"):
        from_factors(np.ones((7, 3)), np.ones((40, 4)), USERS, ITEMS)
    with pytest.raises(ValueError, match="biases hold NaN"):
        from_factors(np.ones((7, 3)), np.ones((40, 3)), USERS, ITEMS, item_biases=[np.nan] * 40)


# --- files ---

ROWS = [
    (u, ITEMS[(3 * n + 5 * m) % 40], float(10 - m))
    for n, u in enumerate(USERS)
    for m in range(8)
]


def write(path, rows=ROWS, header=""):
    separator = "," if path.suffix == ".csv" else "\t"
    lines = [separator.join(map(str, row)) for row in rows]
    path.write_text("\n".join([header, *lines] if header else lines) + "\n")
    return path


@pytest.mark.parametrize("kind", ["elliot.tsv", "named.tsv", "named.csv", "named.parquet"])
def test_a_file_of_recommendations(tmp_path, kind):
    path = tmp_path / kind
    if path.suffix == ".parquet":
        user, item, score = zip(*ROWS[::-1], strict=True)
        table = {"itemID": item, "more": score, "userID": user, "prediction": score}
        pq.write_table(pa.table(table), path)
    elif kind.startswith("named"):
        header = "item_id,score,user_id" if path.suffix == ".csv" else "item_id\tscore\tuser_id"
        write(path, [(i, s, u) for u, i, s in ROWS[::-1]], header)
    else:
        write(path)
    mine = load_recommender(str(path))
    assert mine.name == path.stem and len(mine.version) == 12
    own = [item for user, item, _ in ROWS if user == "u3"]
    assert ask(mine, k=8).item_ids == tuple(own)
    assert ask(mine, exclude=own[:3]).item_ids == tuple(own[3:7])
    often = {i: sum(row[1] == i for row in ROWS) for i in mine.item_ids}
    popular = sorted(often, key=lambda i: (-often[i], i))
    assert ask(mine, "new").item_ids == tuple(popular[:4])
    more = [i for i in popular if i not in own]
    assert ask(mine, k=10).item_ids == (*own, *more[:2])
    report = check_contract(mine, mine.item_ids, {u: () for u in USERS}, rounds=1)
    assert report.passed, str(report)


def test_ids_stay_text(tmp_path):
    mine = from_recs_file(write(tmp_path / "r.tsv", [("007", "0012", 1), ("7", "12", 2)]))
    assert mine.item_ids == ("0012", "12")
    assert ask(mine, "007", k=1).item_ids == ("0012",) and ask(mine, "7", k=1).item_ids == (
        "12",
    )
    table = pa.table({"user_id": [7, 8], "item_id": [1, 2], "score": [1, 2]})
    pq.write_table(table, tmp_path / "r.parquet")
    mine = from_recs_file(tmp_path / "r.parquet")
    assert ask(mine, "7", k=1).item_ids == ("1",) and ask(mine, "8", k=1).item_ids == ("2",)


@pytest.mark.parametrize(
    ("rows", "header", "said"),
    [
        ([("u0", "i0", 1), ("u0", "i0", 2)], "", "user 'u0' has item 'i0' twice"),
        ([("u0", "i0", 1), ("u0", "i1", "nan")], "", "row 1 has score nan"),
        ([("u0", "i0", 1), ("u0", "i1", "high")], "", "score that is no number"),
        ([("u0", "i0", 1), ("u0", "i1")], "", "no table of user, item, score"),
        ([("u0", "i0")], "", "has columns 'u0', 'i0': expected one of user_id"),
        ([("u0", "i0", 1)], "user_id\tfilm\tscore", "expected one of item_id"),
        ([], "user_id\titem_id\tscore", "has no rows"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_named(tmp_path, rows, header, said):
    with pytest.raises(ValueError, match=said):
        from_recs_file(write(tmp_path / "r.tsv", rows, header))


def test_wrong_parquet_and_no_file(tmp_path):
    table = pa.table({"user_id": ["a", None], "item_id": ["x", "y"], "score": [1.0, 2.0]})
    pq.write_table(table, tmp_path / "r.parquet")
    with pytest.raises(ValueError, match="without a user, an item or a score"):
        from_recs_file(tmp_path / "r.parquet")
    pq.write_table(table.set_column(0, "user_id", pa.array([1.0, 2.0])), tmp_path / "f.parquet")
    with pytest.raises(ValueError, match="ids of type double"):
        from_recs_file(tmp_path / "f.parquet")
    with pytest.raises(FileNotFoundError, match="no recommendations file"):
        load_recommender(tmp_path / "none.tsv")


def test_sparse_scores_of_nobody_come_last_and_minus_infinity_is_never_shown():
    values, where = np.float32([-1, -2, -np.inf]), ([0, 0, 1], [0, 1, 0])
    rows = sparse.csr_matrix((values, where), shape=(2, 4))
    model = from_scores(rows, ["u", "v"], list("abcd"))
    assert ask(model, "nobody").item_ids == ("a", "b", "c", "d")  # a: -.5, b: -1
    assert "a" not in ask(model, "nobody", exclude="a").item_ids


def test_ids_are_texts():
    with pytest.raises(ValueError, match="item id 1 is a int: ids are strings"):
        from_scores(np.eye(2), ["u", "v"], [1, 2])
