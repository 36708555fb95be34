"""What a run tells of its steps, and what stops it."""

import json

import numpy as np
import pytest

from alignuser_jax.training.config import TrainConfig
from alignuser_jax.training.data import Batch
from alignuser_jax.training.metrics import METRICS_FILE, RunLog, read_metrics
from alignuser_jax.training.step import StepOutput
from alignuser_jax.training.watch import BEHIND, Dispatched, Watch, WatchOptions

TASKS = ["reflection", "world_model"]
BATCH = Batch(*(np.ones((1, 2, 4), np.int32) for _ in range(6)))


def output(loss, weights=(2.0, 4.0)):
    """A step both of whose tasks have this loss."""
    return StepOutput(
        loss=np.float32(loss * 1.5), nll=np.float32(loss) * np.asarray(weights, np.float32),
        weight=np.asarray(weights, np.float32), grad_norm=np.float32(1),
        learning_rate=np.float32(0.1), tokens=np.int32(6), attended=np.float32(2.5),
    )  # fmt: skip


def watch(folder, step=-1, **changes):
    given = {"steps": 200, "task_weights": {"reflection": 0.5}, **changes}
    log = RunLog(folder, step)
    options = WatchOptions(
        folder,
        show=lambda batch: "in words",
        flops_per_token=lambda attended: 100 * attended,
        peak_flops=1e9,
    )
    return Watch(TrainConfig(**given), TASKS, log, options), log


def told(watch, losses, start=1):
    for step, loss in enumerate(losses, start):
        watch.dispatched(Dispatched(step, output(loss), BATCH, 8, 0.0, 1))
    watch.flush()


def test_a_line_has_losses_per_task_speed_and_mfu(tmp_path):
    watching, log = watch(tmp_path)
    told(watching, [2.0, 1.0])
    log.close()
    first, second = read_metrics(tmp_path)
    assert first["task_loss"] == {"reflection": 2.0, "world_model": 2.0}
    assert second["perplexity"]["reflection"] == pytest.approx(np.e)
    assert first["packing_efficiency"] == 6 / 8 and first["loss"] == 3.0
    timing = second["timing"]
    assert timing["mfu"] == pytest.approx(timing["tokens_per_second"] * 250 / 1e9)
    assert timing["host_peak_bytes"] > 2**20 and timing["compilations"] == 1


def test_a_task_whose_lambda_is_0_has_no_loss(tmp_path):
    watching, log = watch(tmp_path, task_weights={"reflection": 0.0})
    told(watching, [2.0])
    log.close()
    assert read_metrics(tmp_path)[0]["task_loss"] == {"world_model": 2.0}


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), 9.0])
def test_a_spoilt_step_stops_with_its_batch_aside(tmp_path, loss):
    watching, log = watch(tmp_path)
    told(watching, [1.0] * BEHIND)
    with pytest.raises(FloatingPointError, match=rf"step {BEHIND + 1} is .*stopped") as stopped:
        told(watching, [loss], start=BEHIND + 1)
    log.close()
    assert ("above the median" in str(stopped.value)) == bool(np.isfinite(loss))
    written = tmp_path / "stopped" / f"step-{BEHIND + 1:07d}-process-0.npz"
    np.testing.assert_array_equal(np.load(written)["tokens"], BATCH.tokens)
    assert written.with_suffix(".txt").read_text() == "in words"
    assert read_metrics(tmp_path)[-1]["step"] == BEHIND + 1  # the record shows it


def test_spikes_count_from_the_median_of_many_steps_and_can_be_let_pass(tmp_path):
    watching, log = watch(tmp_path / "a")
    told(watching, [*[1.0] * (BEHIND - 1), 50.0])  # too early to know what is usual
    told(watching, [5.9], start=BEHIND + 1)  # less than 5 nats above
    log.close()
    watching, log = watch(tmp_path / "b", spike_nats=0)
    told(watching, [*[1.0] * BEHIND, 50.0])
    log.close()


def test_after_a_resume_the_record_says_what_is_usual(tmp_path):
    watching, log = watch(tmp_path)
    told(watching, [1.0] * BEHIND)
    log.close()
    again, log = watch(tmp_path, step=BEHIND)
    with pytest.raises(FloatingPointError, match="above the median"):
        told(again, [9.0], start=BEHIND + 1)
    log.close()


def test_a_lost_record_comes_back_from_its_mirror(tmp_path):
    mirror = str(tmp_path / "far")
    log = RunLog(tmp_path / "near", -1, mirror=mirror)
    log.write({"step": 1, "loss": 1.0})
    log.copy()
    log.close()
    (tmp_path / "near" / METRICS_FILE).unlink()
    log = RunLog(tmp_path / "near", 1, mirror=mirror)
    log.close()
    assert log.lines == [{"step": 1, "loss": 1.0}] == read_metrics(tmp_path / "near")


def test_other_processes_write_nothing(tmp_path):
    log = RunLog(tmp_path / "out", -1, write=False)
    log.write({"step": 1})
    log.copy()
    log.close()
    assert not (tmp_path / "out").exists()
    assert json.dumps(log.lines) == "[]"
