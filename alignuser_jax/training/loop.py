"""The training run: data, steps, held-out losses, checkpoints, and the result as files.

Running the same call again resumes where the last checkpoint in `out_dir` stands, bit for
bit. SIGINT and SIGTERM save first and then leave.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh

from alignuser_jax.durable.whole import write_whole
from alignuser_jax.model import (
    Decoder,
    DecoderConfig,
    named_arrays,
    save_adapter,
    save_pretrained,
)
from alignuser_jax.parallel import Hosts, make_mesh, place, replicate
from alignuser_jax.parallel.stop import EXIT_CODES, Stop
from alignuser_jax.shards import manifest_hash, read_manifest
from alignuser_jax.training.checkpoint import Checkpoints, weights_hash
from alignuser_jax.training.config import TrainConfig
from alignuser_jax.training.data import Batch, Batches, Counts
from alignuser_jax.training.flops import find_chip, train_flops
from alignuser_jax.training.held_out import HeldOut
from alignuser_jax.training.metrics import RunLog
from alignuser_jax.training.step import (
    Parts,
    TrainState,
    abstract_state,
    check_rows,
    init_state,
    make_train_step,
    trainable_parts,
)
from alignuser_jax.training.watch import Watch

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
    hosts, out_dir = Hosts(mesh), Path(out_dir)
    config = config.on(jax.default_backend(), str(decoder.dtype), decoder.config.head_dim)
    check_rows(config, mesh)
    if tokenizer.vocab_size > decoder.config.vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the decoder only"
            f" {decoder.config.vocab_size}: they do not belong together"
        )
    manifest = read_manifest(shards_dir)
    quotas = config.quotas({t: entry["count"] for t, entry in manifest["tasks"].items()})
    tasks, counts = list(quotas), {}
    rows = hosts.rows(config.accumulation, config.batch_size)
    with jax.set_mesh(mesh), contextlib.ExitStack() as opened:
        graphdef, weights = nnx.split(decoder)
        parts = trainable_parts(nnx.merge(graphdef, place(weights, mesh)), config.trainable)
        about = {**(about or {}), "base": base, **_about(config, mesh, manifest)}
        checkpoints = Checkpoints(
            checkpoints_dir or out_dir / "checkpoints",
            _identity(config, decoder, parts, manifest, tokenizer),
            keep=config.keep_checkpoints,
            keep_best=config.keep_best,
            about=about,
        )
        opened.callback(checkpoints.close)
        batches = Batches(str(shards_dir), tokenizer, quotas, config, rows=rows, counts=counts)
        start, like = checkpoints.latest(), abstract_state(parts, config)
        if start is None:
            state = init_state(parts, config)
        else:
            state, data_state = checkpoints.restore(like)
            batches.set_state(data_state)
        done = -1 if start is None else start
        log = RunLog(out_dir, done, write=hosts.first, mirror=checkpoints_dir)
        opened.callback(log.close)
        if hosts.first:
            write_whole(out_dir / "train.json", json.dumps(about, indent=1) + "\n")
        show = functools.partial(_in_words, tokenizer, tasks)
        watch = Watch(
            config,
            tasks,
            log,
            out_dir,
            first=hosts.first,
            flops_per_token=functools.partial(_flops, decoder.config, config.trainable),
            peak_flops=_peak_flops(mesh),
            show=show,
        )
        held_out = HeldOut(validation_dir, tokenizer, tasks, config, parts, hosts, rows)
        train_step = make_train_step(parts, tasks, config)

        def evaluate(step: int) -> float | None:
            if not held_out.tasks:
                return None
            measured = held_out.measure(state.params)
            watch.record({"step": step, "held_out": measured}, board=True)
            return held_out.total(measured)

        stop = opened.enter_context(Stop(hosts))
        profiling = opened.enter_context(contextlib.ExitStack())
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
            last, leave = step == config.steps, stop.received()
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
                watch.say(f"step {step}: saved after {signal.Signals(leave).name}, leaving")
                raise SystemExit(EXIT_CODES[leave])
            if evaluating or saving:
                watch.begin()
        checkpoints.wait()
        if config.result == "best" and checkpoints.best() not in (None, config.steps):
            watch.say(f"the result is step {checkpoints.best()}'s, the best held out")
            state, _ = checkpoints.restore(like, checkpoints.best())
        result_dir = _save_result(config, parts, state, tokenizer, base, out_dir, hosts)
    held = [line["held_out"] for line in watch.lines if "held_out" in line]
    return TrainResult(
        steps=config.steps,
        decoder=parts.join(state.params, parts.frozen),
        result_dir=result_dir,
        metrics=watch.lines,
        held_out=held[-1] if held else {},
        first_held_out=held[0] if held else {},
        counts=counts,
    )


def _identity(
    config: TrainConfig, decoder: Decoder, parts: Parts, manifest: Mapping, tokenizer: Any
) -> dict[str, Any]:
    """What a run must share with a checkpoint to go on from it."""
    return {
        "config": {k: v for k, v in dataclasses.asdict(config).items() if k not in FREE},
        "decoder": dataclasses.asdict(decoder.config),
        "lora": dataclasses.asdict(decoder.lora),
        "dtype": str(decoder.dtype),
        "start_weights": weights_hash((parts.params, parts.frozen)),
        "shards": manifest_hash(manifest),
        "tokenizer": tokenizer.fingerprint,
        "vocabulary": tokenizer.vocab_size,
    }


def _about(config: TrainConfig, mesh: Mesh, manifest: Mapping) -> dict[str, Any]:
    """Settings, machine and data, for people."""
    return {
        "train": dataclasses.asdict(config),
        "mesh": dict(mesh.shape),
        "processes": jax.process_count(),
        "device": mesh.devices.flat[0].device_kind,
        "shards_manifest": manifest,
        "versions": {name: version(name) for name in ("jax", "flax", "optax", "grain")},
    }


def _flops(decoder: DecoderConfig, trainable: str, attended: float) -> float:
    """Of one token; in a segment of n tokens `attended` is (n + 1) / 2 on average."""
    return train_flops(decoder, trainable, 2 * attended - 1)


def _peak_flops(mesh: Mesh) -> float | None:
    """Per second of all devices; None where no data sheet is known (CPUs)."""
    try:
        return mesh.size * find_chip(mesh.devices.flat[0].device_kind).peak_flops
    except ValueError:
        return None


def _in_words(tokenizer: Any, tasks: list[str], batch: Batch) -> str:
    """A batch as text: row by row its task and its examples decoded."""
    lines = []
    fields = (x.reshape(-1, x.shape[-1]) for x in (batch.tokens, batch.segment_ids, batch.task))
    for row, (tokens, segments, task) in enumerate(zip(*fields, strict=True)):
        for segment in range(1, segments.max() + 1):
            text = tokenizer.decode(tokens[segments == segment].tolist())
            lines.append(f"--- row {row}, task {tasks[task[0]]}, example {segment}\n{text}\n")
    return "\n".join(lines)


def _save_result(
    config: TrainConfig,
    parts: Parts,
    state: TrainState,
    tokenizer: Any,
    base: str,
    out_dir: Path,
    hosts: Hosts,
) -> Path:
    """Written by the first process; all return once it is there."""
    params = replicate(state.params, hosts.mesh) if hosts.several else state.params
    decoder = parts.join(params, parts.frozen)
    result = out_dir / ("adapter" if config.trainable == "lora" else "model")
    if hosts.first and config.trainable == "lora":
        save_adapter(result, named_arrays(params), decoder.lora, base)
    elif hosts.first:
        save_pretrained(decoder, result)
        tokenizer.save(result)
    hosts.meet("result")
    return result
