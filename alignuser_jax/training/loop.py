"""Train a decoder on shards: steps, held-out losses, checkpoints, and the result as files.

Running the same call again resumes from the last checkpoint in `out_dir`, bit for bit. SIGINT
and SIGTERM save a checkpoint first and then leave.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh

from alignuser_jax.durable.whole import write_whole
from alignuser_jax.language import TextTokenizer
from alignuser_jax.language.fitting import fit_lines
from alignuser_jax.model import (
    Decoder,
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
from alignuser_jax.training.flops import Trainable, find_chip, train_flops
from alignuser_jax.training.held_out import HeldOut
from alignuser_jax.training.metrics import RunLog
from alignuser_jax.training.step import (
    Parts,
    TrainState,
    TrainStep,
    abstract_state,
    check_rows,
    init_state,
    make_train_step,
    trainable_parts,
)
from alignuser_jax.training.watch import Dispatched, Watch, WatchOptions

FREE_SETTINGS = (
    *("eval_every", "eval_batches", "save_every", "keep_checkpoints", "keep_best", "result"),
    *("log_every", "data_threads", "spike_nats"),
    *("accumulation", "remat", "attention", "loss_chunk"),  # change the last digits only
)
"""Settings that a resumed run may change, since they do not decide what is learned."""


@dataclass(frozen=True)
class RunOptions:
    """Where a training runs and what it keeps; nothing here decides what is learned.

    Attributes:
        mesh: The devices, of all processes, from `parallel.make_mesh`; None is the first local
            device.
        checkpoints_dir: Folder of the checkpoints, local or gs://...; None is
            `out_dir/checkpoints`. If it is given, the metrics are copied there too.
        validation_dir: Shards whose losses are measured before the first step, every
            `eval_every` steps and at the end; None measures none.
        base: Directory or hub id under which the adapter records its base model.
        about: Facts for people, stored beside the checkpoints and in `train.json`.
        profile: First and last step of a profile, written to `out_dir/profile`.
        on_step: Is called with the number of each step after it was dispatched.
    """

    mesh: Mesh | None = None
    checkpoints_dir: str | None = None
    validation_dir: str | os.PathLike[str] | None = None
    base: str = ""
    about: Mapping[str, Any] = field(default_factory=dict)
    profile: tuple[int, int] | None = None
    on_step: Callable[[int], None] | None = None


@dataclass(frozen=True)
class TrainResult:
    """What a training ended with.

    Attributes:
        steps: Number of optimizer steps.
        decoder: The trained decoder.
        result_dir: `out_dir/adapter` ("lora") or `out_dir/model` ("full").
        metrics: The lines of `metrics.jsonl`.
        held_out: Task -> {"loss", "weight"} at the last step; empty without validation shards.
        first_held_out: The same before the first step.
        counts: Task -> examples that this process read; empty if no step was left to do.
    """

    steps: int
    decoder: Decoder
    result_dir: Path
    metrics: list[dict[str, Any]]
    held_out: dict[str, dict[str, float]] = field(default_factory=dict)
    first_held_out: dict[str, dict[str, float]] = field(default_factory=dict)
    counts: dict[str, Counts] = field(default_factory=dict)


def train_decoder(
    config: TrainConfig,
    decoder: Decoder,
    shards_dir: str | os.PathLike[str],
    tokenizer: TextTokenizer,
    out_dir: str | os.PathLike[str],
    options: RunOptions = RunOptions(),
) -> TrainResult:
    """Train a copy of `decoder` on shards for `config.steps` steps.

    Writes `out_dir/{checkpoints, metrics.jsonl, tensorboard, train.json}`, and at the end
    `out_dir/adapter` ("lora") or `out_dir/model` ("full": a Hugging Face directory with its
    tokenizer). On several processes each calls this with the same arguments and shared folders;
    the first process writes.

    Args:
        config: Everything that decides what is learned.
        decoder: The start; it is left as it is.
        shards_dir: Folder of `write_shards`.
        tokenizer: The decoder's tokenizer.
        out_dir: Folder of the run; one that holds an interrupted run of the same settings is
            continued.
        options: Devices, checkpoints, validation and profile.

    Raises:
        ValueError: If shards, settings, mesh, tokenizer or checkpoints do not fit together.
        FloatingPointError: If the loss is not finite or jumps; its batch is written to
            `out_dir/stopped`.
        SystemExit: With a code of `EXIT_CODES` after a signal, once everything is saved.

    Example:
        >>> result = train_decoder(  # doctest: +SKIP
        ...     TrainConfig(steps=1000), decoder, "run/shards/align", tokenizer, "run/align"
        ... )
        >>> result.result_dir  # doctest: +SKIP
        PosixPath('run/align/adapter')
    """
    mesh = make_mesh(devices=jax.devices()[:1]) if options.mesh is None else options.mesh
    config = config.on(jax.default_backend(), str(decoder.dtype), decoder.config.head_dim)
    check_rows(config, mesh)
    if tokenizer.vocab_size > decoder.config.vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the decoder only"
            f" {decoder.config.vocab_size}: they do not belong together"
        )
    with jax.set_mesh(mesh), contextlib.ExitStack() as stack:
        setup = _Setup(config, tokenizer, Path(out_dir), options, Hosts(mesh))
        run, start, state = _open_run(setup, decoder, shards_dir, stack)
        stop = stack.enter_context(Stop(run.hosts))
        for line in fit_lines(read_manifest(shards_dir), tokenizer.fingerprint, config.seq_len):
            run.watch.say(line)
        state = _run_steps(run, start, state, stop)
        for task, count in run.counts.items():
            if count.refused:
                run.watch.say(
                    f"{task}: {count.read} examples read, {count.too_long} refused as longer "
                    f"than seq_len={config.seq_len}, {count.untrained} without trained text"
                )
        run.checkpoints.wait()
        state = _chosen_state(run, state)
        result_dir = _save_result(run, state)
    held = [line["held_out"] for line in run.watch.lines if "held_out" in line]
    return TrainResult(
        steps=config.steps,
        decoder=run.parts.join(state.params, run.parts.frozen),
        result_dir=result_dir,
        metrics=run.watch.lines,
        held_out=held[-1] if held else {},
        first_held_out=held[0] if held else {},
        counts=run.counts,
    )


@dataclass(frozen=True)
class _Setup:
    """What a run is made from."""

    config: TrainConfig
    tokenizer: TextTokenizer
    out_dir: Path
    options: RunOptions
    hosts: Hosts


@dataclass(frozen=True)
class _Run(_Setup):
    """A run whose files are open."""

    parts: Parts
    checkpoints: Checkpoints
    batches: Batches
    counts: dict[str, Counts]
    log: RunLog
    watch: Watch
    held_out: HeldOut
    train_step: TrainStep

    def evaluate(self, step: int, state: TrainState) -> float | None:
        """Measure and record the held-out losses; return their total, None without any."""
        if not self.held_out.tasks:
            return None
        measured = self.held_out.measure(state.params)
        self.watch.record({"step": step, "held_out": measured}, board=True)
        return self.held_out.total(measured)

    def dispatch(self, step: int, state: TrainState) -> TrainState:
        """Start one step on the devices and return its state, without waiting for it."""
        begun = time.perf_counter()
        batch = next(self.batches)
        waited = time.perf_counter() - begun
        placed = self.hosts.global_batch(batch, self.config.batch_size)
        state, output = self.train_step(state, self.parts.frozen, placed)
        padded = self.config.batch_size * batch.tokens.shape[-1]
        compilations = self.train_step._cache_size()
        self.watch.dispatched(Dispatched(step, output, batch, padded, waited, compilations))
        return state

    def finish_step(self, step: int, state: TrainState, leave: int) -> None:
        """Evaluate and save where that is due; leave after a signal.

        Args:
            step: The step just dispatched.
            state: Its state.
            leave: Number of the signal to leave on, or 0.
        """
        config = self.config
        last = step == config.steps
        evaluating = last or bool(config.eval_every and step % config.eval_every == 0)
        saving = last or bool(leave) or step % config.save_every == 0
        saving = saving or (evaluating and bool(config.keep_best))
        if not (evaluating or saving):
            return
        self.watch.flush()
        loss = self.evaluate(step, state) if evaluating else None
        if saving:
            data_state = self.hosts.gather(self.batches.get_state())
            self.checkpoints.save(step, state, data_state, loss)
            self.log.copy()
        if leave and not last:
            self.checkpoints.wait()
            self.watch.say(f"step {step}: saved after {signal.Signals(leave).name}, leaving")
            raise SystemExit(EXIT_CODES[signal.Signals(leave)])
        self.watch.begin()


def _open_run(
    setup: _Setup,
    decoder: Decoder,
    shards_dir: str | os.PathLike[str],
    stack: contextlib.ExitStack,
) -> tuple[_Run, int | None, TrainState]:
    """Place the weights and open everything; `stack` closes it.

    The metrics are opened after the checkpoint was restored: a run that is refused leaves its
    folder as it was.

    Returns:
        The run, the step of the checkpoint it goes on from (None: there is none), its state.
    """
    config, options, hosts = setup.config, setup.options, setup.hosts
    manifest = read_manifest(shards_dir)
    quotas = config.quotas({t: entry["count"] for t, entry in manifest["tasks"].items()})
    tasks, rows = list(quotas), hosts.rows(config.accumulation, config.batch_size)
    counts: dict[str, Counts] = {}
    graphdef, weights = nnx.split(decoder)
    parts = trainable_parts(nnx.merge(graphdef, place(weights, hosts.mesh)), config.trainable)
    settings = _about(config, hosts.mesh, manifest)
    if config.trainable == "lora":  # by which a second round knows its base again
        settings["base_weights"] = weights_hash(parts.frozen)
    about = {**options.about, "base": options.base, **settings}
    checkpoints = Checkpoints(
        options.checkpoints_dir or setup.out_dir / "checkpoints",
        _identity(config, decoder, parts, manifest, setup.tokenizer),
        keep=config.keep_checkpoints,
        keep_best=config.keep_best,
        about=about,
    )
    stack.callback(checkpoints.close)
    batches = Batches(
        str(shards_dir), setup.tokenizer, quotas, config, rows=rows, counts=counts
    )
    start, state = _start_state(config, parts, checkpoints, batches)
    done = -1 if start is None else start
    log = RunLog(setup.out_dir, done, write=hosts.first, mirror=options.checkpoints_dir)
    stack.callback(log.close)
    if hosts.first:
        write_whole(setup.out_dir / "train.json", json.dumps(about, indent=1) + "\n")
    run = _Run(
        *(setup.config, setup.tokenizer, setup.out_dir, options, hosts),
        parts=parts,
        checkpoints=checkpoints,
        batches=batches,
        counts=counts,
        log=log,
        watch=Watch(config, tasks, log, _watch_options(setup, decoder, tasks)),
        held_out=HeldOut(setup.tokenizer, tasks, config, parts, options.validation_dir, hosts),
        train_step=make_train_step(parts, tasks, config),
    )
    return run, start, state


def _watch_options(setup: _Setup, decoder: Decoder, tasks: Sequence[str]) -> WatchOptions:
    trainable = setup.config.trainable
    return WatchOptions(
        setup.out_dir,
        first=setup.hosts.first,
        flops_per_token=functools.partial(_flops, decoder, trainable),
        peak_flops=_peak_flops(setup.hosts.mesh),
        show=functools.partial(_batch_text, setup.tokenizer, tasks),
    )


def _start_state(
    config: TrainConfig, parts: Parts, checkpoints: Checkpoints, batches: Batches
) -> tuple[int | None, TrainState]:
    """Return the latest checkpoint's step and state, or None and a fresh state."""
    start = checkpoints.latest()
    if start is None:
        return None, init_state(parts, config)
    state, data_state = checkpoints.restore(abstract_state(parts, config))
    batches.set_state(data_state)
    return start, state


