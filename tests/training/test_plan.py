"""The dry run against hand counts, on eight simulated devices (in a fresh process), and what it
refuses."""

import dataclasses
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import pytest

from alignuser_jax.model import DecoderConfig, LoraConfig, abstract_decoder
from alignuser_jax.parallel import make_mesh
from alignuser_jax.training.config import TrainConfig
from alignuser_jax.training.flops import find_chip, train_flops
from alignuser_jax.training.plan import (
    USABLE,
    WORKING,
    Plan,
    devices_for,
    plan,
    this_machine,
)

PLAN = Plan(
    base_parameters=1000,
    adapter_parameters=10,
    trainable="lora",
    mesh={"data": 2, "fsdp": 4, "tensor": 1},
    chip=find_chip("v5e"),
    platform="cpu",
    rows=16,
    length=128,
    accumulation=2,
    memory_bytes={"frozen weights": 8 * 2**30, WORKING: 2 * 2**30},
    matmul_flops_per_token=3e9,
    attention_flops_per_token=1e9,
)


def run(program, *arguments):
    quick = {"XLA_FLAGS": "--xla_backend_optimization_level=0"}  # nothing is run
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *arguments],
        capture_output=True, text=True, env=os.environ | quick,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


EIGHT = """
import jax
import jax.numpy as jnp
from alignuser_jax.model import DecoderConfig, LoraConfig, abstract_decoder
from alignuser_jax.parallel import make_mesh
from alignuser_jax.training.config import TrainConfig
from alignuser_jax.training.plan import WORKING, devices_for, plan

assert len(jax.devices()) == 1
devices = devices_for(8)
assert len(devices) == 8 and devices == devices_for(8)
mesh = make_mesh(data=2, fsdp=2, tensor=2, devices=devices)
tasks = ["reflection", "world_model"]
shape = DecoderConfig(vocab_size=64, hidden_size=16, intermediate_size=32, num_layers=2,
                      num_heads=4, num_kv_heads=2, head_dim=8)
lora = LoraConfig(rank=2)
config = TrainConfig(steps=4, batch_size=16, accumulation=2, seq_len=32, remat="full")

measured, analyse = [], jax.stages.Compiled.memory_analysis
def note(step):
    measured.append(analyse(step))
    return measured[-1]
jax.stages.Compiled.memory_analysis = note

# Matrices are cut by fsdp and by tensor, norms by nothing; of an adapter's two, one by each.
table, layer = 64 * 16, 16 * (32 + 16 + 16 + 32 + 3 * 32)
norms = 16 + 16 + 8 + 8
weights = table + 2 * (layer + norms) + 16
per_device = table // 4 + 2 * (layer // 4 + norms) + 16
adapter = 2 * 2 * sum(i + o for i, o in
                      [(16, 32), (16, 16), (16, 16), (32, 16), (16, 32), (16, 32), (32, 16)])
batch = 6 * 4 * 16 * 32 // 4

bf16 = {"dtype": jnp.bfloat16, "param_dtype": jnp.bfloat16}
found = plan(abstract_decoder(shape, lora, **bf16), tasks, config, mesh, "h100")
assert (found.base_parameters, found.adapter_parameters) == (weights, adapter)
assert found.devices == 8 and found.platform == "cpu" and found.fits is True
kinds = dict(found.memory_bytes)
working = kinds.pop(WORKING)
assert kinds == {
    "frozen weights": 2 * per_device,
    "trained weights": 4 * adapter // 2,
    "optimizer state": 2 * 4 * adapter // 2 + 2 * 4,
    "batch": batch,
}, kinds
m = measured[-1]  # the compiler's arguments are those and the step's number
assert m.argument_size_in_bytes == sum(kinds.values()) + 4, (m, kinds)
assert working == m.temp_size_in_bytes + m.output_size_in_bytes - m.alias_size_in_bytes > 0
print(found.table())

full = plan(abstract_decoder(shape), tasks, TrainConfig(
    steps=4, batch_size=16, seq_len=32, trainable="full"), mesh, "NVIDIA H200")
kinds = dict(full.memory_bytes)
working = kinds.pop(WORKING)
assert kinds == {
    "frozen weights": 0,
    "trained weights": 4 * per_device,
    "optimizer state": 2 * 4 * per_device + 2 * 4,
    "batch": batch,
}, kinds
assert 2 * full.matmul_flops_per_token == 3 * found.matmul_flops_per_token

def refused(words, mesh=mesh, shape=shape, **changes):
    try:
        plan(abstract_decoder(shape, lora), tasks,
             TrainConfig(**({"steps": 4, "batch_size": 16} | changes)), mesh, "h100")
    except ValueError as error:
        assert words in str(error), error
    else:
        raise AssertionError(words)

refused("6 rows (batch_size=12 / accumulation=2) does not divide among data=2 x fsdp=2 = 4",
        batch_size=12, accumulation=2)
refused("'heads' of 2 into 8", make_mesh(tensor=8, devices=devices))
"""


def test_eight_devices_by_hand():
    table = run(EIGHT)
    assert "8 h100, data=2 x fsdp=2 x tensor=2" in table
    assert "16 rows of 32 tokens in 2 micro-batches" in table
    assert "trained: lora" in table and "fits" in table


