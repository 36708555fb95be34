"""Each back end of `attend_causal` against a softmax in NumPy, and against the reference.

On a CPU splash runs in Pallas's interpreter. The tests marked gpu and tpu run the kernels
themselves: `JAX_PLATFORMS=cuda,cpu pytest -m gpu tests/model/test_attention.py`, tpu alike.
"""

import os
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignuser_jax.model.attention import RowLayout, attend_causal
from tests.xla import simulated

BACKEND = jax.default_backend()
ON_GPU = [pytest.mark.gpu, pytest.mark.skipif(BACKEND != "gpu", reason="JAX is on no GPU here")]
ON_TPU = [pytest.mark.tpu, pytest.mark.skipif(BACKEND != "tpu", reason="JAX is on no TPU here")]
LONG = 384  # three of splash's smallest blocks; T=150 is two blocks of the reference
NAMES = [(), ("segment_ids",), ("lengths",), ("window",), ("segment_ids", "lengths", "window")]


def draw(length, size, dtype=jnp.float32, seed=0):
    """q `[2, T, 4, H]` and k, v `[2, 2, T, H]`."""
    random = np.random.default_rng(seed)
    shapes = ((2, length, 4, size), (2, 2, length, size), (2, 2, length, size))
    return [jnp.asarray(random.normal(size=shape), dtype) for shape in shapes]


def pack(*sizes):
    return np.repeat(np.arange(1, len(sizes) + 1, dtype=np.int32), sizes)


