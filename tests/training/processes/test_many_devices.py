"""The same losses and gradients however a batch is cut: micro-batches, devices, processes."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.xla import simulated

pytestmark = pytest.mark.slow  # four programs that compile a training step many times

PROGRAM = Path(__file__).with_name("one_step.py")
ONE = "data=1:1:packed"
UPPER = "data=1:1:upper"
"""Adapters on the upper layer only."""
ON_ONE_DEVICE = (ONE, "data=1:2:packed", "data=1:4:packed", "data=1:1:unpacked", UPPER)
ON_EIGHT = (
    *("data=8:1:packed", "data=8:4:packed", "fsdp=8:1:packed", "fsdp=8:2:packed"),
    *("data=2,fsdp=2,tensor=2:1:packed", "data=2,fsdp=2,tensor=2:4:packed"),
    *("fsdp=4,tensor=2:1:unpacked", "data=2,fsdp=2,tensor=2:4:upper"),
)
BY_TWO = ("data=2,fsdp=2:1:packed", "fsdp=2,tensor=2:2:packed", "data=2,tensor=2:1:packed")
"""Over two processes of two devices each; fsdp and tensor cross them in one case or another."""


def start(place, shards, cases, devices, **more):
    environment = {
        **os.environ,
        **simulated(devices),
        "TF_CPP_MIN_LOG_LEVEL": "0",
        **more,
    }
    out = place / f"on-{devices}{'-two' * bool(more)}"
    out.mkdir(exist_ok=True)
    command = [sys.executable, str(PROGRAM), str(shards), str(place / "tokens"), str(out)]
    return subprocess.Popen(
        [*command, *cases], env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ), out  # fmt: skip


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="module")
def found(tmp_path_factory, shards, tokenizer):
    """(devices, processes, case) -> what the step gave."""
    place = tmp_path_factory.mktemp("steps")
    tokenizer.save(place / "tokens")
    where = f"127.0.0.1:{free_port()}"
    two = [{"COORDINATOR": where, "PROCESS": str(n)} for n in range(2)]
    started = {
        (1, 1): [start(place, shards, ON_ONE_DEVICE, 1)],
        (8, 1): [start(place, shards, ON_EIGHT, 8)],
        (2, 2): [start(place, shards, BY_TWO, 2, **more) for more in two],
    }
    results = {}
    for key, runs in started.items():
        for process, _ in runs:
            text, _ = process.communicate(timeout=900)
            assert process.returncode == 0, text[-3000:]
            assert "full rematerialization" not in text  # an array made whole on every device
        for path in runs[0][1].glob("*.npz"):
            results[*key, path.stem] = dict(np.load(path))
    return results


def same(found, case, devices, processes):
    first = UPPER if case.endswith("upper") else ONE
    one, other = found[1, 1, first.replace(":", "_")], found[devices, processes, case]
    assert one.keys() == other.keys() and len(one) > 14
    np.testing.assert_allclose(other["loss"], one["loss"], rtol=1e-5)
    np.testing.assert_allclose(other["nll"] / other["weight"], one["nll"] / one["weight"], 1e-5)
    largest = max(np.abs(one[name]).max() for name in one if name.startswith("layers"))
    assert largest > 1e-3
    for name in one:
        if name.startswith("layers"):
            np.testing.assert_allclose(other[name], one[name], atol=1e-5 * largest)


@pytest.mark.parametrize("case", ON_ONE_DEVICE[1:-1])
def test_on_one_device(found, case):
    same(found, case.replace(":", "_"), 1, 1)


def test_adapters_on_the_upper_layer_have_one_layer(found):
    one, upper = (found[1, 1, case.replace(":", "_")] for case in (ONE, UPPER))
    assert all(values.shape[0] == 1 for n, values in upper.items() if n.startswith("layers"))
    assert upper["loss"] != one["loss"]  # the lower layer's adapters are busy in one of them


@pytest.mark.parametrize("case", ON_EIGHT)
def test_on_eight_devices(found, case):
    same(found, case.replace(":", "_"), 8, 1)


@pytest.mark.parametrize("case", BY_TWO)
def test_by_two_processes(found, case):
    same(found, case.replace(":", "_"), 2, 2)
