"""Open a run folder, which belongs to one experiment and one data set."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alignuser_jax.datasets import Dataset
from alignuser_jax.durable.whole import refuse_other, write_whole
from alignuser_jax.runs.experiment import Experiment, resolved


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
        before = json.loads(path.read_text())
        refuse_other(before, now, run, option="--run folder", error=ValueError)
        return run
    run.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(now, indent=1, sort_keys=True) + "\n")
    return run