def options(length, names):
    """The named of: rows packed, with a segment of one token and padding 0; lengths; window."""
    third = length // 3
    row = pack(third - 1, 1, length - third)
    other = pack(2 * third, length - 2 * third - 9)
    every = {
        "segment_ids": np.stack([row, np.pad(other, (0, 9))]),
        "lengths": np.asarray([length, length // 2 + 1], np.int32),
        "window": 37,
    }
    return {name: every[name] for name in names}


def real_places(length, lengths=None, **_):
    """bool `[2, T, 1, 1]`."""
    lengths = np.full(2, length) if lengths is None else lengths
    return (np.arange(length) < lengths[:, None])[..., None, None]


def attend(q, k, v, segment_ids=None, lengths=None, **options):
    return attend_causal(q, k, v, RowLayout(segment_ids, lengths), **options)


def by_hand(q, k, v, segment_ids=None, lengths=None, window=None):
    """f64; zeros at padded places."""
    q, k, v = (np.asarray(a, np.float64) for a in (q, k, v))
    (rows, length, heads, size), result = q.shape, np.zeros(q.shape)
    i, j = np.arange(length)[:, None], np.arange(length)
    for row in range(rows):
        mask = (j <= i) & (i - j < (window or length))
        if segment_ids is not None:
            mask &= segment_ids[row][:, None] == segment_ids[row]
        n = length if lengths is None else lengths[row]
        for head in range(heads):
            key = head * k.shape[1] // heads
            weights = np.exp(q[row, :n, head] @ k[row, key, :n].T * size**-0.5) * mask[:n, :n]
            weights /= weights.sum(1, keepdims=True)
            result[row, :n, head] = weights @ v[row, key, :n]
    return result


@pytest.mark.parametrize("names", NAMES, ids="-".join)
def test_the_reference_equals_numpy(names):
    (q, k, v), given = draw(150, 8), options(150, names)
    got = jax.jit(partial(attend, **given))(q, k, v)
    assert np.isfinite(got).all()
    want = by_hand(q, k, v, **given)
    np.testing.assert_allclose(got * real_places(150, **given), want, atol=2e-6)


def test_layers_of_different_windows_go_through_one_scan():
    (q, k, v), given = draw(150, 8), options(150, ("segment_ids", "lengths"))
    windows = np.asarray([1, 37, 149, 150, np.iinfo(np.int32).max], np.int32)

    def layer(_, window):
        return None, attend(q, k, v, window=window, **given)

    _, layers = jax.jit(lambda windows: jax.lax.scan(layer, None, windows))(windows)
    for window, got in zip(windows, layers, strict=True):
        want = by_hand(q, k, v, window=int(window), **given)
        np.testing.assert_allclose(got * real_places(150, **given), want, atol=2e-6)


@pytest.mark.parametrize("names", NAMES, ids="-".join)
def test_the_gradient_equals_that_of_a_plain_softmax(names):
    inputs, given = draw(150, 8), options(150, names)
    direction = draw(150, 8, seed=1)[0] * real_places(150, **given)

    def plain(q, k, v):
        i, j = np.arange(150)[:, None], np.arange(150)
        mask = (j <= i) & (i - j < given.get("window", 150))
        ids = np.zeros((2, 150)) if "segment_ids" not in names else given["segment_ids"]
        mask = mask & (ids[:, :, None] == ids[:, None])
        k, v = jnp.repeat(k, 2, axis=1), jnp.repeat(v, 2, axis=1)
        scores = jnp.einsum("btnh,bnsh->bnts", q, k) * 8**-0.5
        weights = jax.nn.softmax(jnp.where(mask[:, None], scores, -1e30), axis=-1)
        return jnp.einsum("bnts,bnsh->btnh", weights, v)

    def gradient(function):
        loss = lambda *inputs: jnp.sum(function(*inputs) * direction)  # noqa: E731
        return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(*inputs)

    # Beyond a row's length both give something, which `direction` does not look at.
    for got, want in zip(gradient(partial(attend, **given)), gradient(plain), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.fixture(
    scope="module",
    params=[("xla", False), ("splash", True), pytest.param(("splash", False), marks=ON_TPU)],
    ids=["xla", "interpreted splash", "compiled splash"],
)
def packed(request):
    """Jitted `(q, k, v, segment_ids, lengths) -> y` at T=LONG: one compilation for all."""
    implementation, interpret = request.param

    def call(q, k, v, segment_ids, lengths):
        layout = RowLayout(segment_ids, lengths)
        return attend_causal(
            q, k, v, layout, implementation=implementation, interpret=interpret
        )

    return jax.jit(call)


def test_packed_rows_equal_separate_rows(packed):
    q, k, v = (np.asarray(a) for a in draw(LONG, 64))
    segments = np.stack([np.pad(pack(201, 150), (0, LONG - 351))] * 2)
    both = packed(q, k, v, segments, np.full(2, LONG, np.int32))
    for start, stop in ((0, 201), (201, 351)):
        n = stop - start
        alone = [np.zeros_like(a) for a in (q, k, v)]
        alone[0][:, :n] = q[:, start:stop]
        alone[1][:, :, :n], alone[2][:, :, :n] = k[:, :, start:stop], v[:, :, start:stop]
        got = packed(*alone, np.ones_like(segments), np.full(2, n, np.int32))
        atol = 1e-2 if BACKEND == "tpu" else 2e-6  # f32 products pass through bf16 there
        np.testing.assert_allclose(got[:, :n], both[:, start:stop], atol=atol)


def test_a_segment_and_padding_are_not_felt_by_others(packed):
    segments = np.stack([pack(100, 150, 134)] * 2)
    lengths = np.asarray([LONG, 300], np.int32)
    changed = segments == 2
    changed[1, 300:] = True
    old, other = draw(LONG, 64), draw(LONG, 64, seed=1)
    where = (changed[..., None, None], *[changed[:, None, :, None]] * 2)
    new = [jnp.where(*triple) for triple in zip(where, other, old, strict=True)]
    before = np.asarray(packed(*old, segments, lengths))
    after = np.asarray(packed(*new, segments, lengths))
    assert np.array_equal(before[~changed], after[~changed])
    assert (before != after)[:, 100:250].any(axis=(2, 3)).all()
    assert np.isfinite(after).all()


def cases(implementation, names, dtype, atol, interpret=False, marks=()):
    id = f"{'interpreted ' * interpret}{implementation}-{'-'.join(names)}"
    return pytest.param(implementation, names, dtype, atol, interpret, marks=marks, id=id)


@pytest.mark.parametrize(
    ("implementation", "names", "dtype", "atol", "interpret"),
    [
        *(cases("splash", n, jnp.float32, 1e-5, True) for n in (NAMES[0], NAMES[-1])),
        *(cases("splash", n, jnp.bfloat16, 2e-2, marks=ON_TPU) for n in NAMES),
        *(
            cases("cudnn", n, jnp.bfloat16, 2e-2, marks=ON_GPU)
            for n in ((), ("lengths",), ("window",), ("lengths", "window"))
        ),
    ],
)
def test_a_kernel_equals_the_reference_with_gradients(
    implementation, names, dtype, atol, interpret
):
    """Outputs at real places and every gradient of a loss over them; finite at padded ones."""
    given = options(LONG, names)
    real = real_places(LONG, **given)
    weights = np.random.default_rng(5).normal(size=(2, LONG, 4, 64)) * real

    def run(qkv, **how):
        def loss(q, k, v):
            y = attend(q, k, v, **given, **how).astype(jnp.float32)
            return (y * weights.astype(np.float32)).sum(), y

        gradients, y = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(*qkv)
        return [np.asarray(a, np.float32) for a in (y, *gradients)]

    qkv = draw(LONG, 64, dtype)
    got = run(qkv, implementation=implementation, interpret=interpret)
    want = run([a.astype(jnp.float32) for a in qkv])
    assert all(np.isfinite(a).all() for a in got)
    np.testing.assert_allclose(got[0] * real, want[0] * real, atol=atol)
    for a, b in zip(got[1:], want[1:], strict=True):
        np.testing.assert_allclose(a, b, atol=atol * np.abs(b).max())


EIGHT = """
import jax, jax.numpy as jnp, numpy as np
from alignuser_jax.model.attention import RowLayout, attend_causal
from alignuser_jax.parallel import make_mesh

random = np.random.default_rng(0)
shapes = ((4, 128, 4, 64), (4, 2, 128, 64), (4, 2, 128, 64))
qkv = [jnp.asarray(random.normal(size=shape), jnp.float32) for shape in shapes]
segments = np.repeat(random.integers(1, 4, (4, 8)), 16, axis=1).astype(np.int32)

def run(**how):
    def loss(q, k, v):
        y = attend_causal(q, k, v, RowLayout(jnp.asarray(segments)), window=50, **how)
        return (y**2).sum(), y
    return jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(*qkv)

alone = run()
with jax.set_mesh(make_mesh(data=2, fsdp=2, tensor=2)):
    spread = run(implementation="splash", interpret=True)
assert spread[1].sharding.shard_shape(spread[1].shape) == (1, 128, 2, 64)
for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(spread), strict=True):
    np.testing.assert_allclose(a, b, atol=2e-5)
print("fine")
"""


def test_splash_runs_on_each_device_of_a_mesh_for_its_rows_and_heads():
    done = subprocess.run(
        [sys.executable, "-c", EIGHT],
        env=os.environ | simulated(8),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "fine" in done.stdout, done.stderr[-3000:]


def refusal(implementation, given, message, length=LONG, size=64, dtype=jnp.bfloat16):
    return implementation, given, message, length, size, dtype


SEGMENTS = np.ones((2, LONG), np.int32)


@pytest.mark.parametrize(
    ("implementation", "given", "message", "length", "size", "dtype"),
    [
        refusal("flash", {}, "'flash' is not 'xla', 'cudnn' or 'splash'"),
        refusal("xla", {"window": 0}, "window=0: a token sees itself"),
        refusal("xla", {"segment_ids": SEGMENTS[:1]}, r"segment_ids have shape \(1, 384\)"),
        refusal("xla", {"lengths": SEGMENTS[:, :1]}, r"lengths have shape \(2, 1\)"),
        refusal("cudnn", {"segment_ids": SEGMENTS}, "cudnn' was given segment_ids"),
        refusal("cudnn", {"window": jnp.int32(5)}, "cudnn' needs its window as a Python int"),
        refusal("cudnn", {}, "bfloat16 or float16, got float32", dtype=jnp.float32),
        refusal("cudnn", {}, "multiple of 8 up to 256 .*, got 12", size=12),
        refusal("cudnn", {}, "multiple of 8 up to 256 .*, got 264", size=264),
        refusal("splash", {"window": jnp.int32(5)}, "splash' needs its window as a Python int"),
        refusal("splash", {}, "got T=150 and H=64", length=150),
        refusal("splash", {}, "got T=384 and H=80", size=80),
    ],
)
def test_what_a_back_end_cannot_honour_is_refused(
    implementation, given, message, length, size, dtype
):
    qkv = draw(length, size, dtype)
    with pytest.raises(ValueError, match=message):
        attend(*qkv, **given, implementation=implementation)


@pytest.mark.skipif(BACKEND != "cpu", reason="refusals of a CPU")
@pytest.mark.parametrize(("implementation", "platform"), [("cudnn", "GPU"), ("splash", "TPU")])
def test_a_kernel_without_its_device_is_refused(implementation, platform):
    with pytest.raises(ValueError, match=f"needs a {platform}, but JAX runs on 'cpu'"):
        attend_causal(*draw(LONG, 64, jnp.bfloat16), implementation=implementation)
