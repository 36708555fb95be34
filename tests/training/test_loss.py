"""The chunked losses against dense cross entropy, in value and gradient."""

import subprocess
import sys

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


# Compiled and never run: a head of Qwen3-8B, 8192 tokens, on a mesh of (fsdp, tensor).
COMPILED = """
import math, os, re, sys
fsdp, tensor = map(int, sys.argv[1:])
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={fsdp * tensor}"
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding
from alignuser_jax.parallel import make_mesh, spec
from alignuser_jax.training.loss import cross_entropy

def shape(size, dtype, *axes):
    return jax.ShapeDtypeStruct(size, dtype, sharding=NamedSharding(mesh, spec(*axes)))

def loss(hidden, table, targets, weights):
    options = {"trained_head": False, "chunk": 512, "groups": fsdp}
    return cross_entropy(hidden, table.T, targets, weights, **options)

with jax.set_mesh(mesh := make_mesh(fsdp=fsdp, tensor=tensor)):
    compiled = jax.jit(jax.grad(loss, has_aux=True)).lower(
        shape((4, 2048, 4096), jnp.bfloat16, "batch", None, None),
        shape((151_936, 4096), jnp.bfloat16, "vocab", "embed"),
        shape((4, 2048), jnp.int32, "batch", None),
        shape((4, 2048), jnp.float32, "batch", None),
    ).compile()
print(compiled.memory_analysis().temp_size_in_bytes)
for line in compiled.as_text().splitlines():
    found = re.search(r"= (.*) (all-\\w+|collective-\\w+|reduce-scatter)(-start)?\\(", line)
    if found:
        inside = "while/body" in line
        shapes = [dims.split(",") for dims in re.findall(r"\\[([\\d,]+)\\]", found[1])]
        largest = max((math.prod(map(int, dims)) for dims in shapes), default=1)
        print(found[2], "inside" if inside else "outside", largest)
"""


def compiled_for(fsdp, tensor):
    """Bytes of temporaries per device; (kind, in the loop or not, numbers) of collectives."""
    command = [sys.executable, "-c", COMPILED, str(fsdp), str(tensor)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    first, *lines = done.stdout.splitlines()
    collectives = [(kind, where, int(n)) for kind, where, n in map(str.split, lines)]
    return int(first) / 2**30, collectives


def test_an_8b_head_fits_one_device():
    gib, collectives = compiled_for(1, 1)
    assert gib <= 1.5 and not collectives


def test_on_a_mesh_the_head_is_gathered_once_and_hidden_states_stay():
    gib, collectives = compiled_for(fsdp=4, tensor=2)
    # Its part of the head is 0.58 GiB, and again twice that in f32, as CPUs gather it.
    assert gib <= 2
    gathered = [(where, n) for kind, where, n in collectives if kind == "all-gather"]
    assert gathered == [("outside", 151_936 // 2 * 4096)]
    assert {kind for kind, _, _ in collectives} == {"all-gather", "all-reduce"}
    # Per chunk only its own d(hidden), 128 positions of a device, is summed.
    assert max(n for kind, _, n in collectives if kind == "all-reduce") == 128 * 4096