def test_speed_is_the_peak_by_the_rule():
    assert PLAN.flops_per_step == 4e9 * 16 * 128
    assert PLAN.tokens_per_second == pytest.approx(8 * 197e12 * 0.4 / 4e9)
    table = PLAN.table()
    assert "19,700 tokens/s per device, 157,600 in all, 0.01 s per step" in table
    assert "4.0 G per token: weights 3.0, attention 1.0" in table


@pytest.mark.parametrize(
    ("frozen", "working", "platform", "fits", "says"),
    [
        (8, 2, "cpu", True, "yes"),
        (8, 8, "cpu", None, "estimated on a CPU"),
        (8, 8, "tpu", False, "more devices"),
        (16, 0, "cpu", False, "more devices"),
    ],
)
def test_does_it_fit(frozen, working, platform, fits, says):
    """v5e has 16 GiB; what only the CPU's estimate exceeds is not called too large."""
    memory = {"frozen weights": frozen * 2**30, WORKING: working * 2**30}
    case = dataclasses.replace(PLAN, memory_bytes=memory, platform=platform)
    assert case.usable_bytes == int(USABLE * 16 * 2**30)
    assert case.fits is fits and says in case.table()


def test_an_unknown_chip_is_refused_before_anything_is_compiled():
    decoder = abstract_decoder(DecoderConfig(vocab_size=8), LoraConfig(rank=1))
    mesh = make_mesh(devices=jax.devices()[:1])
    with pytest.raises(ValueError, match="a chip called 'h1000'; known are"):
        plan(decoder, ["a"], TrainConfig(steps=1), mesh, "h1000")


SHAPE = DecoderConfig(vocab_size=8, hidden_size=16, intermediate_size=32, num_layers=4)


@pytest.mark.parametrize("layers", [None, 1])
def test_a_plan_for_this_machine(layers):
    """A CPU has memory and no known peak: everything is told but the speed."""
    decoder = abstract_decoder(SHAPE, LoraConfig(rank=1, layers=layers))
    mesh = make_mesh(devices=jax.devices()[:1])
    config = TrainConfig(steps=30, batch_size=2, seq_len=16)
    found = plan(decoder, ["a"], config, mesh, "cpu")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert found.chip.hbm_bytes == memory and found.fits is True
    assert found.tokens_per_second is None
    table = found.table()
    assert "30 steps, 960 tokens with padding" in table and "1 cpu, data=1" in table
    assert "MFU" not in table and "not known before it runs" in table
    assert this_machine(8).hbm_bytes == memory // 8  # simulated devices share it
    widths = 4 * 16 + 2 * (128 + 64) + 3 * (16 + 32)  # in + out of all seven, each of rank 1
    assert found.adapter_parameters == (layers or 4) * widths
    large = dataclasses.replace(found, memory_bytes={"frozen weights": memory, WORKING: 1})
    assert large.fits is False and "no: more devices" in large.table()
    large = dataclasses.replace(found, memory_bytes={"frozen weights": 1, WORKING: memory})
    assert large.fits is False  # the compiler's number for this very CPU


def test_enough_devices_are_taken_as_they_are():
    assert devices_for(1) == jax.devices()[:1]


QWEN = """
import sys
sys.path.insert(0, sys.argv[1])
import jax.numpy as jnp
from tests.model.files.test_published import PUBLISHED
from alignuser_jax.runs.experiment import load_experiment
from alignuser_jax.model import abstract_decoder, read_config
from alignuser_jax.parallel import make_mesh
from alignuser_jax.training.plan import WORKING, devices_for, plan

experiment = load_experiment(sys.argv[1] + "/configs/qwen3_8b.py")
dtype = jnp.dtype(experiment.dtype)
decoder = abstract_decoder(read_config(PUBLISHED["Qwen3-8B"][1]), experiment.lora,
                           dtype=dtype, param_dtype=dtype)
mesh = make_mesh(fsdp=8, devices=devices_for(8))
found = plan(decoder, sorted(experiment.align.mix), experiment.align, mesh, "h100")
assert (found.base_parameters, found.adapter_parameters) == (8_190_735_360, 43_646_976)
assert abs(found.memory_bytes["frozen weights"] * 8 / (2 * 8_190_735_360) - 1) < 1e-3
assert found.fits, found.table()
import re
# The kernel's own peak of this program: getrusage's also counts what pytest held before exec.
peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
assert peak < 2 * 2**20, peak  # KiB: no weights here
print(found.table())
"""


@pytest.mark.slow
def test_qwen3_8b_on_eight_devices_allocates_nothing():
    """About 45 seconds on one core, nearly all of it compiling."""
    table = run(QWEN, str(Path(__file__).parents[2]))
    config = DecoderConfig(
        vocab_size=151936, hidden_size=4096, intermediate_size=12288, num_layers=36,
        num_heads=32, num_kv_heads=8, head_dim=128, tie_word_embeddings=False,
    )  # fmt: skip
    speed = 989.5e12 * 0.4 / train_flops(config, "lora", 4096)
    assert f"{speed:,.0f} tokens/s per device" in table
