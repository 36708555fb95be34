"""The record of a run: `metrics.jsonl`, one object a line, and TensorBoard as a view of it.

Everything that clocks and machines decide stands under `"timing"`; the rest of a resumed run's
lines is equal, bit for bit, to that of a run that was never stopped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from etils import epath
from tensorboardX import SummaryWriter

from alignuser_jax.durable.whole import write_whole

METRICS = "metrics.jsonl"


def read_metrics(out_dir: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The whole lines of a run's record; a torn last line is left out."""
    path = Path(out_dir) / METRICS
    if not path.is_file():
        return []
    lines = path.read_text().split("\n")
    return [json.loads(line) for line in lines[:-1]]


class RunLog:
    """Appends to the record of `out_dir`, after dropping what came after `step`.

    `step` is that of the checkpoint resumed from, -1 for a fresh run: later lines describe
    steps that will be made again. `lines` are those that stayed. With `write=False` nothing is
    written (all processes but the first). `mirror`: a folder, of any file system, that `copy`
    copies the record to, and from which a lost one comes back.
    """

    def __init__(
        self,
        out_dir: str | os.PathLike[str],
        step: int,
        *,
        write: bool = True,
        mirror: str | None = None,
    ):
        self._path = Path(out_dir) / METRICS
        self._mirror = epath.Path(mirror) / METRICS if mirror and write else None
        self._file = self._board = None
        if self._mirror is not None and not self._path.exists() and self._mirror.exists():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self._path, self._mirror.read_text())
        self.lines = [line for line in read_metrics(out_dir) if line["step"] <= step]
        if write:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self._path, "".join(_line(record) for record in self.lines))
            self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115
            board = str(self._path.parent / "tensorboard")
            self._board = SummaryWriter(board, purge_step=step + 1)

    def write(self, record: Mapping[str, Any], board: bool = True) -> None:
        """One line (`record["step"]` is required), flushed; numbers go to TensorBoard too."""
        if self._file is None:
            return
        self._file.write(_line(record))
        self._file.flush()
        if board:
            for name, value in _scalars(record):
                self._board.add_scalar(name, value, record["step"])

    def copy(self) -> None:
        if self._mirror is not None:
            self._mirror.parent.mkdir(parents=True, exist_ok=True)
            self._mirror.write_text(self._path.read_text())

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._board.close()


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, allow_nan=True) + "\n"


def _scalars(record: Mapping[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    found = []
    for name, value in record.items():
        if isinstance(value, Mapping):
            found += _scalars(value, f"{prefix}{name}/")
        elif name != "step":
            found.append((prefix + name, float(value)))
    return found
