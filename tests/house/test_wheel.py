"""The wheel, built from the checkout and installed elsewhere, gives a working `alignuser`.

The programs stand beside the package and once were not in the wheel at all: the command then
said "No module named 'launch'".
"""

import os
import shutil
import site
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM_FOLDERS = ("launch", "data_prep", "inference", "configs")
SOURCES = (
    *("alignuser_jax", *PROGRAM_FOLDERS),
    *("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"),
)
VERBS = sorted(
    path.stem.replace("_", "-")
    for folder in ("data_prep", "launch", "inference")
    for path in (ROOT / folder).glob("[a-z]*.py")
    if path.stem != "cli"
)
CSV = "who,what,stars,when\n" + "".join(
    f"u{user},i{(user * 7 + n) % 20},{1 + (user + n) % 5},{1_600_000_000 + n}\n"
    for user in range(12)
    for n in range(10)
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of a copy of the sources, so that the checkout gets no build folder."""
    folder = tmp_path_factory.mktemp("wheel")
    (folder / "source").mkdir()
    for name in SOURCES:
        path, target = ROOT / name, folder / "source" / name
        if path.is_dir():
            shutil.copytree(path, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(path, target)
    pip(
        *("wheel", folder / "source", "--wheel-dir", folder),
        *("--no-deps", "--no-build-isolation", "--no-index"),
    )
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """A virtual environment with the wheel and this environment's libraries, but no checkout.

    A line of a .pth file is put on the path as it is: the .pth files in that folder, such as
    an editable install's, are not read.
    """
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    libraries = [path for path in sys.path if path in site.getsitepackages()]
    (packages / "libraries.pth").write_text("\n".join(libraries) + "\n")
    pip("--python", folder / "bin" / "python", "install", "--no-deps", "--no-index", wheel)
    return folder


def pip(*arguments) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*command, *map(str, arguments)], check=True)


def run(environment, *arguments, cwd):
    """Run a command of the environment as a stranger would: no checkout on any path."""
    variables = {name: v for name, v in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [environment / "bin" / arguments[0], *arguments[1:]],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=variables,
    )


def test_the_wheel_adds_one_name_to_an_environment(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"alignuser_jax"}
    assert "alignuser_jax/py.typed" in names
    shipped = {name for name in names if "/_programs/" in name}
    expected = {
        f"alignuser_jax/_programs/{folder}/{path.name}"
        for folder in PROGRAM_FOLDERS
        for path in (ROOT / folder).glob("*.py")
    }
    assert shipped == expected


def test_the_wheel_holds_every_module(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = (ROOT / "alignuser_jax").rglob("*.py")
    assert {str(path.relative_to(ROOT)) for path in modules} <= names


def test_the_installed_package_is_not_the_checkout(environment, tmp_path):
    code = "import alignuser_jax; print(alignuser_jax.__file__)"
    done = run(environment, "python", "-c", code, cwd=tmp_path)
    assert done.stdout.startswith(str(environment)), done.stderr


def test_a_verb_works_from_another_folder(environment, tmp_path):
    done = run(environment, "alignuser", "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [verb for verb in VERBS if f"  {verb} " not in done.stdout] == []
    (tmp_path / "log.csv").write_text(CSV)
    done = run(
        *(environment, "alignuser", "import-logs", "--format=tabular", "--input=log.csv"),
        *("--output=data", "--columns=user=who,item=what,rating=stars,timestamp=when"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "data" / "interactions.parquet").is_file()


@pytest.mark.parametrize("config", ["tiny", "configs/small_uniform.py"])
def test_a_config_that_comes_with_the_software_is_found_by_name(environment, config, tmp_path):
    """`small_uniform` imports `configs.small`, which the environment does not have."""
    code = (
        "from alignuser_jax.runs.experiment import load_experiment\n"
        f"print(load_experiment({config!r}).name)"
    )
    done = run(environment, "python", "-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(Path(config).stem.split("_")[0])


def test_a_config_of_ones_own_starts_from_one_that_comes_with_it(environment, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from dataclasses import replace\n"
        "from configs.tiny import experiment as tiny\n"
        "experiment = replace(tiny, name='mine')\n"
    )
    code = (
        "from alignuser_jax.runs.experiment import load_experiment\n"
        "print(load_experiment('mine.py').name)"
    )
    done = run(environment, "python", "-c", code, cwd=tmp_path)
    assert done.stdout == "mine\n", done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_its_help(environment, verb, tmp_path):
    done = run(environment, "alignuser", verb, "--help", cwd=tmp_path)
    assert done.returncode in (0, 1), done.stderr  # absl's --help exits with 1
    assert "--" in done.stdout and "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_whole_way_from_another_folder(environment, tmp_path):
    """`alignuser demo`, with as little training as there can be."""
    changes = ("pretrain.steps=2", "align.steps=2", "agents=4", "pretrain.eval_batches=1")
    done = run(
        *(environment, "alignuser", "demo", "--run=demo"),
        *(f"--set={change}" for change in changes),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "A/B test, 4 agents" in done.stdout
    assert (tmp_path / "demo" / "ab_test.png").is_file()
