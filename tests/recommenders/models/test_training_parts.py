"""The parts that MF, LightGCN and MultVAE are made of, against NumPy, SciPy and brute force."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.sparse import csr_matrix, diags

from alignuser_jax.recommenders.checks.ranking import recall_ndcg, top_codes
from alignuser_jax.recommenders.models import bpr, variational
from alignuser_jax.recommenders.models.factors import Factors, live_codes
from alignuser_jax.recommenders.models.lightgcn import live_vectors
from alignuser_jax.recommenders.models.mf import fold_rule
from alignuser_jax.recommenders.models.multvae import Autoencoder
from alignuser_jax.recommenders.models.propagation import RUN, product, propagation, runs
from alignuser_jax.records import Interaction, RecommendationRequest


@pytest.fixture(scope="module")
def positives():
    """30 users, 50 items; user 4 and item 7 without any, user 5 with every other item."""
    dense = np.random.default_rng(1).random((30, 50)) < 0.2
    dense[5] = True
    dense[4], dense[:, 7] = False, False
    return csr_matrix(dense.astype(np.float32))


def vectors(seed, shape=(30, 50), d=6, dtype=np.float64):
    draw = np.random.default_rng(seed)
    names = zip(("users", "items"), shape, strict=True)
    return {name: draw.standard_normal((size, d)).astype(dtype) for name, size in names}


# --- ranking ------------------------------------------------------------------------------


def brute_force(scores, seen, truth, k):
    """Recall and nDCG by sorting and counting, one user at a time."""
    order = sorted(range(len(scores)), key=lambda item: (-scores[item], item))
    ranking = [item for item in order if item not in seen][:k]
    hits = [item in truth for item in ranking]
    gained = sum(hit / math.log2(place + 2) for place, hit in enumerate(hits))
    best = sum(1 / math.log2(place + 2) for place in range(min(k, len(truth))))
    return ranking, sum(hits) / len(truth), gained / best


@pytest.mark.parametrize("k", [1, 5, 20])
def test_metrics_are_those_of_brute_force(k):
    draw = np.random.default_rng(k)
    scores = draw.integers(0, 8, (40, 25)).astype(np.float32)  # many ties
    kind = draw.integers(0, 3, (40, 25))
    kind[:, 0] = 2
    seen, truth = csr_matrix(kind == 1), csr_matrix(kind == 2)
    top = top_codes(scores.copy(), seen, k)
    recall, ndcg = recall_ndcg(top, truth)
    for user in range(40):
        hidden, wanted = (set(np.flatnonzero(kind[user] == n)) for n in (1, 2))
        ranking, r, n = brute_force(scores[user], hidden, wanted, k)
        assert [item for item in top[user] if item >= 0] == ranking
        assert recall[user] == pytest.approx(r) and ndcg[user] == pytest.approx(n)


def test_the_perfect_ranking_has_1_and_users_without_truth_nan():
    truth = csr_matrix([[1, 0, 1, 0], [0, 0, 0, 0]])
    recall, ndcg = recall_ndcg(np.array([[2, 0, -1], [0, 1, 2]]), truth)
    assert recall[0] == ndcg[0] == 1 and np.isnan(recall[1]) and np.isnan(ndcg[1])


# --- BPR ----------------------------------------------------------------------------------


def test_negatives_are_uniform_over_what_a_user_lacks(positives):
    draw = np.random.Generator(np.random.Philox(0))
    users = np.repeat(np.array([0, 5], np.int32), [20_000, 500])
    negatives = bpr.draw_negatives(positives, users, draw)
    own = set(positives[0].indices)
    counts = np.bincount(negatives[users == 0], minlength=50)
    assert not counts[list(own)].any()
    left = np.delete(counts, list(own))
    assert abs(left / 20_000 * len(left) - 1).max() < 0.2
    assert set(negatives[users == 5]) == {7}


def test_an_epoch_has_every_pair_once(positives):
    batches = bpr.epoch_batches(positives, 64, seed=3, epoch=2)
    steps = -(-positives.nnz // 64)
    assert all(column.shape == (steps, 64) for column in batches.values())
    real = batches["weight"] == 1
    assert real.sum() == positives.nnz and (batches["weight"][~real] == 0).all()
    seen = csr_matrix(
        (np.ones(positives.nnz), (batches["user"][real], batches["positive"][real])),
        shape=positives.shape,
    )
    assert (seen != positives).nnz == 0
    again = bpr.epoch_batches(positives, 64, seed=3, epoch=2)
    assert all(np.array_equal(batches[name], again[name]) for name in batches)
    other = bpr.epoch_batches(positives, 64, seed=3, epoch=3)
    assert not np.array_equal(batches["positive"], other["positive"])


def test_bpr_loss_and_gradient(positives):
    """The loss against its formula, the gradient against central differences, in float64."""
    batch = {
        "user": np.array([0, 1, 0, 2]),
        "positive": np.array([3, 4, 3, 9]),
        "negative": np.array([5, 3, 6, 1]),
        "weight": np.array([1.0, 1.0, 1.0, 0.0]),
    }
    with jax.enable_x64(True):
        x = vectors(2)
        propagate = propagation(positives, 2)

        def loss(x):
            return bpr.bpr_loss(x, propagate(x), batch, 0.1)

        final = {name: np.asarray(part) for name, part in propagate(x).items()}
        expected = 0.0
        for user, yes, no in ((0, 3, 5), (1, 4, 3), (0, 3, 6)):
            margin = final["users"][user] @ (final["items"][yes] - final["items"][no])
            parts = x["users"][user], x["items"][yes], x["items"][no]
            expected += math.log1p(math.exp(-margin)) + 0.05 * sum(p @ p for p in parts)
        assert float(loss(x)) == pytest.approx(expected / 3, rel=1e-6)
        gradient = jax.grad(loss)(x)
        draw = np.random.default_rng(0)
        for name in ("users", "items"):
            for row in (0, 1, 3, 5, 9):
                column = draw.integers(6)
                values = []
                for sign in (1, -1):
                    moved = {key: part.copy() for key, part in x.items()}
                    moved[name][row, column] += sign * 1e-5
                    values.append(float(loss(moved)))
                slope = (values[0] - values[1]) / 2e-5
                assert float(gradient[name][row, column]) == pytest.approx(slope, abs=1e-6)


# --- LightGCN -----------------------------------------------------------------------------


def scipy_propagation(positives, x, layers):
    n_users, n_items = positives.shape
    zeros = [csr_matrix((n, n)) for n in (n_users, n_items)]
    from scipy.sparse import bmat

    graph = bmat([[zeros[0], positives], [positives.T, zeros[1]]]).tocsr()
    degree = np.maximum(np.asarray(graph.sum(1)).ravel(), 1)
    normal = diags(degree**-0.5) @ graph @ diags(degree**-0.5)
    layer = total = np.vstack([x["users"], x["items"]]).astype(np.float64)
    for _ in range(layers):
        layer = normal @ layer
        total = total + layer
    return total[:n_users] / (layers + 1), total[n_users:] / (layers + 1)


def test_runs_hold_every_column_once(positives):
    columns, row = runs(positives)
    assert columns.shape == (len(row), RUN) and (np.diff(row) >= 0).all()
    rows = np.repeat(row, RUN).reshape(columns.shape)
    real = columns < positives.shape[1]
    entries = list(zip(rows[real].tolist(), columns[real].tolist(), strict=True))
    assert entries == list(zip(*(part.tolist() for part in positives.nonzero()), strict=True))


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_propagation_is_scipys(positives, layers):
    x = vectors(layers, dtype=np.float32)
    final = propagation(positives, layers)(x)
    users, items = scipy_propagation(positives, x, layers)
    np.testing.assert_allclose(final["users"], users, atol=2e-6)
    np.testing.assert_allclose(final["items"], items, atol=2e-6)
    np.testing.assert_allclose(
        product(positives)(x["items"]), positives @ x["items"], atol=5e-6
    )


def test_the_transpose_of_propagation_is_itself(positives):
    """<P x, y> = <x, P y>, and the backward pass is that of plain autodiff."""
    propagate, x, y = propagation(positives, 2), vectors(1), vectors(2)

    def inner(a, b):
        return sum(float(jnp.vdot(a[name], b[name])) for name in a)

    assert inner(propagate(x), y) == pytest.approx(inner(x, propagate(y)), rel=1e-4)
    dense = jnp.asarray(positives.toarray())
    scales = [np.maximum(dense.sum(axis), 1) ** -0.5 for axis in (1, 0)]
    normal = scales[0][:, None] * dense * scales[1]

    def plain(x):
        users, items = [x["users"]], [x["items"]]
        for _ in range(2):
            users, items = [*users, normal @ items[-1]], [*items, normal.T @ users[-1]]
        return {"users": sum(users) / 3, "items": sum(items) / 3}

    def squares(vectors):
        return sum(jnp.sum(jnp.sin(part)) for part in vectors.values())

    ours = jax.grad(lambda x: squares(propagate(x)))(x)
    theirs = jax.grad(lambda x: squares(plain(x)))(x)
    for name in x:
        np.testing.assert_allclose(ours[name], theirs[name], atol=1e-5)


def history(positives, user):
    return tuple(Interaction(f"i{code}", 5.0) for code in positives[user].indices)


def test_the_training_history_gives_the_trained_vector_back(positives):
    ids = [f"u{n}" for n in range(30)], [f"i{n}" for n in range(50)]
    x = vectors(3, dtype=np.float32)
    requests = [RecommendationRequest(u, history(positives, n)) for n, u in enumerate(ids[0])]
    ids, counts = [tuple(part) for part in ids], np.ones(50, np.float32)
    gcn = Factors(*ids, *live_vectors(positives, x, 2), counts)
    users, items = scipy_propagation(positives, x, 2)

    def vectors_of(factors):
        rows = [factors.user_vector(one, live_codes(gcn.index, one)) for one in requests]
        return np.stack(rows)

    np.testing.assert_allclose(vectors_of(gcn), users, atol=2e-6)
    np.testing.assert_allclose(gcn.items, items, atol=2e-6)
    base, fold = fold_rule(positives, x["users"], x["items"])
    mf = Factors(*ids, base, fold, x["items"], counts)
    np.testing.assert_allclose(vectors_of(mf), x["users"], atol=1e-5)


def test_the_fold_of_mf_is_the_ridge_regression(positives):
    """Users that are a linear map of their items' sums are found again, but for the ridge."""
    x = vectors(4)
    counts = np.maximum(np.diff(positives.indptr), 1)
    sums = positives @ x["items"] / np.sqrt(counts)[:, None]
    rule = np.random.default_rng(5).standard_normal((6, 6))
    base, fold = fold_rule(positives, sums @ rule, x["items"], ridge=1e-9)
    assert abs(base).max() < 1e-5
    np.testing.assert_allclose(fold, x["items"] @ rule, atol=1e-4)


