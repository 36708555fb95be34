"""Report a training run while it runs: metrics, a bar or lines, and a stop if it goes wrong.

Everything is reported one step behind, so that the devices never wait for it: the next step is
already running when a step's numbers are read.
"""

from __future__ import annotations

import collections
import math
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from alignuser_jax.training.config import TrainConfig
from alignuser_jax.training.data import Batch
from alignuser_jax.training.metrics import RunLog
from alignuser_jax.training.step import StepOutput

BEHIND = 64
"""Number of earlier steps whose median loss a spike is measured against."""


class Dispatched(NamedTuple):
    """A step that was started, and what the host knows of it.

    Attributes:
        step: Its number, from 1.
        output: What the step computes; reading it waits for the devices.
        batch: This process's part of its batch.
        padded_tokens: Tokens of the global batch, padding included.
        waited: Seconds that the host waited for the batch.
        compilations: How often the step has been compiled so far.
    """

    step: int
    output: StepOutput
    batch: Batch
    padded_tokens: int
    waited: float
    compilations: int


@dataclass(frozen=True)
class WatchOptions:
    """How a run is reported.

    Attributes:
        out_dir: The run's folder; a batch that spoils the run is written to
            `out_dir/stopped`.
        first: Whether this is the first process, which alone prints.
        flops_per_token: From the mean number of tokens that a token sees to the model FLOPs of
            one token; with `peak_flops` it gives MFU, which is left out otherwise.
        peak_flops: FLOP/s of all devices.
        show: Returns a batch as text, for one that spoils a run.
    """

    out_dir: Path
    first: bool = True
    flops_per_token: Callable[[float], float] | None = None
    peak_flops: float | None = None
    show: Callable[[Batch], str] | None = None


