"""The training run: data, steps, held-out losses, checkpoints, and the result as files.

Running the same call again resumes where the last checkpoint in `out_dir` stands, bit for
bit. SIGINT and SIGTERM save first and then leave.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from alignuser_jax.model import Decoder, named_arrays, save_adapter, save_pretrained, split
from alignuser_jax.parallel import Hosts, batch_shards, make_mesh, place, replicate
from alignuser_jax.training.checkpoint import Checkpoints, weights_hash
from alignuser_jax.training.config import TrainConfig
from alignuser_jax.training.data import Batch, Batches, Counts, validation_batches
from alignuser_jax.training.metrics import RunLog, write_whole
from alignuser_jax.training.records_io import ShardError, manifest_hash, read_manifest
from alignuser_jax.training.step import (
    abstract_state,
    init_state,
    make_eval_step,
    make_train_step,
    trainable_parts,
)
from alignuser_jax.training.watch import Watch

EXIT_CODES = {signal.SIGTERM: 85, signal.SIGINT: 130}
"""85: stopped from outside and saved; launchers may start the same command again."""

FREE = (
    *("eval_every", "eval_batches", "save_every", "keep_checkpoints", "keep_best", "result"),
    *("log_every", "data_threads", "spike_nats"),
    *("accumulation", "remat", "attention", "loss_chunk"),  # of the last digits they do
)
"""Settings that decide nothing about the weights: a resumed run may have others."""


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
    mesh: Mesh | None = None,
    checkpoints_dir: str | None = None,
    validation_dir: str | os.PathLike[str] | None = None,
    base: str = "",
    about: Mapping[str, Any] | None = None,
    profile: tuple[int, int] | None = None,
    on_step: Callable[[int], None] | None = None,
) -> TrainResult:
    """Trains `decoder` on the shards for `config.steps` steps; `decoder` itself stays as it is.

    Writes `out_dir/{checkpoints, metrics.jsonl, tensorboard, train.json}` and at the end
    `out_dir/adapter` ("lora") or `out_dir/model` ("full": a Hugging Face directory with its
    tokenizer).
    `mesh`: the devices, of all processes; without it the first one. On several processes each
    calls this with the same arguments, the folders being shared; the first one writes.
    `checkpoints_dir`: another place for the checkpoints, local or gs://...; the record is
    copied there too. `base` is the name under which the adapter remembers its base model.
    `validation_dir`: shards whose losses are measured before the first step, every
    `eval_every` steps and at the end. `about` is stored beside the checkpoints.
    `profile`: first and last step of a profile in `out_dir/profile`. `on_step(step)` is called
    after each step.

    Raises `ValueError` for shards, settings, meshes or checkpoints that do not fit,
    `FloatingPointError` for a loss that is not finite or a spike (its batch is written aside),
    and `SystemExit` with `EXIT_CODES` after a signal, once everything is saved.
    """
    mesh = make_mesh(devices=jax.devices()[:1]) if mesh is None else mesh
    with jax.set_mesh(mesh):
        out_dir, shards_dir = Path(out_dir), str(shards_dir)
        config, hosts = config.on(jax.default_backend()), Hosts(mesh)
        check_rows(config, mesh)
        if tokenizer.vocab_size > decoder.config.vocab_size:
            raise ValueError(
                f"the tokenizer has {tokenizer.vocab_size} tokens, the decoder only"
                f" {decoder.config.vocab_size}: they do not belong together"
            )
        manifest = read_manifest(shards_dir)
        quotas = config.quotas({t: entry["count"] for t, entry in manifest["tasks"].items()})
        tasks = list(quotas)
        graphdef, weights = nnx.split(decoder)
        decoder = nnx.merge(graphdef, place(weights, mesh))
        parts = trainable_parts(decoder, config.trainable)
        metadata = {
            "config": {k: v for k, v in dataclasses.asdict(config).items() if k not in FREE},
            "decoder": dataclasses.asdict(decoder.config),
            "lora": dataclasses.asdict(decoder.lora),
            "dtype": str(decoder.dtype),
            "start_weights": weights_hash((parts.params, parts.frozen)),
            "shards": manifest_hash(manifest),
            "tokenizer": tokenizer.fingerprint,
            "vocabulary": tokenizer.vocab_size,
        }
        about = {
            **(about or {}),
            "train": dataclasses.asdict(config),
            "mesh": dict(mesh.shape),
            "processes": jax.process_count(),
            "devices": mesh.devices.flat[0].device_kind,
            "base": base,
            "shards_manifest": manifest,
            "versions": {name: version(name) for name in ("jax", "flax", "optax", "grain")},
        }
        checkpoints = Checkpoints(
            checkpoints_dir or out_dir / "checkpoints",
            metadata,
            keep=config.keep_checkpoints,
            keep_best=config.keep_best,
            about=about,
        )
        counts: dict[str, Counts] = {}
        rows = hosts.rows(config.accumulation, config.batch_size)
        start, like = checkpoints.latest(), abstract_state(parts, config)
        batches = Batches(shards_dir, tokenizer, quotas, config, rows=rows, counts=counts)
        if start is None:
            state = init_state(parts, config)
        else:
            state, data_state = checkpoints.restore(like)
            batches.set_state(data_state)
        log = RunLog(
            out_dir, -1 if start is None else start, write=hosts.first, mirror=checkpoints_dir
        )
        if hosts.first:
            write_whole(out_dir / "train.json", json.dumps(about, indent=1, default=str) + "\n")
        watch = Watch(
            config, tasks, log, out_dir, first=hosts.first, show=_in_words(tokenizer, tasks)
        )
        train_step = make_train_step(parts, tasks, config)
        eval_step = make_eval_step(parts, tasks, config)

        def evaluate(step: int) -> float | None:
            """The held-out loss, as it is trained on."""
            if validation_dir is None:
                return None

            def measure(batch: Batch) -> tuple[Any, Any]:
                mine = jax.tree.map(lambda x: _pick(x, rows), batch)
                return eval_step(
                    state.params, parts.frozen, hosts.global_batch(mine, config.batch_size)
                )

            held = {
                task: _held_out(config, str(validation_dir), tokenizer, tasks, task, measure)
                for task in tasks
                if task in read_manifest(validation_dir)["tasks"]
            }
            watch.record({"step": step, "held_out": held}, board=True)
            weights = config.task_weights
            return sum(weights.get(task, 1.0) * found["loss"] for task, found in held.items())

        def leaving(received: list[int], asked: list[jax.Array]) -> int:
            """The signal on which to leave, the same in every process at the same step."""
            if not hosts.several:
                return received[0] if received else 0
            asked.append(hosts.largest(received[0] if received else 0))
            return int(asked.pop(0)) if len(asked) > 1 else 0

        with (
            contextlib.closing(log),
            contextlib.closing(checkpoints),
            _signals() as received,
            contextlib.ExitStack() as profiling,
        ):
            asked: list[jax.Array] = []
            if start is None:
                evaluate(0)
            for step in watch.progress(start or 0):
                if profile and step == profile[0]:
                    watch.flush()
                    profiling.enter_context(jax.profiler.trace(str(out_dir / "profile")))
                begun = time.perf_counter()
                batch = next(batches)
                waited = time.perf_counter() - begun
                placed = hosts.global_batch(batch, config.batch_size)
                state, output = train_step(state, parts.frozen, placed)
                padded = config.batch_size * batch.tokens.shape[-1]
                watch.dispatched(step, output, batch, padded, waited, train_step._cache_size())
                if on_step is not None:
                    on_step(step)
                if profile and step == profile[1]:
                    watch.flush()
                    profiling.close()
                last, leave = step == config.steps, leaving(received, asked)
                evaluating = last or (config.eval_every and step % config.eval_every == 0)
                saving = last or leave or step % config.save_every == 0
                saving = saving or (evaluating and config.keep_best)
                if evaluating or saving:
                    watch.flush()
                loss = evaluate(step) if evaluating else None
                if saving:
                    checkpoints.save(step, state, hosts.gather(batches.get_state()), loss)
                    log.copy()
                if leave and not last:
                    checkpoints.wait()
                    name = signal.Signals(leave).name
                    watch.say(f"step {step}: saved after {name}, leaving")
                    raise SystemExit(EXIT_CODES[leave])
            checkpoints.wait()
            if config.result == "best" and checkpoints.best() not in (None, config.steps):
                watch.say(f"the result is step {checkpoints.best()}'s, the best held out")
                state, _ = checkpoints.restore(like, checkpoints.best())
        trained = parts.join(state.params, parts.frozen)
        whole = trained
        if hosts.several:
            params = replicate(state.params, mesh)
            frozen = parts.frozen
            whole = parts.join(params, frozen)
        result = out_dir / ("adapter" if config.trainable == "lora" else "model")
        if hosts.first:
            _save_result(config, whole, tokenizer, base, result)
        hosts.meet("result")
        held = [line["held_out"] for line in watch.lines if "held_out" in line]
        return TrainResult(
            steps=config.steps,
            decoder=trained,
            result_dir=result,
            metrics=watch.lines,
            held_out=held[-1] if held else {},
            first_held_out=held[0] if held else {},
            counts=counts,
        )


def check_rows(config: TrainConfig, mesh: Mesh) -> None:
    """Raises `ValueError` where the rows of a micro-batch do not divide among the devices."""
    rows, shards = config.batch_size // config.accumulation, batch_shards(mesh)
    if rows % shards:
        raise ValueError(
            f"a micro-batch of {rows} rows (batch_size={config.batch_size} / accumulation="
            f"{config.accumulation}) does not divide among data={mesh.shape['data']} x"
            f" fsdp={mesh.shape['fsdp']} = {shards} parts: make batch_size / accumulation a"
            f" multiple of {shards}, or give more devices to tensor"
        )


def _pick(whole: np.ndarray, rows: list[int]) -> np.ndarray:
    """Of `[A, B, T]` the rows with these numbers, `[A, b, T]`."""
    flat = whole.reshape(-1, whole.shape[-1])[rows]
    return flat.reshape(len(whole), -1, whole.shape[-1])


def _in_words(tokenizer: Any, tasks: list[str]) -> Callable[[Batch], str]:
    """A batch as text: row by row its task and its tokens decoded."""

    def show(batch: Batch) -> str:
        lines = []
        fields = (x.reshape(-1, x.shape[-1]) for x in (batch.tokens, batch.segment_ids))
        for row, (tokens, segments) in enumerate(zip(*fields, strict=True)):
            task = tasks[batch.task.reshape(-1, batch.task.shape[-1])[row, 0]]
            for segment in range(1, segments.max() + 1):
                text = tokenizer.decode(tokens[segments == segment].tolist())
                lines.append(f"--- row {row}, task {task}, example {segment}\n{text}\n")
        return "\n".join(lines)

    return show


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
    config: TrainConfig, decoder: Decoder, tokenizer: Any, base: str, result: Path
) -> None:
    if config.trainable == "lora":
        save_adapter(result, named_arrays(split(decoder)[1]), decoder.lora, base)
    else:
        save_pretrained(decoder, result)
        tokenizer.save(result)


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
