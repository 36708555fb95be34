"""Runs stopped from outside, at any moment, on several devices and processes, and resumed."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from alignuser_jax.training.metrics import METRICS_FILE, read_metrics
from tests.training.processes.test_many_devices import free_port
from tests.xla import simulated

PROGRAM = Path(__file__).with_name("train_tiny.py")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("stopped")
    tokenizer.save(folder / "tokens")
    return folder


def start(place, shards, out, mesh=None, devices=1, **more):
    environment = {
        **os.environ,
        **simulated(devices),
        "JAX_COMPILATION_CACHE_DIR": str(place / "compiled"),
        **more,
    }
    arguments = [
        str(shards),
        str(place / "tokens"),
        str(place / out),
        *([mesh] if mesh else []),
    ]
    log = (place / f"{out}.log").open("a")
    return subprocess.Popen(
        [sys.executable, str(PROGRAM), *arguments], env=environment, stdout=log, stderr=log
    )


def lines(place, out):
    path = place / out / METRICS_FILE
    return path.read_text().count("\n") if path.is_file() else 0


def once(place, out, count, *processes):
    """Waits until the record has so many lines."""
    while lines(place, out) < count and all(p.poll() is None for p in processes):
        time.sleep(0.002)


def log(place, out):
    return (place / f"{out}.log").read_text()[-3000:]


def untimed(place, out):
    return [
        {k: v for k, v in line.items() if k != "timing"} for line in read_metrics(place / out)
    ]


def adapter(place, out):
    return (place / out / "adapter" / "adapter_model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def straight(place, shards):
    """One device, never stopped."""
    assert start(place, shards, "straight").wait() == 0, log(place, "straight")
    return untimed(place, "straight"), adapter(place, "straight")


def test_sigkill_at_ten_moments_changes_no_bit(place, shards, straight):
    draw = random.Random("ten")
    half_written = 0
    for number in range(10):
        process = start(place, shards, "killed")
        if number % 2:  # while a checkpoint is being written
            while process.poll() is None:
                half_written += (found := any((place / "killed").glob("checkpoints/*tmp*")))
                if found:
                    break
        else:
            once(place, "killed", lines(place, "killed") + draw.randrange(1, 4), process)
            time.sleep(draw.uniform(0, 0.05))
        process.kill()
        assert process.wait() == -signal.SIGKILL, log(place, "killed")
    assert half_written >= 3
    assert start(place, shards, "killed").wait() == 0, log(place, "killed")
    assert untimed(place, "killed") == straight[0]
    assert adapter(place, "killed") == straight[1]


def close(place, out, straight):
    """The same run but for the order of sums."""
    found = untimed(place, out)
    assert [line["step"] for line in found] == [line["step"] for line in straight[0]]
    for one, other in zip(straight[0], found, strict=True):
        assert one["tokens"] == other["tokens"]
        np.testing.assert_allclose(other["loss"], one["loss"], rtol=1e-3)


def test_saved_on_eight_devices_and_resumed_on_four_and_on_one(place, shards, straight):
    for mesh, devices, stop in (("fsdp=4,tensor=2", 8, 12), ("data=2,fsdp=2", 4, 25)):
        process = start(place, shards, "eight", mesh, devices)
        once(place, "eight", stop, process)
        process.terminate()
        assert process.wait() == 85, log(place, "eight")
        assert stop <= lines(place, "eight") < 40
    assert start(place, shards, "eight").wait() == 0, log(place, "eight")
    close(place, "eight", straight)


def test_a_signal_to_one_process_of_two_stops_both_and_one_alone_goes_on(
    place, shards, straight
):
    where = f"127.0.0.1:{free_port()}"
    pair = [
        start(place, shards, "two", "data=2,fsdp=2", 2, COORDINATOR=where, PROCESS=str(n))
        for n in range(2)
    ]
    once(place, "two", 10, *pair)
    pair[1].terminate()
    assert [process.wait() for process in pair] == [85, 85], log(place, "two")
    assert 10 <= lines(place, "two") < 40
    assert start(place, shards, "two", "data=2,fsdp=2", 4).wait() == 0, log(place, "two")
    close(place, "two", straight)
