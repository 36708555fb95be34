"""Grain batches of the shards: a function of (shards, tokenizer, config) and the step alone.

A batch holds fixed quotas of rows per task, and every row of the batch is a stream of its own.
Row r of a task's q rows takes every q-th example of the task's endless order, which (seed,
epoch) shuffles, and packs the examples or pads them one by one. So a process reads only the
rows of its own devices, and a batch is the same however many processes, devices or
micro-batches share it. The state is one small JSON value per row; setting it gives the same
rows again.
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

from alignuser_jax.language import TextTokenizer
from alignuser_jax.language.render import render
from alignuser_jax.randomness import generator_of, stable_key
from alignuser_jax.records import Example, Message
from alignuser_jax.shards import ShardError, TaskRecords, decode_example
from alignuser_jax.training.config import TrainConfig

PACKING_BINS = 16
"""Rows of a stream that are filled at the same time (first fit)."""

SORTED = 64
"""Examples of a stream that are sorted by length together, without packing."""

_GUARD = 512
"""So many examples of a task are read before none fitting is an error."""

Values = Any
"""A field of a batch: a NumPy array as it is read, a JAX array once it is on the devices."""


class Batch(NamedTuple):
    """The rows of one step: A micro-batches of B rows of T tokens.

    A row holds examples of one task, packed, or one example alone.

    Attributes:
        tokens: Token ids.
        targets: `targets[a, b, t]` is the token after `tokens[a, b, t]` in the same example.
        positions: Counted from 0 within each segment.
        segment_ids: Number of the example within its row, from 1; 0 is padding.
        weights: Weight in the loss; 0 is not trained on.
        task: Index of the row's task in the sorted task names.
    """

    tokens: Int[Values, "A B T"]
    targets: Int[Values, "A B T"]
    positions: Int[Values, "A B T"]
    segment_ids: Int[Values, "A B T"]
    weights: Float[Values, "A B T"]
    task: Int[Values, "A B T"]


@dataclass
class Counts:
    """What became of the examples that this process has read, those read ahead included.

    Attributes:
        read: Number of examples.
        too_long: How many were refused because they have more than `seq_len` tokens.
        untrained: How many were refused because they have nothing to train on.
    """

    read: int = 0
    too_long: int = 0
    untrained: int = 0

    @property
    def refused(self) -> int:
        """How many were refused for any reason."""
        return self.too_long + self.untrained


def split_replies(example: Example) -> list[Example]:
    """Return one example per trained reply: the turns up to it, earlier replies untrained.

    Needed if a chat template renders a reply differently once others follow it.
    """
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
    tokenizer: TextTokenizer,
    example: Example,
    config: TrainConfig,
    counts: Counts | None = None,
) -> dict[str, np.ndarray] | None:
    """Return one conversation as `tokens`, `targets` and `weights`, each `[n]`, n <= `seq_len`.

    Tokens after the last trained one are dropped. A longer conversation is refused: cut on its
    left it would lose the system message and the persona, which no prompt lacks.

    Args:
        tokenizer: The decoder's tokenizer.
        example: The conversation.
        config: The training's settings.
        counts: Is updated with what happened.

    Returns:
        The arrays by name, or None if the example is refused.
    """
    counts = counts if counts is not None else Counts()
    rendered = render(tokenizer, example.messages)
    tokens = np.asarray(rendered.tokens, np.int32)
    weights = np.where(rendered.is_action, config.action_weight, 1.0) * rendered.weights
    trained = np.flatnonzero(weights[1:] > 0) + 1
    if not len(trained):
        counts.untrained += 1
        return None
    later = np.flatnonzero(np.diff(trained) > 1)
    if len(later):  # the first reply ends where tokens follow that are not trained
        weights[trained[: later[0] + 1]] *= config.first_reply_weight
    end = trained[-1] + 1
    if end > config.seq_len + 1:
        counts.too_long += 1
        return None
    tokens, weights = tokens[:end], weights[:end].astype(np.float32)
    weights = weights[1:]
    if config.normalize == "task_examples":
        weights = weights / weights.sum(dtype=np.float32)
    return {"tokens": tokens[:-1], "targets": tokens[1:], "weights": weights}


class _Sequences(grain.transforms.Map):
    """Map the bytes of a record to its sequences."""

    def __init__(
        self, tokenizer: TextTokenizer, task: str, config: TrainConfig, counts: Counts
    ):
        self._tokenizer, self._task, self._config = tokenizer, task, config
        self._counts = counts
        self._prefix_stable = getattr(tokenizer, "prefix_stable", True)

    def map(self, record: bytes) -> list[dict[str, np.ndarray]]:
        example = decode_example(record)
        examples = [example] if self._prefix_stable else split_replies(example)
        own = Counts(read=len(examples))
        rows = [sequence(self._tokenizer, e, self._config, own) for e in examples]
        if len(rows) > 1 and rows[0] is not None:
            rows[0]["weights"] *= np.float32(self._config.first_reply_weight)
        counts = self._counts
        with _COUNTING:  # the streams of a task share one count
            counts.read += own.read
            counts.too_long += own.too_long
            counts.untrained += own.untrained
            if counts.refused == counts.read >= _GUARD:
                raise ShardError(
                    f"none of the first {counts.read} examples of task {self._task!r}"
                    f" fits seq_len={self._config.seq_len} with its trained text: raise"
                    " seq_len or build shorter examples"
                )
        return [row for row in rows if row is not None]


_COUNTING = threading.Lock()


class _Stream:
    """An endless data source: every `stride`-th record from `start` on in a task's order.

    Each epoch of that order is a permutation named by (seed, name, epoch). (Grain's own shuffle
    walks cycles of 2^16 indices: milliseconds a record of a small task.)
    """

    def __init__(
        self, source: Sequence[bytes], seed: int, name: str, start: int = 0, stride: int = 1
    ):
        self._source, self._name = source, (seed, name)
        self._start, self._stride = start, stride
        self._order = functools.lru_cache(maxsize=4)(self._permutation)

    def _permutation(self, epoch: int) -> np.ndarray:
        key = stable_key("shuffle", *self._name, epoch)
        return generator_of(key).permutation(len(self._source))

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> bytes:
        epoch, place = divmod(self._start + index * self._stride, len(self._source))
        return self._source[int(self._order(epoch)[place])]


class _Flatten(grain.experimental.FlatMapTransform):
    def flat_map(self, element: list[dict[str, np.ndarray]]) -> Sequence[dict[str, np.ndarray]]:
        return element


class _ByLength(grain.experimental.FlatMapTransform):
    """Order windows by length, alike in all streams, so that rows of a batch have like lengths.

    The order is drawn once at random: ascending, lengths would rise over and over.
    """

    def __init__(self, seed: int):
        key = stable_key("lengths", seed)
        self._order = generator_of(key).permutation(SORTED)

    def flat_map(self, element: list[dict[str, np.ndarray]]) -> Sequence[dict[str, np.ndarray]]:
        ranked = sorted(element, key=lambda row: len(row["tokens"]))
        return [ranked[place] for place in self._order]


def _alone(row: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return one sequence as a row of its own, in the packer's field names, not yet padded."""
    n = len(row["tokens"])
    return {
        **row,
        "tokens_positions": np.arange(n, dtype=np.int32),
        "tokens_segment_ids": np.ones(n, np.int32),
    }


