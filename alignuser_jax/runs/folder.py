"""Open a run folder, which belongs to one experiment and one data set."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alignuser_jax.datasets import Dataset
from alignuser_jax.durable.whole import SOFTWARE, WRITTEN_BY, refuse_other, write_whole
from alignuser_jax.language.prompts import PROMPT_LAYOUT_VERSION
from alignuser_jax.runs.experiment import Experiment, resolved, with_defaults

LAYOUT = "prompt_layout"
"""The key of the version of wording and layout with which a run is trained and asked."""
UNRECORDED_LAYOUT = 3
"""The version of folders that do not name one."""


class Stopwatch:
    """Seconds per named stage, in the order in which the stages began.

    Attributes:
        seconds: Stage name to the seconds spent in it, summed over its blocks.

    Example:
        >>> watch = Stopwatch()
        >>> with watch.stage("training"):
        ...     pass
        >>> list(watch.seconds)
        ['training']
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time of the block to the stage `name`."""
        started = time.perf_counter()
        try:
            yield
        finally:
            passed = time.perf_counter() - started
            self.seconds[name] = self.seconds.get(name, 0.0) + passed


def open_run(experiment: Experiment, dataset: Dataset, run: str | Path) -> Path:
    """Return the run folder, made if it is missing, that holds this experiment and no other.

    The folder's `experiment.json` records every setting and the data set's hash. The engine's
    geometry is left out: only a simulation depends on it, and its own manifest records it. A
    setting that the version which wrote the folder did not have counts as its default. Shards
    and adapters of another layout of prompts are refused: an agent is asked as it was trained.

    Raises:
        ValueError: If the folder belongs to other settings or other data; names what differs
            and the version that wrote it.
    """
    run = Path(run)
    path = run / "experiment.json"
    settings = {"dataset": dataset.name, "dataset_hash": dataset.hash, **resolved(experiment)}
    del settings["engine"]
    settings[LAYOUT] = PROMPT_LAYOUT_VERSION
    settings[WRITTEN_BY] = SOFTWARE
    settings = json.loads(json.dumps(settings))
    if path.is_file():
        recorded = with_defaults(experiment, json.loads(path.read_text()))
        del recorded["engine"]
        recorded.setdefault(LAYOUT, UNRECORDED_LAYOUT)
        refuse_other(recorded, settings, run, option="--run folder", error=ValueError)
        return run
    run.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(settings, indent=1, sort_keys=True) + "\n")
    return run
