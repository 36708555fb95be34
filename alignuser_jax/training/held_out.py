"""Measure the losses on validation shards, as training measures its own."""

from __future__ import annotations

import os
from collections.abc import Sequence

import jax
import numpy as np
from flax import nnx

from alignuser_jax.language import TextTokenizer
from alignuser_jax.parallel import Hosts
from alignuser_jax.shards import ShardError, read_manifest
from alignuser_jax.training.config import TrainConfig
from alignuser_jax.training.data import validation_batches
from alignuser_jax.training.step import Parts, make_eval_step


class HeldOut:
    """The held-out examples of the trained tasks.

    Every process reads all of them and measures its own rows of each batch.

    Args:
        tokenizer: The decoder's tokenizer.
        tasks: The trained tasks, by name.
        config: The training's settings.
        parts: The decoder.
        directory: Folder of the validation shards; None if there are none.
        hosts: The processes.

    Attributes:
        tasks: The trained tasks that have validation shards.
    """

    def __init__(
        self,
        tokenizer: TextTokenizer,
        tasks: Sequence[str],
        config: TrainConfig,
        parts: Parts,
        directory: str | os.PathLike[str] | None,
        hosts: Hosts,
    ):
        self._directory, self._tokenizer, self._trained = str(directory), tokenizer, list(tasks)
        available = read_manifest(directory)["tasks"] if directory is not None else ()
        self.tasks = [task for task in tasks if task in available]
        rows = hosts.rows(config.accumulation, config.batch_size)
        self._config, self._hosts, self._rows = config, hosts, rows
        self._frozen, self._step = parts.frozen, make_eval_step(parts, tasks, config)

    def measure(self, params: nnx.State) -> dict[str, dict[str, float]]:
        """Task -> {"loss": Σ w·nll / Σ w over its examples, "weight": Σ w}.

        Raises:
            ShardError: If none of the examples of a task fits `seq_len`.
        """
        return {task: self._measure(params, task) for task in self.tasks}

    def total(self, measured: dict[str, dict[str, float]]) -> float | None:
        """Return the sum of the losses times their lambdas; None without validation shards."""
        weights = self._config.task_weights
        terms = [weights.get(task, 1.0) * entry["loss"] for task, entry in measured.items()]
        return sum(terms) if terms else None

    def _measure(self, params: nnx.State, task: str) -> dict[str, float]:
        config, nll, weight = self._config, 0.0, 0.0
        batches = validation_batches(
            self._directory, self._tokenizer, self._trained, task, config
        )
        for number, batch in enumerate(batches):
            if config.eval_batches is not None and number >= config.eval_batches:
                break
            mine = jax.tree.map(self._pick, batch)
            placed = self._hosts.global_batch(mine, config.batch_size)
            sums, weights = jax.device_get(self._step(params, self._frozen, placed))
            nll, weight = nll + float(sums.sum()), weight + float(weights.sum())
        if not weight:
            raise ShardError(
                f"no held-out example of task {task!r} in {self._directory} fits"
                f" seq_len={config.seq_len}: raise it or build shorter examples"
            )
        return {"loss": nll / weight, "weight": weight}

    def _pick(self, whole: np.ndarray) -> np.ndarray:
        """Return this process's rows `[A, b, T]` of a batch's field `[A, B, T]`."""
        rows = whole.reshape(-1, whole.shape[-1])[self._rows]
        return rows.reshape(len(whole), -1, whole.shape[-1])
