"""What a run tells while it runs: its record, a bar or lines, and a stop where it goes wrong.

Everything is told one step behind: the next step is under way when a record is read.
"""

from __future__ import annotations

import collections
import math
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
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
"""Steps whose median loss a spike is measured against."""


class Dispatched(NamedTuple):
    """A step under way and what the host knows of it."""

    step: int
    output: StepOutput
    batch: Batch
    padded_tokens: int
    waited: float
    compilations: int


class Watch:
    """The record of a run and its lines on the terminal (of the first process).

    `flops_per_token(mean attended length)` and `peak_flops` (per second, all devices) give
    MFU; without them it is left out. `show(batch)` is a batch in words, for one that spoils a
    run.
    """

    def __init__(
        self,
        config: TrainConfig,
        tasks: list[str],
        log: RunLog,
        out_dir: Path,
        *,
        first: bool = True,
        flops_per_token: Callable[[float], float] | None = None,
        peak_flops: float | None = None,
        show: Callable[[Batch], str] | None = None,
    ):
        self._config, self._tasks, self._log, self._out = config, tasks, log, out_dir
        self._first, self._show = first, show
        self._flops_per_token, self._peak = flops_per_token, peak_flops
        self._pending: Dispatched | None = None
        self._bar: Any = tqdm(disable=True)
        self._since = time.perf_counter()
        self._totals: collections.Counter[str] = collections.Counter()
        self._compiled = False  # the first step does, and is left out of the totals
        self.lines = list(log.lines)
        earlier = [line["loss"] for line in self.lines if "loss" in line]
        self._losses = collections.deque(earlier[-BEHIND:], maxlen=BEHIND)

    def progress(self, start: int) -> Iterator[int]:
        """Steps after `start`, counted from 1; a bar on a terminal, lines elsewhere."""
        quiet = not (self._first and sys.stderr.isatty())
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
                f" {done['steps']} steps (the first, which compiles, left out)"
            )

    def begin(self) -> None:
        """The next step's time counts from now: what came before it was no training."""
        self._since = time.perf_counter()

    def dispatched(self, *step: Any) -> None:
        """Take a `Dispatched`'s fields, and tell of the step before."""
        self.flush()
        self._pending = Dispatched(*step)

    def flush(self) -> None:
        """Tell of the step under way; waits for it.

        Raises `FloatingPointError` where its loss is not finite or a spike."""
        if self._pending is None:
            return
        done, self._pending = self._pending, None
        output = jax.device_get(done.output)
        seconds = time.perf_counter() - self._since
        self.begin()
        record = self._record(done, output, seconds)
        step = done.step
        shown = step % self._config.log_every == 0 or step in (1, self._config.steps)
        self.record(record, board=shown)
        self._check(record, done.batch)
        self._bar.update()
        text = " ".join(f"{task} {loss:.4f}" for task, loss in record["task_loss"].items())
        self._bar.set_postfix_str(text, refresh=False)
        if shown and self._bar.disable:
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
        if self._flops_per_token and self._peak:
            flops = tokens * self._flops_per_token(float(output.attended))
            timing["mfu"] = flops / seconds / self._peak
        if self._compiled:
            self._totals.update(
                seconds=seconds,
                tokens=tokens,
                padded=done.padded_tokens,
                waited=done.waited,
                steps=1,
            )
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
        """Stop at a loss that is not finite, or far above what it was."""
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
        """Writes the batch of this process beside the run, as arrays and as text."""
        folder = self._out / "stopped"
        folder.mkdir(parents=True, exist_ok=True)
        name = f"step-{step:07d}-process-{jax.process_index()}"
        np.savez_compressed(folder / f"{name}.npz", **batch._asdict())
        if self._show:
            (folder / f"{name}.txt").write_text(self._show(batch))
        return str(folder / f"{name}.npz")

    def record(self, record: Mapping[str, Any], board: bool) -> None:
        """One more line of the record; with `board` in TensorBoard too."""
        self._log.write(record, board)
        self.lines.append(dict(record))
        if "held_out" in record:
            losses = {task: round(v["loss"], 4) for task, v in record["held_out"].items()}
            self.say(f"step {record['step']}: held-out losses {losses}")

    def say(self, line: str) -> None:
        if self._first:
            tqdm.write(line, file=sys.stderr)


def _exp(loss: float) -> float:
    return math.exp(min(loss, 700.0))  # the largest that a float holds


def _memory() -> dict[str, float]:
    """Peaks so far, in bytes: of the busiest local device where it tells, and of the host."""
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [s["peak_bytes_in_use"] for s in stats if "peak_bytes_in_use" in s]
    return {"host_peak_bytes": host} | ({"device_peak_bytes": max(peaks)} if peaks else {})
