"""The launch scripts' command lines with the real program, as two processes on this machine's
CPU. JAX joins them as it joins the tasks of Slurm, or by the coordinator that GKE names; its
detection of Cloud TPU is not shown."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from alignuser_jax.datasets.formats import synthetic
from alignuser_jax.runs.experiment import load_experiment
from alignuser_jax.runs.folder import open_run
from alignuser_jax.runs.stages import build_stage
from alignuser_jax.training.metrics import read_metrics
from tests.launch.stand_ins import LAUNCH, ROOT, Stage, finish, pod_command, slurm, tpu_vm

pytestmark = pytest.mark.slow

PROGRAM = str(Path(sys.executable).parent / "alignuser")
STEPS = 150
CONFIG = f"""
import runpy
from dataclasses import replace

tiny = runpy.run_path({str(ROOT / "configs" / "tiny.py")!r})["experiment"]
rollouts = replace(tiny.pretrain_shards.rollouts, episodes=6)
experiment = replace(
    tiny,
    agents=6,
    decoder=replace(tiny.decoder, num_layers=1),
    pretrain_shards=replace(tiny.pretrain_shards, rollouts=rollouts),
    pretrain=replace(tiny.pretrain, steps={STEPS}, eval_batches=1),
)
"""
TASKS_OF_SLURM = {
    "SLURM_JOB_ID": "4711", "SLURM_NTASKS": "2", "SLURM_STEP_NUM_NODES": "1",
    "SLURM_STEP_NODELIST": "127.0.0.1",
}  # fmt: skip


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with a config, a dataset and the shards of a first stage."""
    folder = tmp_path_factory.mktemp("prepared")
    (folder / "small.py").write_text(CONFIG)
    experiment = load_experiment(folder / "small.py")
    sizes = synthetic.SyntheticConfig(users=40, items=60, ratings_per_user=24)
    dataset = synthetic.generate(sizes)
    dataset.save(folder / "data")
    run = open_run(experiment, dataset, folder / "run")
    build_stage(experiment, dataset, run, "pretrain")
    return folder


@pytest.fixture
def values(prepared, tmp_path):
    """What every launcher is told: two processes, the first stage."""
    run = tmp_path / "run"
    shutil.copytree(prepared / "run", run)
    return {
        "CONFIG": str(prepared / "small.py"), "DATASET": str(prepared / "data"),
        "RUN": str(run), "STAGE": "pretrain", "MESH": "data=2",
    }  # fmt: skip


def assert_trained(values, output):
    run = Path(values["RUN"])
    steps = [line["step"] for line in read_metrics(run / "pretrain") if "loss" in line]
    assert steps == list(range(1, STEPS + 1)), output
    assert "2 x cpu: data 2, fsdp 1, tensor 1" in output
    assert (run / "pretrain" / "model" / "config.json").is_file()


def test_slurm_trains_on_two_processes_is_stopped_and_goes_on(values, tmp_path):
    stage = Stage(tmp_path)
    (stage.notes / "until-stopped").touch()  # the tasks start at once, not in turn
    given = values | {"ALIGNUSER": PROGRAM, "JAX_PLATFORMS": "cpu"}
    run = Path(values["RUN"])

    def logs():
        return "\n".join(path.read_text() for path in run.rglob("logs/**/*.log"))

    job = slurm(stage, **given)
    deadline = time.monotonic() + 600
    while len(read_metrics(run / "pretrain")) < 10 and job.poll() is None:
        assert time.monotonic() < deadline, logs()
        time.sleep(0.05)
    job.send_signal(signal.SIGUSR1)  # as Slurm does before the time is up
    output, _ = job.communicate(timeout=300)
    assert job.returncode == 85, output + logs()
    assert stage.lines("scontrol") == ["requeue 4711"]
    assert 10 <= len(read_metrics(run / "pretrain")) < STEPS
    code, output = finish(slurm(stage, **given), 600)
    assert code == 0, output + logs()
    assert_trained(values, logs())


def test_the_pods_of_the_gpu_jobset_train(values, tmp_path):
    given = values | {"NODES": "2", "CHECKPOINTS": str(tmp_path / "checkpoints")}
    pods, environment = [], os.environ | {"JAX_PLATFORMS": "cpu"}
    for process in "01":
        in_pod = {"COORDINATOR": "127.0.0.1", "PROCESS": process}
        words = pod_command(LAUNCH / "gke" / "train_gpu.yaml", in_pod, **given)
        assert words[0] == "alignuser"
        pods.append(start([PROGRAM, *words[1:]], environment))
    results = [finish(pod, 600) for pod in pods]
    assert [code for code, _ in results] == [0, 0], results
    assert_trained(values, "\n".join(output for _, output in results))
    assert list((tmp_path / "checkpoints").iterdir())


def test_the_pods_of_the_tpu_jobset_train(values, tmp_path):
    given = values | {"CHECKPOINTS": str(tmp_path / "checkpoints")}
    words = pod_command(LAUNCH / "gke" / "train_tpu.yaml", **given)
    pods = []
    for task in "01":
        known = {"JAX_PLATFORMS": "cpu", "SLURM_PROCID": task, "SLURM_LOCALID": task}
        pods.append(start([PROGRAM, *words[1:]], os.environ | TASKS_OF_SLURM | known))
    results = [finish(pod, 600) for pod in pods]
    assert [code for code, _ in results] == [0, 0], results
    assert_trained(values, "\n".join(output for _, output in results))


def test_the_hosts_of_a_tpu_vm_slice_train(values, tmp_path):
    stage = Stage(tmp_path)
    given = values | TASKS_OF_SLURM | {
        "JAX_PLATFORMS": "cpu", "HOSTS": "2", "CHECKPOINTS": str(tmp_path / "checkpoints"),
    }  # fmt: skip
    real = f'#!/usr/bin/env bash\nexec {shlex.quote(PROGRAM)} "$@"\n'
    process = tpu_vm(stage, states=["ABSENT", "ACTIVE"], program=real, **given)
    code, output = finish(process, 600)
    assert code == 0, output
    assert_trained(values, output)


def start(words, environment):
    return subprocess.Popen(
        words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