def _run_steps(run: _Run, start: int | None, state: TrainState, stop: Stop) -> TrainState:
    """Run all steps after `start` and return the last state."""
    profile, on_step = run.options.profile, run.options.on_step
    with contextlib.ExitStack() as profiling:
        if start is None:
            run.evaluate(0, state)
        for step in run.watch.progress(start or 0):
            if profile and step == profile[0]:
                run.watch.flush()
                folder = str(run.out_dir / "profile")
                profiling.enter_context(jax.profiler.trace(folder))
            state = run.dispatch(step, state)
            if on_step is not None:
                on_step(step)
            if profile and step == profile[1]:
                run.watch.flush()
                profiling.close()
            run.finish_step(step, state, stop.received())
    return state


def _chosen_state(run: _Run, state: TrainState) -> TrainState:
    """Return the state whose weights are the result: the last one's, or the best held out."""
    best = run.checkpoints.best() if run.config.result == "best" else None
    if best in (None, run.config.steps):
        return state
    run.watch.say(f"the result is step {best}'s, the best held out")
    return run.checkpoints.restore(abstract_state(run.parts, run.config), best)[0]


def _identity(
    config: TrainConfig,
    decoder: Decoder,
    parts: Parts,
    manifest: Mapping[str, Any],
    tokenizer: TextTokenizer,
) -> dict[str, Any]:
    """Return what a run must share with a checkpoint to go on from it."""
    return {
        "config": {
            k: v for k, v in dataclasses.asdict(config).items() if k not in FREE_SETTINGS
        },
        "decoder": dataclasses.asdict(decoder.config),
        "lora": dataclasses.asdict(decoder.lora),
        "dtype": str(decoder.dtype),
        "start_weights": weights_hash((parts.params, parts.frozen)),
        "shards": manifest_hash(manifest),
        "tokenizer": tokenizer.fingerprint,
        "vocabulary": tokenizer.vocab_size,
    }


