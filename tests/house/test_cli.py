"""The `alignuser` command: one verb per program, one line each, errors that help."""

import ast
import inspect
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from launch.cli import main, verbs

ROOT = Path(__file__).parents[2]
FOLDERS = ("data_prep", "launch", "inference")
PROGRAMS = sorted(path for folder in FOLDERS for path in (ROOT / folder).glob("[a-z]*.py"))


def test_every_program_is_a_verb_with_a_summary(capsys):
    assert main(["alignuser", "--help"]) == 0
    shown = capsys.readouterr().out
    for folder in ("data_prep", "launch", "inference"):
        for path in (ROOT / folder).glob("[a-z]*.py"):
            if path.stem != "cli":
                assert f"  {path.stem.replace('_', '-')} " in shown
    assert all(summary.endswith(".") for _, summary in verbs().values())


def test_an_unknown_verb_gets_the_nearest(capsys):
    assert main(["alignuser", "trian"]) == 2
    assert "did you mean 'train'" in capsys.readouterr().err


@pytest.mark.parametrize("verb", sorted(verbs()))
def test_help_lists_the_flags(verb):
    done = subprocess.run(
        [sys.executable, "-m", "launch.cli", verb, "--help"],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode in (0, 1)  # absl's --help exits 1
    assert "--" in done.stdout and verbs()[verb][1].rstrip(".")[:40] in done.stdout


def test_bad_input_is_one_message_and_exit_code_2(tmp_path):
    flags = ["--config=configs/tiny.py", f"--dataset={tmp_path}", f"--run={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "-m", "launch.train", *flags], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 2
    assert "no dataset in" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--dataset and --run must be given"),
        (["--dataset=d", "--run=r", "--profile=9:3"], "expected FIRST:LAST"),
        (["--dataset=d", "--run=r", "--steps=3"], "give --out"),
        (["surprise"], "unexpected arguments"),
    ],
)
def test_wrong_flags_have_exit_code_2_too(flags, message):
    command = [sys.executable, "-m", "launch.train", "--config=configs/tiny.py", *flags]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and message in done.stdout + done.stderr


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_what_a_program_uses_of_a_module_is_there(path):
    """`pipeline.name` in a line that only a long run reaches."""
    tree = ast.parse(path.read_text())
    modules = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("alignuser_jax"):
            for alias in node.names:
                found = getattr(import_module(node.module), alias.name, None)
                if inspect.ismodule(found):
                    modules[alias.asname or alias.name] = found
    missing = [
        f"{node.value.id}.{node.attr}, line {node.lineno}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
        if node.value.id in modules and not hasattr(modules[node.value.id], node.attr)
    ]
    assert not missing
