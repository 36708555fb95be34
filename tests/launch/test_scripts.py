"""The launch scripts: linted, run against stand-ins for the clusters' own commands, and their
command lines held against the program's flags; `test_launched.py` runs them for real. No
cluster is needed, or shown to work."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from alignuser_jax.training.plan import USABLE
from tests.launch.stand_ins import (
    LAUNCH,
    MANIFESTS,
    ROOT,
    SBATCH,
    VALUES,
    Stage,
    finish,
    manifest,
    pod_command,
    slurm,
    tpu_vm,
)

SHELL = sorted([*LAUNCH.rglob("*.sh"), *LAUNCH.rglob("*.sbatch")])


@pytest.mark.parametrize("script", SHELL, ids=lambda path: str(path.relative_to(ROOT)))
def test_shellcheck(script):
    folders = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    shellcheck = shutil.which("shellcheck", path=folders)
    assert shellcheck, "no shellcheck: install the test extra, pip install -e .[test]"
    done = subprocess.run([shellcheck, script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_nothing_of_one_machine_or_registry():
    for path in [*SHELL, *MANIFESTS, LAUNCH / "README.md"]:
        found = re.findall(
            r"\w+\.pkg\.dev|gcr\.io|docker\.io|/(?:home|work|tmp)/", path.read_text()
        )
        assert not found, f"{path}: {found}"


@pytest.fixture
def stage(tmp_path):
    return Stage(tmp_path)


# --- Slurm --------------------------------------------------------------------------------


def test_slurm_starts_one_process_for_each_task(stage):
    code, output = finish(slurm(stage, "--set=align.seed=1", codes=[0, 0]))
    assert code == 0, output
    assert stage.commands("fetch-weights-0") == [
        ["fetch-weights", "--config=configs/qwen3_8b.py"]
    ]
    for task in "01":
        assert stage.commands(f"train-{task}") == [[
            "train", "--config=configs/qwen3_8b.py", "--dataset=the data", "--run=runs/a",
            "--stage=align", "--mesh=data=1", "--distributed=auto", "--set=align.seed=1",
        ]]  # fmt: skip
        seen = stage.environment(f"train-{task}")
        assert (seen["SLURM_PROCID"], seen["SLURM_LOCALID"]) == (task, task)
        assert seen["XLA_PYTHON_CLIENT_MEM_FRACTION"] == str(USABLE)
        assert seen["JAX_COMPILATION_CACHE_DIR"] == f"{stage.folder}/.cache/jax"
        assert seen["HF_HOME"] == f"{stage.folder}/.cache/huggingface"
        assert (stage.folder / "runs/a/logs/align" / f"{task}.log").exists()
    options = stage.lines("srun.options")
    assert {"--cpus-per-task=3", "--gpu-bind=none", "--kill-on-bad-exit=0"} <= set(options)
    assert not stage.lines("scontrol")


def test_slurm_settings_reach_the_command(stage):
    process = slurm(
        stage, codes=[0, 0], CONFIG="a b.py", BACKBONE="/models/my model", STAGE="pretrain",
        MESH="fsdp=2", CHECKPOINTS="gs://bucket/x", HF_HOME="/shared/hf",
    )  # fmt: skip
    assert finish(process)[0] == 0
    experiment = ["--config=a b.py", "--set=backbone=/models/my model"]
    assert stage.commands("fetch-weights-0") == [["fetch-weights", *experiment]]
    (command,) = stage.commands("train-1")
    assert command[1:3] == experiment
    assert {"--stage=pretrain", "--mesh=fsdp=2", "--checkpoints=gs://bucket/x"} < set(command)
    assert stage.environment("train-1")["HF_HOME"] == "/shared/hf"


@pytest.mark.parametrize(
    ("codes", "code", "requeued"),
    [([85, 85], 85, True), ([0, 85], 85, True), ([2, 2], 2, False), ([85, 139], 139, False)],
)
def test_slurm_queues_again_after_85_and_passes_on_the_rest(stage, codes, code, requeued):
    assert finish(slurm(stage, codes=codes))[0] == code
    assert stage.lines("scontrol") == (["requeue 4711"] if requeued else [])


def test_slurm_lets_every_process_save_before_the_time_limit(stage):
    (stage.notes / "until-stopped").touch()
    process = slurm(stage)
    deadline = time.monotonic() + 30
    while not (stage.notes / "tasks").exists() or any(
        not (stage.notes / f"train-{task}.started").exists() for task in "01"
    ):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGUSR1)  # what --signal=B:USR1@300 sends
    assert finish(process)[0] == 85
    assert stage.lines("scancel") == ["--signal=TERM 4711"]
    for task in "01":
        assert stage.lines(f"train-{task}.signals") == ["TERM"]
    assert stage.lines("scontrol") == ["requeue 4711"]


@pytest.mark.parametrize("name", ["DATASET", "RUN"])
def test_slurm_says_what_is_not_set(stage, name):
    code, output = finish(slurm(stage, **{name: ""}))
    assert code != 0 and name in output
    assert not stage.commands("train-0")


def test_slurm_resources():
    """What the JAX detection and the restart rest on, besides what the runs above show."""
    options = re.findall(r"^#SBATCH (--\S+)", SBATCH.read_text(), re.MULTILINE)
    given = dict(option.partition("=")[::2] for option in options)
    assert given["--ntasks-per-node"] == given["--gpus-per-node"]  # a process for each GPU
    assert given["--signal"] == "B:USR1@300" and "--requeue" in given
    assert given["--open-mode"] == "append"
    assert not {"--gpus-per-task", "--gpu-bind"} & set(given)


# --- TPU VM -------------------------------------------------------------------------------


def test_tpu_vm_asks_for_the_slice_and_starts_again_after_85(stage):
    states = ["ABSENT", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]
    code, output = finish(tpu_vm(stage, "--steps=5", states=states, codes=[85, 0], SPOT="1"))
    assert code == 0, output
    expected = [
        "train", "--config=configs/qwen3_8b.py", "--dataset=the data", "--run=runs/a",
        "--stage=align", "--mesh=data=1", "--distributed=auto", "--checkpoints=gs://bucket/a",
        "--steps=5",
    ]  # fmt: skip
    assert stage.commands("train-0") == [expected, expected]
    assert (stage.notes / "host" / "fetched").exists()
    calls = stage.lines("gcloud")
    created = [call for call in calls if " create " in call]
    assert created == [
        "compute tpus queued-resources create slice --node-id=slice --zone=zone-a"
        " --accelerator-type=v6e-16 --runtime-version=v2 --spot"
    ]
    started = [call for call in calls if " ssh " in call]
    assert all("--worker=all --batch-size=all" in call for call in started)


def test_tpu_vm_replaces_a_preempted_slice(stage):
    states = ["ACTIVE", "SUSPENDING", "SUSPENDED", "ABSENT", "ACTIVE"]
    code, output = finish(tpu_vm(stage, states=states, codes=[255, 0]))
    assert code == 0, output
    calls = [call.split()[3] for call in stage.lines("gcloud") if " describe " not in call]
    assert calls == ["ssh", "delete", "create", "ssh"]


def test_tpu_vm_passes_on_a_failure(stage):
    assert finish(tpu_vm(stage, states=["ACTIVE"], codes=[2]))[0] == 2
    assert len(stage.commands("train-0")) == 1


# --- GKE ----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_jobset(path):
    text = path.read_text()
    documented = set(re.findall(r"^# ([A-Z]+) {2,}\S", text, re.MULTILINE))
    assert documented == set(re.findall(r"\$\{(\w+)\}", text))
    jobset = manifest(path)
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    spec = jobset["spec"]
    jobs = {job["name"]: job for job in spec["replicatedJobs"]}
    assert list(jobs) == ["weights", "train"]
    for job in jobs.values():
        body = job["template"]["spec"]
        assert isinstance(job["replicas"], int)
        assert isinstance(body["completions"], int)
        assert body["completions"] == body["parallelism"]
        pod = body["template"]["spec"]
        assert pod["restartPolicy"] == "Never"  # podFailurePolicy knows no other
        (container,) = pod["containers"]
        assert container["image"] == VALUES["IMAGE"] and container["command"][0] == "alignuser"
        volumes = {volume["name"] for volume in pod["volumes"]}
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes
        assert {"name": "HF_HOME", "value": "/data/huggingface"} in container["env"]
    assert jobs["train"]["dependsOn"] == [{"name": "weights", "status": "Complete"}]

    # 85 and disruptions fail the job as PodFailurePolicy, which restarts without counting;
    # other failures are BackoffLimitExceeded, whose default is a counted restart.
    assert spec["failurePolicy"]["maxRestarts"] == 3
    (rule,) = spec["failurePolicy"]["rules"]
    assert rule["action"] == "RestartJobSetAndIgnoreMaxRestarts"
    assert rule["onJobFailureReasons"] == ["PodFailurePolicy"]
    body = jobs["train"]["template"]["spec"]
    assert body["backoffLimit"] == 0 and body["completionMode"] == "Indexed"
    stopped, disrupted = body["podFailurePolicy"]["rules"]
    assert stopped["action"] == disrupted["action"] == "FailJob"
    exits = {"containerName": "train", "operator": "In", "values": [85]}
    assert stopped["onExitCodes"] == exits
    assert body["template"]["spec"]["containers"][0]["name"] == exits["containerName"]
    assert disrupted["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert body["template"]["spec"]["terminationGracePeriodSeconds"] >= 120


def test_gpu_jobset_names_its_coordinator():
    jobset = manifest(LAUNCH / "gke" / "train_gpu.yaml")
    coordinator = {"replicatedJob": "train", "jobIndex": 0, "podIndex": 0}
    assert jobset["spec"]["coordinator"] == coordinator
    body = jobset["spec"]["replicatedJobs"][1]["template"]["spec"]
    (container,) = body["template"]["spec"]["containers"]
    fields = {
        entry["name"]: entry["valueFrom"]["fieldRef"]["fieldPath"]
        for entry in container["env"]
        if "valueFrom" in entry
    }
    assert fields == {
        "COORDINATOR": "metadata.annotations['jobset.sigs.k8s.io/coordinator']",
        "PROCESS": "metadata.annotations['batch.kubernetes.io/job-completion-index']",
    }
    assert f"--processes={body['completions']}" in container["command"]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": "8"}
    fraction = {"name": "XLA_PYTHON_CLIENT_MEM_FRACTION", "value": str(USABLE)}
    assert fraction in container["env"]


def test_tpu_jobset_has_one_job_for_each_slice():
    jobset = manifest(LAUNCH / "gke" / "train_tpu.yaml")
    train = jobset["spec"]["replicatedJobs"][1]
    assert train["replicas"] == 2 and train["template"]["spec"]["completions"] == 4
    placement = "alpha.jobset.sigs.k8s.io/exclusive-topology"
    where = train["template"]["metadata"]["annotations"]
    assert where == {placement: "cloud.google.com/gke-nodepool"}
    pod = train["template"]["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "kind",
        "cloud.google.com/gke-tpu-topology": "4x4",
    }
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": "4"}


# --- the command lines --------------------------------------------------------------------


def parse(verb, commands):
    """Parses the command lines as the program of the verb does, in a fresh process."""
    program = (
        f"import json, sys\nfrom absl import flags\nimport launch.{verb}\n"
        "for command in json.loads(sys.argv[1]):\n"
        "    flags.FLAGS.unparse_flags()\n"
        "    rest = flags.FLAGS(command)\n"
        "    assert rest == command[:1], rest\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(commands)],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_program_has_the_flags_that_the_scripts_use(tmp_path):
    stages = {}
    for name in ("slurm", "tpu_vm"):
        (tmp_path / name).mkdir()
        stages[name] = Stage(tmp_path / name)
    assert finish(slurm(stages["slurm"], codes=[0, 0], CHECKPOINTS="gs://b/x"))[0] == 0
    assert finish(tpu_vm(stages["tpu_vm"], states=["ACTIVE"], codes=[0]))[0] == 0
    commands = [stage.commands("train-0")[0] for stage in stages.values()]
    commands += [pod_command(path)[1:] for path in MANIFESTS]
    assert len(commands) == 4 and {command[0] for command in commands} == {"train"}
    parse("train", commands)
    fetches = stages["slurm"].commands("fetch-weights-0")
    for path in MANIFESTS:
        weights = manifest(path)["spec"]["replicatedJobs"][0]["template"]["spec"]
        fetches.append(weights["template"]["spec"]["containers"][0]["command"][1:])
    parse("fetch_weights", fetches)
