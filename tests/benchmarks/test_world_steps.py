"""The program that times the worlds runs, and its rows have the form that is quoted."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks import sides

ROOT = Path(__file__).parents[2]


def rows_of(path, *flags):
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.world_steps", f"--json={path}", "--quick",
         *flags],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "| case" in done.stdout
    rows = json.loads(path.read_text())
    assert all(list(row) == ["case", "metric", *sides.COLUMNS] for row in rows)
    return {(row["case"], row["metric"]): row for row in rows}


def test_steps_of_the_site_and_its_views(tmp_path):
    rows = rows_of(tmp_path / "r.json", "--worlds=site")
    cases = {case for case, _ in rows}
    assert {"site", "site, with search", "UserEnv", "RecSysEnv"} <= cases
    assert all(row["ours"] > 100 and row["peer"] is None for row in rows.values())


@pytest.mark.slow
def test_the_world_is_no_bottleneck_of_a_simulation(tmp_path):
    rows = rows_of(tmp_path / "r.json", "--worlds=site", "--simulate")
    case = "simulation, tiny model"
    assert rows[case, "pages/s"]["ours"] > 0
    assert 0 < rows[case, "share of the time in the world"]["ours"] < 0.05
