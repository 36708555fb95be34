"""Write the metrics of a training: `metrics.jsonl`, one object a line, and TensorBoard.

Everything that depends on clocks and machines stands under `"timing"`. The rest of the lines of
a resumed run equals, bit for bit, that of a run that was never stopped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from etils import epath
from tensorboardX import SummaryWriter

from alignuser_jax.durable.whole import write_whole

METRICS_FILE = "metrics.jsonl"
"""The file's name in a training's folder."""


def read_metrics(out_dir: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Read the lines of a training's metrics; an unfinished last line is left out."""
    path = Path(out_dir) / METRICS_FILE
    if not path.is_file():
        return []
    lines = path.read_text().split("\n")
    return [json.loads(line) for line in lines[:-1]]


class RunLog:
    """Append to the metrics of a training, after dropping the lines after a step.

    Args:
        out_dir: The training's folder.
        step: Step of the checkpoint that is resumed from, -1 for a fresh run. Later lines
            describe steps that will be done again, and are dropped.
        write: False writes nothing (all processes but the first).
        mirror: A folder, of any file system, to which `copy` copies the metrics, and from
            which lost ones are restored.

    Attributes:
        lines: The lines that stayed.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> log = RunLog(folder, step=-1)
        >>> log.write({"step": 1, "loss": 0.5})
        >>> log.close()
        >>> read_metrics(folder)
        [{'step': 1, 'loss': 0.5}]
    """

    def __init__(
        self,
        out_dir: str | os.PathLike[str],
        step: int,
        *,
        write: bool = True,
        mirror: str | None = None,
    ):
        self._path = Path(out_dir) / METRICS_FILE
        self._mirror = epath.Path(mirror) / METRICS_FILE if mirror and write else None
        self._file: IO[str] | None = None
        self._board: SummaryWriter | None = None
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
        """Write one line and flush it.

        Args:
            record: The line; needs "step".
            board: Whether its numbers go to TensorBoard too.
        """
        if self._file is None or self._board is None:
            return
        self._file.write(_line(record))
        self._file.flush()
        if board:
            for name, value in _scalars(record):
                self._board.add_scalar(name, value, record["step"])

    def copy(self) -> None:
        """Copy the metrics to the mirror, if there is one."""
        if self._mirror is not None:
            self._mirror.parent.mkdir(parents=True, exist_ok=True)
            self._mirror.write_text(self._path.read_text())

    def close(self) -> None:
        """Close the files."""
        for file in (self._file, self._board):
            if file is not None:
                file.close()


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, allow_nan=True) + "\n"


def _scalars(record: Mapping[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    scalars = []
    for name, value in record.items():
        if isinstance(value, Mapping):
            scalars += _scalars(value, f"{prefix}{name}/")
        elif name != "step":
            scalars.append((prefix + name, float(value)))
    return scalars