def _rows(records: grain.MapDataset, sequences: _Sequences, threads: int) -> grain.IterDataset:
    """Return the sequences of records, one after the other."""
    read = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=16 * threads)
    return grain.experimental.FlatMapIterDataset(
        records.map(sequences).to_iter_dataset(read), _Flatten()
    )


def _packed(
    sequences: grain.IterDataset, config: TrainConfig, bins: int, shuffle: bool
) -> grain.IterDataset:
    return grain.experimental.FirstFitPackIterDataset(
        sequences,
        length_struct=dict.fromkeys(("tokens", "targets", "weights"), config.longest_row),
        num_packing_bins=bins,
        seed=config.seed,
        shuffle_bins=shuffle,
    )


_PACKED_FIELDS: dict[str, tuple[str, type[np.generic]]] = {
    "tokens": ("tokens", np.int32),
    "targets": ("targets", np.int32),
    "positions": ("tokens_positions", np.int32),
    "segment_ids": ("tokens_segment_ids", np.int32),
    "weights": ("weights", np.float32),
}


def _to_batch(
    rows: Sequence[dict[str, np.ndarray]],
    tasks: Sequence[int],
    config: TrainConfig,
    places: Sequence[int] | None = None,
) -> Batch:
    """Pad rows to the shortest of the config's lengths that holds them all.

    Args:
        rows: Rows in the packer's field names.
        tasks: Index of each row's task.
        config: The training's settings.
        places: Which of the rows the batch holds; None is all.
    """
    longest = max(len(row["tokens"]) for row in rows)
    length = next(size for size in config.lengths if size >= longest)
    places = range(len(rows)) if places is None else places
    shape = (config.accumulation, -1, length)

    def field(name: str, dtype: type[np.generic]) -> np.ndarray:
        values: np.ndarray = np.zeros((len(places), length), dtype)
        for n, place in enumerate(places):
            values[n, : len(rows[place][name])] = rows[place][name]
        return values.reshape(shape)

    fields = {name: field(*source) for name, source in _PACKED_FIELDS.items()}
    task = np.repeat(np.asarray([tasks[n] for n in places], np.int32), length)
    return Batch(**fields, task=task.reshape(shape))