def _about(config: TrainConfig, mesh: Mesh, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings, machine and data, for people."""
    return {
        "train": dataclasses.asdict(config),
        "mesh": dict(mesh.shape),
        "processes": jax.process_count(),
        "device": mesh.devices.flat[0].device_kind,
        "shards_manifest": manifest,
        "versions": {name: version(name) for name in ("jax", "flax", "optax", "grain")},
    }


def _flops(decoder: Decoder, trainable: Trainable, attended: float) -> float:
    """Return one token's FLOPs; a segment of n tokens has `attended` = (n + 1) / 2."""
    adapted = decoder.lora.adapted_layers(decoder.config.num_layers)
    return train_flops(decoder.config, trainable, 2 * attended - 1, adapted)


def _peak_flops(mesh: Mesh) -> float | None:
    """Return the FLOP/s of all devices; None for devices without a data sheet (CPUs)."""
    try:
        peak = find_chip(mesh.devices.flat[0].device_kind).peak_flops
    except ValueError:
        return None
    return mesh.size * peak if peak else None


def _batch_text(tokenizer: TextTokenizer, tasks: Sequence[str], batch: Batch) -> str:
    """Return a batch as text: row by row its task and its examples decoded."""
    lines = []
    fields = (x.reshape(-1, x.shape[-1]) for x in (batch.tokens, batch.segment_ids, batch.task))
    for row, (tokens, segments, task) in enumerate(zip(*fields, strict=True)):
        for segment in range(1, segments.max() + 1):
            text = tokenizer.decode(tokens[segments == segment].tolist())
            lines.append(f"--- row {row}, task {tasks[task[0]]}, example {segment}\n{text}\n")
    return "\n".join(lines)


def _save_result(run: _Run, state: TrainState) -> Path:
    """Write the result on the first process; all return once it is written."""
    hosts, lora = run.hosts, run.config.trainable == "lora"
    params = replicate(state.params, hosts.mesh) if hosts.several else state.params
    decoder = run.parts.join(params, run.parts.frozen)
    result = run.out_dir / ("adapter" if lora else "model")
    if hosts.first and lora:
        arrays, layers = named_arrays(params), decoder.config.num_layers
        save_adapter(result, arrays, decoder.lora, run.options.base, num_layers=layers)
    elif hosts.first:
        save_pretrained(decoder, result)
        run.tokenizer.save(result)
    hosts.meet("result")
    return result
