"""The programs as a user starts them."""

import subprocess
import sys
from pathlib import Path

import pytest

from alignuser_jax.shards import read_examples, read_manifest
from tests.alignment.alignment_toy import toy

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    toy().save(folder / "data")
    return folder


def alignuser(folder, verb, *flags):
    command = [sys.executable, "-m", "launch.cli", verb, "--config=configs/tiny.py"]
    command += [f"--dataset={folder}/data", f"--run={folder}/run", "--set=agents=6", *flags]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_build_shards(folder):
    out = folder / "shards"
    flags = ["--tasks=reflection,visit", "--k=2", "--limits=reflection=20,visit=5"]
    stage = ["--stage=align", "--exposure=uniform=1", "--shuffle_reflections"]
    tokenizer = ["--set=vocabulary=1400"]
    done = alignuser(folder, "build-shards", *flags, *stage, *tokenizer, f"--out={out}")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "reflections: template, shuffled" in done.stdout
    assert "visits: DEFAULT" in done.stdout and "reflection: 20 examples" in done.stdout
    manifest = read_manifest(out)
    assert manifest["labels"]["exposure"]["uniform"] == 1.0
    assert manifest["users"] + read_manifest(out / "validation")["users"] == 24 - 6
    assert {e.task for e in read_examples(out)} == {"reflection", "visit"}
    again = alignuser(folder, "build-shards", *flags, *stage, *tokenizer, f"--out={out}")
    assert (again.returncode, again.stdout.count("20 examples")) == (0, 1), again.stderr
    flags[1] = "--k=3"
    other = alignuser(folder, "build-shards", *flags, *stage, *tokenizer, f"--out={out}")
    assert other.returncode == 2 and "config.k was 2, now 3" in other.stderr
    assert "another --out folder" in other.stderr and "Traceback" not in other.stderr


def test_what_is_wrong_is_said(folder):
    done = alignuser(folder, "build-shards", "--k=2")
    assert done.returncode != 0 and "give --out" in done.stdout + done.stderr
    done = alignuser(folder, "build-shards", "--exposure=uniform", f"--out={folder}/x")
    assert done.returncode != 0 and "name=number" in done.stdout + done.stderr
    other = ["--set=vocabulary=1400", "--tasks=visits", f"--out={folder}/y"]
    done = alignuser(folder, "build-shards", *other)
    assert done.returncode == 2 and "tasks has ['visits']" in done.stderr
    zero = alignuser(folder, "generate-counterfactuals", "--limit=0", f"--out={folder}/z")
    assert zero.returncode == 2 and "--limit=0: expected 1" in zero.stdout + zero.stderr
    assert "Traceback" not in done.stderr
