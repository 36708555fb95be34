"""The training run: data, steps, held-out losses, checkpoints, and the result as files.

Running the same call again resumes where the last checkpoint in `out_dir` stands, bit for
bit. SIGINT and SIGTERM save first and then leave.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from alignuser_jax.model import Decoder, named_arrays, save_adapter, save_pretrained
from alignuser_jax.training.checkpoint import Checkpoints, weights_hash
from alignuser_jax.training.config import TrainConfig
from alignuser_jax.training.data import Counts, training_batches, validation_batches
from alignuser_jax.training.metrics import RunLog
from alignuser_jax.training.records_io import ShardError, manifest_hash, read_manifest
from alignuser_jax.training.step import (
    StepOutput,
    init_state,
    make_eval_step,
    make_train_step,
    trainable_parts,
)

EXIT_CODES = {signal.SIGTERM: 85, signal.SIGINT: 130}
"""85: stopped from outside and saved; launchers may start the same command again."""

# Settings that decide nothing about the weights: they may change between a run and its resume.
FREE = (
    *("eval_every", "eval_batches", "save_every", "keep_checkpoints", "log_every"),
    *("data_threads",),
)


@dataclass(frozen=True)
class TrainResult:
    """`held_out`: task -> {"loss", "weight"} at the last step, `first_held_out` before the
    first; `result_dir`: `out_dir/adapter` or `out_dir/model`; `decoder`: the trained one;
    `counts`: task -> what this process read (empty where there was nothing left to do)."""

    steps: int
    decoder: Decoder
    result_dir: Path
    metrics: list[dict[str, Any]]
    held_out: dict[str, dict[str, float]] = field(default_factory=dict)
    first_held_out: dict[str, dict[str, float]] = field(default_factory=dict)
    counts: dict[str, Counts] = field(default_factory=dict)


def train(
    config: TrainConfig,
    decoder: Decoder,
    shards_dir: str | os.PathLike[str],
    tokenizer: Any,
    out_dir: str | os.PathLike[str],
    *,
    validation_dir: str | os.PathLike[str] | None = None,
    base: str = "",
    on_step: Callable[[int], None] | None = None,
) -> TrainResult:
    """Trains `decoder` on the shards for `config.steps` steps; `decoder` itself stays as it is.

    Writes `out_dir/{checkpoints, metrics.jsonl, tensorboard}` and at the end `out_dir/adapter`
    ("lora") or `out_dir/model` ("full": a Hugging Face directory with its tokenizer).
    `base` is the name under which the adapter remembers its base model.
    `validation_dir`: shards whose losses are measured before the first step, every
    `eval_every` steps and at the end. `on_step(step)` is called after each step.

    Raises `ValueError` for shards, settings or checkpoints that do not fit, and `SystemExit`
    with `EXIT_CODES` after a signal, once everything is saved.
    """
    out_dir, shards_dir = Path(out_dir), str(shards_dir)
    if tokenizer.vocab_size > decoder.config.vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the decoder only"
            f" {decoder.config.vocab_size}: they do not belong together"
        )
    manifest = read_manifest(shards_dir)
    quotas = config.quotas({t: entry["count"] for t, entry in manifest["tasks"].items()})
    tasks = list(quotas)
    parts = trainable_parts(decoder, config.trainable)
    checkpoints = Checkpoints(
        out_dir / "checkpoints",
        {
            "config": {k: v for k, v in dataclasses.asdict(config).items() if k not in FREE},
            "decoder": dataclasses.asdict(decoder.config),
            "lora": dataclasses.asdict(decoder.lora),
            "dtype": str(decoder.dtype),
            "start_weights": weights_hash((parts.params, parts.frozen)),
            "shards": manifest_hash(manifest),
            "tokenizer": tokenizer.fingerprint,
        },
        keep=config.keep_checkpoints,
    )
    counts: dict[str, Counts] = {}
    state = init_state(parts, config)
    batches = iter(training_batches(shards_dir, tokenizer, quotas, config, counts))
    start = checkpoints.latest()
    if start is not None:
        state, data_state = checkpoints.restore(state)
        batches.set_state(data_state)
    log = RunLog(out_dir, -1 if start is None else start)
    run = _Run(config, tasks, log)
    train_step = make_train_step(parts, tasks, config)
    eval_step = make_eval_step(parts, tasks, config)

    def evaluate(step: int) -> None:
        if validation_dir is None:
            return
        held = {
            task: _held_out(
                config, str(validation_dir), tokenizer, tasks, task,
                lambda batch: eval_step(state.params, parts.frozen, batch),
            )
            for task in tasks
            if task in read_manifest(validation_dir)["tasks"]
        }  # fmt: skip
        run.record({"step": step, "held_out": held}, board=True)

    with contextlib.closing(log), contextlib.closing(checkpoints), _signals() as received:
        if start is None:
            evaluate(0)
        for step in run.progress(start or 0):
            begun = time.perf_counter()
            batch = next(batches)
            waited = time.perf_counter() - begun
            state, output = train_step(state, parts.frozen, batch)
            run.dispatched(step, output, batch.tokens.size, waited, train_step._cache_size())
            if on_step is not None:
                on_step(step)
            last, leave = step == config.steps, bool(received)
            evaluating = last or (config.eval_every and step % config.eval_every == 0)
            if evaluating or leave or step % config.save_every == 0:
                run.flush()
            if evaluating:
                evaluate(step)
            if last or leave or step % config.save_every == 0:
                checkpoints.save(step, state, batches.get_state())
            if leave and not last:
                checkpoints.wait()
                _say(f"step {step}: saved after {signal.Signals(received[0]).name}, leaving")
                raise SystemExit(EXIT_CODES[received[0]])
        checkpoints.wait()
    trained = parts.join(state.params, parts.frozen)
    held = [line["held_out"] for line in run.lines if "held_out" in line]
    return TrainResult(
        steps=config.steps,
        decoder=trained,
        result_dir=_save_result(config, trained, state.params, tokenizer, base, out_dir),
        metrics=run.lines,
        held_out=held[-1] if held else {},
        first_held_out=held[0] if held else {},
        counts=counts,
    )


class _Run:
    """What a run tells, one step behind: the next step is under way when a record is read."""

    def __init__(self, config: TrainConfig, tasks: list[str], log: RunLog):
        self._config, self._tasks, self._log = config, tasks, log
        self._pending: tuple[int, StepOutput, dict[str, Any]] | None = None
        self._bar: Any = None
        self._since = time.perf_counter()
        self.lines = list(log.lines)

    def progress(self, start: int) -> Iterator[int]:
        """Steps after `start`, counted from 1; a bar on a terminal, lines elsewhere."""
        total, quiet = self._config.steps, not sys.stderr.isatty()
        self._bar = tqdm(total=total, initial=start, disable=quiet, unit="step")
        self._since = time.perf_counter()
        with self._bar:
            yield from range(start + 1, self._config.steps + 1)
            self.flush()

    def dispatched(
        self, step: int, output: StepOutput, padded: int, waited: float, compilations: int
    ) -> None:
        self.flush()
        host = {"padded_tokens": padded, "compilations": compilations, "waited": waited}
        self._pending = (step, output, host)

    def flush(self) -> None:
        if self._pending is None:
            return
        step, output, host = self._pending
        self._pending = None
        output = jax.device_get(output)
        seconds = time.perf_counter() - self._since
        self._since = time.perf_counter()
        losses = {
            task: float(nll / weight)
            for task, nll, weight in zip(self._tasks, output.nll, output.weight, strict=True)
            # The loss is not computed where lambda is 0.
            if weight > 0 and self._config.task_weights.get(task, 1.0) > 0
        }
        tokens = int(output.tokens)
        record = {
            "step": step,
            "loss": float(output.loss),
            "task_loss": losses,
            "task_weight": dict(zip(self._tasks, map(float, output.weight), strict=True)),
            "grad_norm": float(output.grad_norm),
            "learning_rate": float(output.learning_rate),
            "tokens": tokens,
            "padded_tokens": host["padded_tokens"],
            "compilations": host["compilations"],
            "timing": {
                "step_seconds": seconds,
                "data_wait_seconds": host["waited"],
                "tokens_per_second": tokens / seconds,
                "padded_tokens_per_second": host["padded_tokens"] / seconds,
            },
        }
        shown = step % self._config.log_every == 0 or step in (1, self._config.steps)
        self.record(record, board=shown)
        if not np.isfinite(record["loss"]):
            raise FloatingPointError(
                f"the loss of step {step} is {record['loss']}: lower the learning rate; the"
                " last checkpoint is from before it"
            )
        self._bar.update()
        text = " ".join(f"{task} {loss:.4f}" for task, loss in losses.items())
        self._bar.set_postfix_str(text, refresh=False)
        if shown and self._bar.disable:
            speed = record["timing"]["tokens_per_second"]
            _say(f"step {step}/{self._config.steps}: {text}, {speed:.0f} tokens/s")

    def record(self, record: Mapping[str, Any], board: bool) -> None:
        self._log.write(record, board)
        self.lines.append(dict(record))
        if "held_out" in record:
            losses = {task: round(v["loss"], 4) for task, v in record["held_out"].items()}
            _say(f"step {record['step']}: held-out losses {losses}")


def _held_out(
    config: TrainConfig,
    directory: str,
    tokenizer: Any,
    tasks: list[str],
    task: str,
    measure: Callable[[Any], tuple[Any, Any]],
) -> dict[str, float]:
    nll = weight = 0.0
    for number, batch in enumerate(
        validation_batches(directory, tokenizer, tasks, task, config)
    ):
        if config.eval_batches is not None and number >= config.eval_batches:
            break
        sums, weights = jax.device_get(measure(batch))
        nll, weight = nll + float(sums.sum()), weight + float(weights.sum())
    if not weight:
        raise ShardError(
            f"no held-out example of task {task!r} in {directory} fits"
            f" seq_len={config.seq_len}: raise it or build shorter examples"
        )
    return {"loss": nll / weight, "weight": weight}


def _save_result(
    config: TrainConfig, decoder: Decoder, params: Any, tokenizer: Any, base: str, out_dir: Path
) -> Path:
    if config.trainable == "lora":
        save_adapter(out_dir / "adapter", named_arrays(params), decoder.lora, base)
        return out_dir / "adapter"
    save_pretrained(decoder, out_dir / "model")
    tokenizer.save(out_dir / "model")
    return out_dir / "model"


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """The stop signals received; a second one acts at once, as if nobody listened."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def note(number: int, _: Any) -> None:
        received.append(number)
        signal.signal(number, earlier[number])

    earlier = {number: signal.getsignal(number) or signal.SIG_DFL for number in EXIT_CODES}
    try:
        for number in EXIT_CODES:
            signal.signal(number, note)
        yield received
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def _say(line: str) -> None:
    tqdm.write(line, file=sys.stderr)
