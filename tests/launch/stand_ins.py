"""Stand-ins for the clusters' own commands, and the launch scripts started among them."""

import os
import re
import signal
import subprocess
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
SBATCH, TPU_VM = LAUNCH / "slurm" / "train.sbatch", LAUNCH / "tpu_vm" / "train.sh"
MANIFESTS = sorted((LAUNCH / "gke").glob("*.yaml"))

ALIGNUSER = """#!/usr/bin/env bash
task=$1-${SLURM_PROCID:-0}
printf '%s\\0' "$@" >> "$NOTES/$task.argv"
printf '\\n' >> "$NOTES/$task.argv"
env -0 > "$NOTES/$task.env"
[[ $1 == train ]] || exit 0
if [[ -e $NOTES/until-stopped ]]; then
  trap 'echo TERM >> "$NOTES/$task.signals"; exit 85' TERM
  touch "$NOTES/$task.started"
  for ((i = 0; i < 1000; i++)); do sleep 0.05; done
fi
code=$(head -n 1 "$NOTES/codes"); sed -i 1d "$NOTES/codes"
exit "$code"
"""

SRUN = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do
  echo "$1" >> "$NOTES/srun.options"
  [[ $1 != --output=* ]] || output=${1#*=}
  shift
done
export SLURM_STEP_NODELIST=127.0.0.1 SLURM_STEP_NUM_NODES=1
worst=0 tasks=()
for ((i = 0; i < SLURM_NTASKS; i++)); do
  SLURM_PROCID=$i SLURM_LOCALID=$i "$@" > "${output//%t/$i}" 2>&1 &
  tasks+=($!)
  [[ -e $NOTES/until-stopped ]] || wait $! || worst=$(($? > worst ? $? : worst))
done
trap 'kill -KILL "${tasks[@]}"' TERM  # as srun does
echo "${tasks[@]}" > "$NOTES/tasks"
if [[ -e $NOTES/until-stopped ]]; then
  for task in "${tasks[@]}"; do wait "$task" || worst=$(($? > worst ? $? : worst)); done
fi
exit "$worst"
"""

SCONTROL = """#!/usr/bin/env bash
echo "$@" >> "$NOTES/scontrol"
"""

SCANCEL = """#!/usr/bin/env bash
echo "$@" >> "$NOTES/scancel"
kill -TERM $(cat "$NOTES/tasks")
"""

GCLOUD = """#!/usr/bin/env bash
echo "$*" >> "$NOTES/gcloud"
case "$*" in
  *' describe '*)
    state=$(head -n 1 "$NOTES/states")
    (($(wc -l < "$NOTES/states") == 1)) || sed -i 1d "$NOTES/states"
    [[ $state != ABSENT ]] || exit 1
    echo "$state"
    ;;
  *' ssh '*)
    for word in "$@"; do
      case $word in --command=*) command=${word#*=} ;; esac
    done
    cd "$NOTES/host" && worst=0 hosts=()
    for ((i = 0; i < ${HOSTS:-1}; i++)); do
      SLURM_PROCID=$i SLURM_LOCALID=$i bash -c "$command" &
      hosts+=($!)
    done
    for host in "${hosts[@]}"; do wait "$host" || worst=$(($? > worst ? $? : worst)); done
    exit "$worst"
    ;;
esac
"""


class Stage:
    """A folder of stand-ins on PATH that note in `notes` how they were called.

    `alignuser train` ends with the next of `codes` (tasks of Slurm then run in turn), or, where
    `notes/until-stopped` is, waits for a TERM (all at once).
    """

    def __init__(self, folder):
        self.folder, self.notes = folder, folder / "notes"
        self.notes.mkdir()
        self.alignuser = self.put("alignuser", ALIGNUSER)
        for name, text in (
            ("srun", SRUN), ("scontrol", SCONTROL), ("scancel", SCANCEL), ("gcloud", GCLOUD),
        ):  # fmt: skip
            self.put(name, text)

    def put(self, name, text, folder=None):
        path = (folder or self.folder / "bin") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
        return path

    def start(self, script, *words, codes=(), **environment):
        (self.notes / "codes").write_text("".join(f"{code}\n" for code in codes))
        path = f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
        given = {
            "PATH": path,
            "HOME": str(self.folder),
            "NOTES": str(self.notes),
            **environment,
        }
        return subprocess.Popen(
            ["bash", script, *words], env=given, cwd=self.folder,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            start_new_session=True,
        )  # fmt: skip

    def lines(self, name):
        path = self.notes / name
        return path.read_text().splitlines() if path.exists() else []

    def commands(self, name):
        """Each call's words, the verb first."""
        return [line.split("\0")[:-1] for line in self.lines(f"{name}.argv")]

    def environment(self, name):
        text = (self.notes / f"{name}.env").read_text()
        return dict(entry.split("=", 1) for entry in text.split("\0")[:-1])


def slurm(stage, *words, **changes):
    """The sbatch script as Slurm starts it: two tasks on one node."""
    given = {
        "SLURM_JOB_ID": "4711", "SLURM_NTASKS": "2", "SLURM_JOB_NUM_NODES": "1",
        "SLURM_CPUS_PER_TASK": "3", "ALIGNUSER": str(stage.alignuser),
        "DATASET": "the data", "RUN": "runs/a",
    }  # fmt: skip
    return stage.start(SBATCH, *words, **(given | changes))


def tpu_vm(stage, *words, states, program=ALIGNUSER, **changes):
    (stage.notes / "states").write_text("".join(f"{state}\n" for state in states))
    stage.put("alignuser", program, stage.notes / "host" / "check out" / ".venv" / "bin")
    given = {
        "NAME": "slice", "ZONE": "zone-a", "TYPE": "v6e-16", "RUNTIME": "v2", "PAUSE": "0",
        "CHECKOUT": "check out", "DATASET": "the data", "RUN": "runs/a",
        "CHECKPOINTS": "gs://bucket/a", "SETUP": "touch fetched",
    }  # fmt: skip
    return stage.start(TPU_VM, *words, **(given | changes))


def finish(process, timeout=60):
    """(code, output) of a process that is given so many seconds."""
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return process.returncode, output


VALUES = {
    "NAME": "qwen", "IMAGE": "registry.example/alignuser:1", "CLAIM": "disk",
    "ACCELERATOR": "kind", "TOPOLOGY": "4x4", "HOSTS": "4", "CHIPS": "4", "SLICES": "2",
    "NODES": "2", "GPUS": "8", "CONFIG": "configs/qwen3_8b.py", "DATASET": "/data/ml-1m",
    "RUN": "/data/qwen", "STAGE": "align", "MESH": "data=2", "CHECKPOINTS": "gs://bucket/a",
}  # fmt: skip
IN_POD = {"COORDINATOR": "qwen-train-0-0.qwen", "PROCESS": "1"}


def manifest(path, **changes):
    """As `envsubst` leaves it, with every documented name set."""
    values = VALUES | changes
    return yaml.safe_load(re.sub(r"\$\{(\w+)\}", lambda m: values[m[1]], path.read_text()))


def pod_command(path, in_pod=IN_POD, **changes):
    """The words that a pod of the job runs."""
    (train,) = (
        j for j in manifest(path, **changes)["spec"]["replicatedJobs"] if j["name"] == "train"
    )
    (container,) = train["template"]["spec"]["template"]["spec"]["containers"]
    words = container["command"]
    defined = {entry["name"] for entry in container["env"]}
    for name in re.findall(r"\$\((\w+)\)", " ".join(words)):
        assert name in defined
    return [re.sub(r"\$\((\w+)\)", lambda m: in_pod[m[1]], word) for word in words]
