"""Grain batches of the shards: a function of (shards, tokenizer, config) and the step alone.

Each task is shuffled by (seed, epoch), rendered to tokens and packed into rows of one task;
a batch holds fixed quotas of rows. The iterator's state is small and JSON-serialisable, and
setting it gives the same batches again, bit for bit.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import grain
import numpy as np
from jaxtyping import Float, Int

from alignuser_jax.language.render import render
from alignuser_jax.records import Example, Message, stable_key
from alignuser_jax.training.config import TrainConfig
from alignuser_jax.training.records_io import ShardError, decode, task_files

PACKING_BINS = 64
"""Rows that are filled at the same time (first fit)."""
_GUARD = 512


class Batch(NamedTuple):
    """One global step; a row holds one task, packed or one example per row.

    `targets[b, t]` is the token after `tokens[b, t]` of the same example; `segment_ids` 0 is
    padding; `positions` restart at 0 with each segment; `weights` 0 is not trained on;
    `task` is the index of the row's task in the sorted task names.
    """

    tokens: Int[np.ndarray, "B T"]
    targets: Int[np.ndarray, "B T"]
    positions: Int[np.ndarray, "B T"]
    segment_ids: Int[np.ndarray, "B T"]
    weights: Float[np.ndarray, "B T"]
    task: Int[np.ndarray, "B T"]


@dataclass
class Counts:
    """What became of the examples read so far by this process (look-ahead included)."""

    read: int = 0
    left_truncated: int = 0
    refused: int = 0


def split_replies(example: Example) -> list[Example]:
    """One example per trained reply: its conversation up to it, earlier replies not trained.

    Needed where a chat template renders a reply differently once others follow it."""
    parts = []
    for end, message in enumerate(example.messages):
        if any(span.trained for span in message.spans):
            context = tuple(
                Message(m.role, tuple(replace(s, trained=False, action=False) for s in m.spans))
                for m in example.messages[:end]
            )
            parts.append(replace(example, messages=(*context, message)))
    return parts


def sequence(
    tokenizer: Any, example: Example, config: TrainConfig, counts: Counts | None = None
) -> dict[str, np.ndarray] | None:
    """`tokens`, `targets`, `weights` (each `[n]`, n <= seq_len) of one conversation.

    Tokens after the last trained one are dropped. A longer conversation loses tokens on its
    left if every trained token and one before it stay; otherwise it is refused (`None`).
    """
    counts = counts if counts is not None else Counts()
    rendered = render(tokenizer, example.messages)
    tokens = np.asarray(rendered.tokens, np.int32)
    weights = np.where(rendered.is_action, config.action_weight, 1.0) * rendered.weights
    trained = np.flatnonzero(weights[1:] > 0) + 1
    if not len(trained):
        counts.refused += 1
        return None
    end = trained[-1] + 1
    start = max(0, end - (config.seq_len + 1))
    if start >= trained[0] or (start > 0 and weights[0] > 0):
        counts.refused += 1
        return None
    counts.left_truncated += start > 0
    tokens, weights = tokens[start:end], weights[start:end].astype(np.float32)
    weights = weights[1:]
    if config.normalize == "task_examples":
        weights = weights / weights.sum(dtype=np.float32)
    return {"tokens": tokens[:-1], "targets": tokens[1:], "weights": weights}


class _Sequences(grain.transforms.Map):
    """Record bytes to the sequences that it trains."""

    def __init__(self, tokenizer: Any, task: str, config: TrainConfig, counts: Counts):
        self._tokenizer, self._task, self._config = tokenizer, task, config
        self._counts, self._lock = counts, threading.Lock()
        self._prefix_stable = getattr(tokenizer, "prefix_stable", True)

    def map(self, record: bytes) -> list[dict[str, np.ndarray]]:
        example = decode(record)
        examples = [example] if self._prefix_stable else split_replies(example)
        own = Counts(read=len(examples))
        rows = [sequence(self._tokenizer, e, self._config, own) for e in examples]
        with self._lock:
            self._counts.read += own.read
            self._counts.refused += own.refused
            self._counts.left_truncated += own.left_truncated
            if self._counts.refused == self._counts.read >= _GUARD:
                raise ShardError(
                    f"none of the first {self._counts.read} examples of task {self._task!r}"
                    f" fits seq_len={self._config.seq_len} with its trained text: raise"
                    " seq_len or build shorter examples"
                )
        return [row for row in rows if row is not None]


class _Epochs:
    """A data source without end: each epoch is a permutation named by (seed, name, epoch).

    (Grain's own shuffle walks cycles of 2^16 indices: milliseconds a record of a small task.)
    """

    def __init__(self, source: Sequence[bytes], seed: int, name: str):
        self._source, self._name = source, (seed, name)
        self._order = functools.lru_cache(maxsize=4)(self._permutation)

    def _permutation(self, epoch: int) -> np.ndarray:
        key = stable_key("shuffle", *self._name, epoch)
        return np.random.Generator(np.random.Philox(key=key)).permutation(len(self._source))

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> bytes:
        epoch, place = divmod(index, len(self._source))
        return self._source[int(self._order(epoch)[place])]


class _Flatten(grain.experimental.FlatMapTransform):
    def flat_map(self, element: list[dict[str, np.ndarray]]) -> Sequence[dict[str, np.ndarray]]:
        return element


def _pad_row(row: dict[str, np.ndarray], length: int) -> dict[str, np.ndarray]:
    """One sequence as a row of its own, in the packer's field names."""
    n = len(row["tokens"])
    pad = (0, length - n)
    return {
        **{name: np.pad(values, pad) for name, values in row.items()},
        "tokens_positions": np.pad(np.arange(n, dtype=np.int32), pad),
        "tokens_segment_ids": np.pad(np.ones(n, np.int32), pad),
    }


def _task_rows(
    directory: str,
    task: str,
    tokenizer: Any,
    config: TrainConfig,
    counts: Counts,
    repeat: bool,
) -> grain.IterDataset:
    source = grain.sources.ArrayRecordDataSource(task_files(directory, task))
    records = grain.MapDataset.source(_Epochs(source, config.seed, task) if repeat else source)
    sequences = grain.experimental.FlatMapIterDataset(
        records.map(_Sequences(tokenizer, task, config, counts)).to_iter_dataset(
            grain.ReadOptions(num_threads=config.data_threads, prefetch_buffer_size=64)
        ),
        _Flatten(),
    )
    if not config.packing:
        return sequences.map(lambda row: _pad_row(row, config.seq_len))
    return grain.experimental.FirstFitPackIterDataset(
        sequences,
        length_struct=dict.fromkeys(("tokens", "targets", "weights"), config.seq_len),
        num_packing_bins=PACKING_BINS,
        seed=config.seed,
        shuffle_bins=repeat,
    )


def _to_batch(parts: Sequence[tuple[int, dict[str, np.ndarray]]]) -> Batch:
    def field(name: str, dtype: type) -> np.ndarray:
        return np.concatenate([part[name] for _, part in parts]).astype(dtype)

    return Batch(
        tokens=field("tokens", np.int32),
        targets=field("targets", np.int32),
        positions=field("tokens_positions", np.int32),
        segment_ids=field("tokens_segment_ids", np.int32),
        weights=field("weights", np.float32),
        task=np.concatenate([np.full(p["tokens"].shape, i, np.int32) for i, p in parts]),
    )


def training_batches(
    directory: str,
    tokenizer: Any,
    quotas: Mapping[str, int],
    config: TrainConfig,
    counts: dict[str, Counts] | None = None,
) -> grain.IterDataset:
    """An endless dataset of `Batch`; `quotas` is rows per batch of each task.

    `iter(…)` gives an iterator with `get_state` / `set_state`. Rows of a batch stand by task,
    by name. `counts` is filled with what was read of each task; a task none of whose first 512
    examples fits `seq_len` raises `ShardError`.
    """
    counts = counts if counts is not None else {}
    tasks = sorted(quotas)
    rows = [
        _task_rows(
            directory, task, tokenizer, config, counts.setdefault(task, Counts()), repeat=True
        ).batch(quotas[task])
        for task in tasks
    ]
    batches = grain.experimental.ZipIterDataset(rows).map(
        lambda parts: _to_batch(list(enumerate(parts)))
    )
    return grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=2)


def validation_batches(
    directory: str, tokenizer: Any, tasks: Sequence[str], task: str, config: TrainConfig
) -> Iterator[Batch]:
    """Every held-out example of one task once, in shard order; the last batch is filled up
    with empty rows. `tasks` are the trained tasks, by name: they decide `Batch.task`."""
    rows = _task_rows(directory, task, tokenizer, config, Counts(), repeat=False)
    index = list(tasks).index(task)
    for part in rows.batch(config.batch_size):
        missing = config.batch_size - len(part["tokens"])
        filled = {k: np.pad(v, ((0, missing), (0, 0))) for k, v in part.items()}
        yield _to_batch([(index, filled)])
