"""The chunked losses against dense cross entropy, in value and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignuser_jax.training.loss import cross_entropy, fold_weights

B, T, D, V = 4, 13, 8, 37


def inputs(trained_share=0.3, dtype=np.float32):
    rng = np.random.default_rng(0)
    weights = rng.random((B, T)) * (rng.random((B, T)) < trained_share)
    weights[1] = 0  # a row that trains nothing
    return (
        jnp.asarray(rng.normal(size=(B, T, D)), dtype),
        jnp.asarray(rng.normal(size=(D, V)), dtype),
        jnp.asarray(rng.integers(V, size=(B, T)), jnp.int32),
        jnp.asarray(weights, jnp.float32),
    )


def dense(hidden, head, targets, weights):
    log_p = jax.nn.log_softmax(jnp.einsum("btd,dv->btv", hidden, head))
    nll = -jnp.take_along_axis(log_p, targets[..., None], -1)[..., 0]
    return jnp.sum(weights * nll), nll


@pytest.mark.parametrize("trained_head", [True, False])
@pytest.mark.parametrize(("chunk", "groups"), [(7, 2), (1000, 1)])
def test_equals_dense_in_value_and_gradient(trained_head, chunk, groups):
    hidden, head, targets, weights = inputs()

    def ours(hidden, head):
        return 3.0 * cross_entropy(
            hidden, head, targets, weights,
            trained_head=trained_head, chunk=chunk, groups=groups,
        )[0]  # fmt: skip

    def oracle(hidden, head):
        return 3.0 * dense(hidden, head, targets, weights)[0]

    wrt = (0, 1) if trained_head else 0
    value, grads = jax.jit(jax.value_and_grad(ours, wrt))(hidden, head)
    value_0, grads_0 = jax.value_and_grad(oracle, wrt)(hidden, head)
    np.testing.assert_allclose(value, value_0, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), grads, grads_0)
    _, nll = cross_entropy(
        hidden, head, targets, weights, trained_head=trained_head, chunk=chunk, groups=groups
    )
    expected = jnp.where(weights != 0, dense(hidden, head, targets, weights)[1], 0)
    np.testing.assert_allclose(nll, expected, atol=1e-5)


def test_no_weight_at_all_is_zero_and_has_zero_gradient():
    hidden, head, targets, weights = inputs()
    for trained_head in (True, False):
        value, grad = jax.value_and_grad(
            lambda h, t=trained_head: cross_entropy(
                h, head, targets, 0 * weights, trained_head=t, chunk=8
            )[0]
        )(hidden)
        assert value == 0
        assert not np.any(grad)


def test_frozen_head_refuses_a_gradient_of_the_head():
    hidden, head, targets, weights = inputs()
    with pytest.raises(ValueError, match="trained_head=True"):
        jax.grad(lambda w: cross_entropy(hidden, w, targets, weights, trained_head=False)[0])(
            head
        )


def test_groups_must_divide_the_batch():
    with pytest.raises(ValueError, match="4 rows cannot be cut into 3 groups"):
        cross_entropy(*inputs(), trained_head=True, groups=3)


def test_large_logits_stay_finite_and_bfloat16_is_close():
    hidden, head, targets, weights = inputs()
    value, _ = cross_entropy(1e4 * hidden, head, targets, weights, trained_head=False)
    np.testing.assert_allclose(value, dense(1e4 * hidden, head, targets, weights)[0], rtol=1e-5)
    low = inputs(dtype=jnp.bfloat16)
    grad = jax.grad(lambda h: cross_entropy(h, *low[1:], trained_head=False)[0])(low[0])
    exact = jax.grad(lambda h: dense(h, *inputs()[1:])[0])(hidden)
    assert grad.dtype == jnp.bfloat16
    np.testing.assert_allclose(grad.astype(np.float32), exact, atol=0.05)


@pytest.mark.parametrize("trained_head", [True, False])
def test_never_a_full_logits_array(trained_head):
    shapes = set()

    def visit(jaxpr):
        for equation in jaxpr.eqns:
            shapes.update(v.aval.size for v in equation.outvars)
            for value in jax.tree.leaves(
                list(equation.params.values()),
                is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr"),
            ):
                inner = getattr(value, "jaxpr", value)
                if hasattr(inner, "eqns"):
                    visit(inner)

    hidden, head, targets, weights = inputs()
    wrt = (0, 1) if trained_head else 0
    jaxpr = jax.make_jaxpr(
        jax.value_and_grad(
            lambda h, w: cross_entropy(
                h, w, targets, weights, trained_head=trained_head, chunk=4
            )[0],
            wrt,
        )
    )(hidden, head)
    visit(jaxpr.jaxpr)
    assert 4 * V in shapes  # a chunk's logits were seen, so the walk went inside
    assert max(shapes) < B * T * V / 2


def test_folded_weights_give_the_sum_over_tasks():
    _, _, _, weights = inputs()
    task = jnp.asarray([[0] * T, [2] * T, [1] * T, [1] * T])  # task 2 has only row 1: no weight
    nll = jnp.asarray(np.random.default_rng(1).random((B, T)), jnp.float32)
    folded, totals = fold_weights(weights, task, jnp.asarray([1.0, 0.5, 2.0]))
    w, n = np.asarray(weights), np.asarray(nll)
    expected = (w[0] * n[0]).sum() / w[0].sum() + 0.5 * (w[2:] * n[2:]).sum() / w[2:].sum()
    np.testing.assert_allclose(np.sum(folded * nll), expected, rtol=1e-5)
    np.testing.assert_allclose(totals, [w[0].sum(), w[2:].sum(), 0], rtol=1e-6)
    off, _ = fold_weights(weights, task, jnp.asarray([0.0, 0.5, 2.0]))
    assert not np.any(off[0]) and np.array_equal(off[2:], folded[2:])
