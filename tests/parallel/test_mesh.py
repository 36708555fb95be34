"""Eight fake CPU devices need a fresh process: the flag is read once."""

import os
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from alignuser_jax.parallel import constrain, make_mesh, spec
from tests.xla import simulated


def test_logical_names_map_to_mesh_axes():
    assert spec("batch", None, "mlp") == P(("data", "fsdp"), None, "tensor")
    with pytest.raises(ValueError, match=r"unknown logical axes \['embde'\]"):
        spec("embde", None)


def test_without_a_mesh_nothing_happens():
    x = jnp.ones((2, 3))
    assert constrain(x, "batch", None) is x


def test_a_mesh_of_the_wrong_size_is_refused():
    with pytest.raises(ValueError, match="data=1 x fsdp=3 x tensor=5 needs 15 devices"):
        make_mesh(fsdp=3, tensor=5)


def test_one_device_is_a_mesh():
    mesh = make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        assert jax.jit(lambda x: constrain(x, "batch", "mlp") * 2)(jnp.ones((2, 2))).sum() == 8


EIGHT = """
import pathlib, sys
import jax, jax.numpy as jnp, numpy as np
from alignuser_jax.model import DecoderConfig, LoraConfig, init_decoder, merge, split
from alignuser_jax.model import abstract_decoder, load_decoder, load_pretrained, named_arrays
from alignuser_jax.model import save_adapter, save_pretrained
from alignuser_jax.parallel import make_mesh, shardings

config = DecoderConfig(vocab_size=64, hidden_size=16, intermediate_size=32, num_layers=2,
                       num_heads=4, num_kv_heads=2, head_dim=8)
save_pretrained(init_decoder(config, seed=1), sys.argv[1])
tokens = jnp.arange(48, dtype=jnp.int32).reshape(4, 12)
positions = jnp.broadcast_to(jnp.arange(12, dtype=jnp.int32), (4, 12))

def run(decoder):
    graphdef, lora, base = split(decoder)
    def loss(lora, base):
        model = merge(graphdef, lora, base)
        hidden = model(tokens, positions)
        return jax.nn.logsumexp(model.logits(hidden), -1).mean(), hidden
    return jax.jit(jax.grad(loss, has_aux=True))(lora, base)

# Every byte of the files is read once, whatever the mesh; a block at a time.
from alignuser_jax.model.files.tensors import Tensor, find_tensors
read, whole = [], Tensor.pieces
def counted(self, index=()):
    for where, values in whole(self, index):
        read.append(values)
        yield where, values
Tensor.pieces = counted
stored = {n: t.nbytes for n, t in find_tensors(pathlib.Path(sys.argv[1])).items()}
for shape in ((1, 8, 1), (1, 4, 2), (2, 2, 2), (8, 1, 1)):
    read.clear()
    with jax.set_mesh(make_mesh(*shape)):
        load_decoder(sys.argv[1], mesh=make_mesh(*shape))
    assert sum(part.nbytes for part in read) == sum(stored.values()), shape
Tensor.pieces = whole

alone, hidden = run(load_decoder(sys.argv[1], LoraConfig(rank=2)))
mesh = make_mesh(data=1, fsdp=4, tensor=2)
with jax.set_mesh(mesh):
    decoder = load_decoder(sys.argv[1], LoraConfig(rank=2), mesh=mesh)
    q = decoder.layers.q
    assert q.kernel[...].sharding.shard_shape(q.kernel[...].shape) == (2, 4, 16)
    assert q.a[...].sharding.shard_shape(q.a[...].shape) == (2, 4, 2)
    spread, again = run(decoder)
np.testing.assert_allclose(hidden, again, atol=1e-5)
for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(spread), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-6)
# The public face on a mesh: rows that do not divide, packed rows, an adapter per row.
graphdef, low, base = split(init_decoder(config, LoraConfig(rank=2), seed=1))
low = jax.tree.map(lambda a: a + 0.1, low)
save_adapter(sys.argv[1] + "/a", named_arrays(low), LoraConfig(rank=2))
options = {"dtype": jnp.float32, "adapters": sys.argv[1] + "/a"}
one = load_pretrained(sys.argv[1], **options)
many = load_pretrained(sys.argv[1], mesh=mesh, **options)
segments = np.repeat([[1] * 5 + [2] * 7], 3, axis=0)
for chosen in ("a", None, ["a", None, "a"]):
    a, b = (model.logits(tokens[:3], segments, adapter=chosen) for model in (one, many))
    assert a.shape == (3, 12, 64)
    np.testing.assert_allclose(a, b, atol=1e-5)
np.testing.assert_allclose(one.embed(tokens), many.embed(tokens), atol=1e-5)

odd = DecoderConfig(vocab_size=63, hidden_size=16, intermediate_size=32)
try:
    shardings(split(abstract_decoder(odd))[2], mesh)
except ValueError as error:
    assert "embedding" in str(error) and "'vocab' of 63 into 2" in str(error), error
else:
    raise AssertionError("63 rows into 2 parts were accepted")
print("fine")
"""


def test_eight_devices_compute_what_one_does(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(EIGHT), str(tmp_path)],
        env=os.environ | simulated(8),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "fine" in done.stdout, done.stderr[-3000:]