class Batches:
    """An endless iterator of `Batch`, filled ahead by a thread, with a state per row.

    The rows of a batch are numbered 0 to `batch_size - 1`, micro-batch after micro-batch, the
    tasks in the order of their names.

    Args:
        directory: Folder of the shards.
        tokenizer: The decoder's tokenizer.
        quotas: Rows per batch of each task.
        config: The training's settings, decided (`TrainConfig.on`).
        rows: Numbers of the rows that it yields; None is all.
        counts: Is filled with what was read of each task.

    Raises:
        ShardError: While iterating, if none of the first 512 examples of a task fits `seq_len`.
    """

    def __init__(
        self,
        directory: str,
        tokenizer: TextTokenizer,
        quotas: Mapping[str, int],
        config: TrainConfig,
        *,
        rows: Sequence[int] | None = None,
        counts: dict[str, Counts] | None = None,
    ):
        if config.packing is None:
            raise ValueError("packing is None, which is not decided: use config.on(platform)")
        counts = {} if counts is None else counts
        tasks = [(i, t, n) for i, t in enumerate(sorted(quotas)) for n in range(quotas[t])]
        rows = list(range(len(tasks))) if rows is None else list(rows)
        # Without packing, a batch is as long as its longest row: every process reads all rows.
        self._streams = rows if config.packing else list(range(len(tasks)))
        threads = max(1, config.data_threads // len(self._streams))
        sources = {t: TaskRecords(directory, t) for t in quotas}

        def stream(row: int) -> grain.IterDataset:
            _, task, place = tasks[row]
            source = _Stream(sources[task], config.seed, task, place, quotas[task])
            counted = counts.setdefault(task, Counts())
            read = _Sequences(tokenizer, task, config, counted)
            sequences = _rows(grain.MapDataset.source(source), read, threads)
            if config.packing:
                return _packed(sequences, config, PACKING_BINS, shuffle=True)
            windows = sequences.batch(SORTED, batch_fn=list)
            ordered = grain.experimental.FlatMapIterDataset(windows, _ByLength(config.seed))
            return ordered.map(_alone)

        indices = [tasks[row][0] for row in self._streams]
        places = [self._streams.index(row) for row in rows]
        together = grain.experimental.ZipIterDataset([stream(row) for row in self._streams])
        batches = together.map(lambda parts: _to_batch(parts, indices, config, places))
        self._iterator = iter(
            grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=2)
        )

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        return next(self._iterator)

    def get_state(self) -> dict[str, Any]:
        """Return the state of each row's stream, by row number as text."""
        states = self._iterator.get_state()["parents"]
        return {str(row): state for row, state in zip(self._streams, states, strict=True)}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a state, which may hold more rows than this process reads."""
        self._iterator.set_state({"parents": [state[str(row)] for row in self._streams]})


def validation_batches(
    directory: str,
    tokenizer: TextTokenizer,
    tasks: Sequence[str],
    task: str,
    config: TrainConfig,
) -> Iterator[Batch]:
    """Yield every held-out example of one task once, in shard order.

    The last batch is filled up with empty rows.

    Args:
        directory: Folder of the held-out shards.
        tokenizer: The decoder's tokenizer.
        tasks: The trained tasks, by name: they decide `Batch.task`.
        task: The task to read.
        config: The training's settings, decided.
    """
    index = list(tasks).index(task)
    read = _Sequences(tokenizer, task, config, Counts())
    source = grain.MapDataset.source(TaskRecords(directory, task))
    sequences = _rows(source, read, config.data_threads)
    rows = (
        _packed(sequences, config, 64, shuffle=False)
        if config.packing
        else sequences.map(_alone)
    )
    empty = {name: np.zeros(0, dtype) for name, dtype in _PACKED_FIELDS.values()}
    for part in rows.batch(config.batch_size, batch_fn=list):
        part = [*part, *[empty] * (config.batch_size - len(part))]
        yield _to_batch(part, [index] * config.batch_size, config)