# --- MultVAE ------------------------------------------------------------------------------


def test_the_loss_is_numpys(positives):
    model = variational.VAE(50, 8, 3, rngs=nnx.Rngs(0))
    params = model.arrays()
    draw = np.random.default_rng(0)
    rows = positives[:6].toarray()
    dropout_scale = 2.0 * (draw.random(rows.shape) < 0.5)
    noise = draw.standard_normal((6, 3))
    weight = np.array([1, 1, 1, 1, 0, 1.0])
    expected = 0.0
    for n in np.flatnonzero(weight):
        x = rows[n] / max(np.sqrt((rows[n] ** 2).sum()), 1e-6) * dropout_scale[n]
        code = np.tanh(x @ params["w1"] + params["b1"]) @ params["w2"] + params["b2"]
        mean, log_variance = code[:3], code[3:]
        z = mean + np.exp(log_variance / 2) * noise[n]
        logits = np.tanh(z @ params["w3"] + params["b3"]) @ params["w4"] + params["b4"]
        shares = np.exp(logits) / np.exp(logits).sum()
        kl = -0.5 * (1 + log_variance - mean**2 - np.exp(log_variance)).sum()
        expected += 0.2 * kl - (rows[n] * np.log(shares)).sum()
    l2 = 0.05 * sum((params[f"w{n}"].astype(np.float64) ** 2).sum() for n in range(1, 5))
    loss = variational.vae_loss(model, rows, weight, dropout_scale, noise, 0.2, 0.1)
    assert float(loss) == pytest.approx(expected / 5 + l2, rel=1e-5)


def test_asking_computes_what_training_validates(positives, tmp_path):
    vae = variational.VAE(50, 8, 3, rngs=nnx.Rngs(0))
    vae.encode_hidden.bias[...] = jnp.linspace(-1, 1, 8)  # biases that matter
    vae.encode_code.bias[...] = jnp.linspace(-1, 1, 6)
    ones = np.ones(50, np.float32)
    model = Autoencoder(tuple(f"i{n}" for n in range(50)), ones, vae.arrays())
    mean, _ = vae.encode(variational.unit_length(positives.toarray()))
    expected = vae.decode(mean)
    for n in np.flatnonzero(np.diff(positives.indptr)):
        logits = model.logits(positives[n].indices)
        np.testing.assert_allclose(logits, expected[n], atol=1e-5)