class Watch:
    """The metrics of a run, and its lines on the terminal.

    Args:
        config: The run's settings.
        tasks: Names of the trained tasks, in the order of `StepOutput.nll`.
        log: Where the metrics are written; its earlier lines say which loss is usual.
        options: How the run is reported.

    Attributes:
        lines: All lines of the metrics so far.
    """

    def __init__(
        self, config: TrainConfig, tasks: Sequence[str], log: RunLog, options: WatchOptions
    ):
        self._config, self._tasks, self._log, self._options = config, tasks, log, options
        self._pending: Dispatched | None = None
        self._bar: Any = tqdm(disable=True)
        self._since = time.perf_counter()
        self._totals: dict[str, float] = collections.defaultdict(float)
        self._compiled = False  # the first step compiles, and is left out of the totals
        self.lines = list(log.lines)
        earlier = [line["loss"] for line in self.lines if "loss" in line]
        self._losses = collections.deque(earlier[-BEHIND:], maxlen=BEHIND)

    def progress(self, start: int) -> Iterator[int]:
        """Yield the steps after `start`, from 1; show a bar on a terminal, lines elsewhere."""
        quiet = not (self._options.first and sys.stderr.isatty())
        self._bar = tqdm(total=self._config.steps, initial=start, disable=quiet, unit="step")
        self.begin()
        with self._bar:
            yield from range(start + 1, self._config.steps + 1)
            self.flush()
        if (done := self._totals)["seconds"]:
            self.say(
                f"{done['tokens'] / done['seconds']:.0f} tokens/s, packing efficiency"
                f" {done['tokens'] / done['padded']:.3f}, data wait"
                f" {done['waited'] / done['seconds']:.2%} of {done['seconds']:.0f} s in"
                f" {done['steps']:.0f} steps (the first, which compiles, left out)"
            )

    def begin(self) -> None:
        """Start the clock of the next step: the time before was not spent on training."""
        self._since = time.perf_counter()

    def dispatched(self, step: Dispatched) -> None:
        """Report the step before, and keep this one for later."""
        self.flush()
        self._pending = step

    def flush(self) -> None:
        """Wait for the step that is under way, and report it.

        Raises:
            FloatingPointError: If its loss is not finite or jumps.
        """
        if self._pending is None:
            return
        done, self._pending = self._pending, None
        output = jax.device_get(done.output)
        seconds = time.perf_counter() - self._since
        self.begin()
        record = self._record(done, output, seconds)
        step = done.step
        reported = step % self._config.log_every == 0 or step in (1, self._config.steps)
        self.record(record, board=reported)
        self._check(record, done.batch)
        self._bar.update()
        text = " ".join(f"{task} {loss:.4f}" for task, loss in record["task_loss"].items())
        self._bar.set_postfix_str(text, refresh=False)
        if reported and self._bar.disable:
            speed = record["timing"]["tokens_per_second"]
            self.say(f"step {step}/{self._config.steps}: {text}, {speed:.0f} tokens/s")

    def _record(self, done: Dispatched, output: StepOutput, seconds: float) -> dict[str, Any]:
        losses = {
            task: float(nll / weight)
            for task, nll, weight in zip(self._tasks, output.nll, output.weight, strict=True)
            # The loss is not computed where lambda is 0.
            if weight > 0 and self._config.task_weights.get(task, 1.0) > 0
        }
        tokens = int(output.tokens)
        timing = {
            "step_seconds": seconds,
            "data_wait_seconds": done.waited,
            "tokens_per_second": tokens / seconds,
            "padded_tokens_per_second": done.padded_tokens / seconds,
            "compilations": done.compilations,
            **_memory(),
        }
        flops_per_token, peak = self._options.flops_per_token, self._options.peak_flops
        if flops_per_token and peak:
            flops = tokens * flops_per_token(float(output.attended))
            timing["mfu"] = flops / seconds / peak
        if self._compiled:
            self._totals["seconds"] += seconds
            self._totals["tokens"] += tokens
            self._totals["padded"] += done.padded_tokens
            self._totals["waited"] += done.waited
            self._totals["steps"] += 1
        self._compiled = True
        return {
            "step": done.step,
            "loss": float(output.loss),
            "task_loss": losses,
            "perplexity": {task: _exp(loss) for task, loss in losses.items()},
            "task_weight": dict(zip(self._tasks, map(float, output.weight), strict=True)),
            "grad_norm": float(output.grad_norm),
            "learning_rate": float(output.learning_rate),
            "tokens": tokens,
            "padded_tokens": done.padded_tokens,
            "packing_efficiency": tokens / done.padded_tokens,
            "timing": timing,
        }

    def _check(self, record: Mapping[str, Any], batch: Batch) -> None:
        """Raise `FloatingPointError` for a loss that is not finite, or far above the median."""
        loss, step = record["loss"], record["step"]
        scale = sum(self._config.task_weights.get(task, 1.0) for task in self._tasks)
        usual = statistics.median(self._losses) if len(self._losses) == BEHIND else math.inf
        limit = usual + self._config.spike_nats * scale
        if math.isfinite(loss) and (loss <= limit or not self._config.spike_nats):
            self._losses.append(loss)
            return
        where = self._aside(step, batch)
        was = f"the loss of step {step} is {loss:.4g}"
        if math.isfinite(loss):
            was += f", {loss - usual:.3g} above the median of the {BEHIND} steps before"
        raise FloatingPointError(
            f"{was} (gradient norm {record['grad_norm']:.3g}); its batch is in {where}. The"
            " last checkpoint is from before it: lower the learning rate, look at the batch,"
            " or (for a spike) set spike_nats=0 to go on regardless"
        )

    def _aside(self, step: int, batch: Batch) -> str:
        """Write the batch of this process beside the run, as arrays and as text."""
        folder = self._options.out_dir / "stopped"
        folder.mkdir(parents=True, exist_ok=True)
        name = f"step-{step:07d}-process-{jax.process_index()}"
        np.savez_compressed(folder / f"{name}.npz", **batch._asdict())
        if self._options.show:
            (folder / f"{name}.txt").write_text(self._options.show(batch))
        return str(folder / f"{name}.npz")

    def record(self, record: Mapping[str, Any], board: bool) -> None:
        """Add a line to the metrics; with `board` to TensorBoard too."""
        self._log.write(record, board)
        self.lines.append(dict(record))
        if "held_out" in record:
            losses = {task: round(v["loss"], 4) for task, v in record["held_out"].items()}
            self.say(f"step {record['step']}: held-out losses {losses}")

    def say(self, line: str) -> None:
        """Print a line to stderr, on the first process only."""
        if self._options.first:
            tqdm.write(line, file=sys.stderr)


def _exp(loss: float) -> float:
    return math.exp(min(loss, 700.0))  # the largest that a float holds


def _memory() -> dict[str, float]:
    """Return peaks so far, in bytes: of the host, and of the fullest local device if known."""
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [s["peak_bytes_in_use"] for s in stats if "peak_bytes_in_use" in s]
    return {"host_peak_bytes": host} | ({"device_peak_bytes": max(peaks)} if peaks else {})
