"""Open a run folder, which belongs to one experiment and one data set."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alignuser_jax.datasets import Dataset
from alignuser_jax.runs.experiment import Experiment, resolved

Say = Callable[[str], None]


class Stopwatch:
    """Seconds per named stage, in order."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            passed = time.perf_counter() - started
            self.seconds[name] = self.seconds.get(name, 0.0) + passed


def open_run(experiment: Experiment, dataset: Dataset, run: str | Path) -> Path:
    """The run folder, holding this experiment and no other. Raises `ValueError` naming what
    differs where the folder belongs to other settings or other data."""
    run = Path(run)
    path = run / "experiment.json"
    now = {"dataset": dataset.name, "dataset_hash": dataset.hash, **resolved(experiment)}
    del now["engine"]  # a simulation's own manifest holds its geometry; training has none
    now = json.loads(json.dumps(now))
    if path.is_file():
        _refuse_other(json.loads(path.read_text()), now, run, "--run")
        return run
    run.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(now, indent=1, sort_keys=True) + "\n")
    os.replace(partial, path)
    return run


def _refuse_other(there: Any, now: Any, folder: Path, flag: str) -> None:
    before, after = _flat(there), _flat(now)
    differing = [k for k in sorted({*before, *after}) if before.get(k) != after.get(k)]
    if differing:
        shown = [f"{k}: {before.get(k)} then, {after.get(k)} now" for k in differing[:8]]
        raise ValueError(
            f"{folder} was made with other settings:\n  "
            + "\n  ".join(shown)
            + f"\ngive the same ones to go on, or another {flag} folder"
        )


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    parts = (_flat(v, f"{prefix}.{k}" if prefix else k) for k, v in value.items())
    return {k: v for part in parts for k, v in part.items()}
