"""Run several processes as one program: start them, cut a batch, and agree on values.

With one process every function here works on local values only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from alignuser_jax.parallel.mesh import PyTree, spec


def start_hosts(
    coordinator: str | None = None, processes: int | None = None, process: int | None = None
) -> None:
    """Join the processes of one program. Call it before anything else touches a device.

    Without arguments the cluster is detected (Slurm, GKE, Cloud TPU, Open MPI: see
    `jax.distributed.initialize`).

    Args:
        coordinator: `host:port` of process 0.
        processes: How many processes there are.
        process: The number of this one, from 0.

    Raises:
        ValueError: If only some of the three are given.
        RuntimeError: If no cluster is detected.

    Example:
        >>> start_hosts("10.0.0.2:8476", processes=4, process=0)
    """
    arguments = {"coordinator": coordinator, "processes": processes, "process": process}
    missing = [name for name, value in arguments.items() if value is None]
    if missing and len(missing) < len(arguments):
        raise ValueError(f"{missing} are missing: give coordinator, processes and process")
    try:
        jax.distributed.initialize(coordinator, processes, process)
    except ValueError as error:  # JAX complains of its arguments if it detects no cluster
        raise RuntimeError(
            f"no cluster was joined ({error}): run under Slurm, GKE, Cloud TPU or MPI, or give"
            " the coordinator's host:port, the number of processes and this one's number"
        ) from error


class Hosts:
    """The processes of a mesh, and this one's part in them.

    Attributes:
        mesh: The mesh over the devices of all processes.
        first: Whether this is process 0, which prints and writes.
        several: Whether there is more than one process.
    """

    def __init__(self, mesh: Mesh):
        self.mesh = mesh
        self.first = jax.process_index() == 0
        self.several = jax.process_count() > 1
        self._batch = NamedSharding(mesh, spec(None, "batch", None))

    def rows(self, accumulation: int, batch_size: int) -> list[int]:
        """Return the numbers of the rows of a batch that this process's devices hold.

        Args:
            accumulation: Micro-batches in the batch.
            batch_size: Rows of the whole batch; row b of micro-batch a has the number
                a * (batch_size / accumulation) + b.
        """
        shape = (accumulation, batch_size // accumulation, 1)
        numbers = np.arange(batch_size).reshape(shape)
        places = self._batch.addressable_devices_indices_map(shape).values()
        held = {tuple(numbers[place].ravel()) for place in places}
        return sorted({int(number) for part in held for number in part})

    def global_batch(self, batch: PyTree, batch_size: int) -> PyTree:
        """Make arrays `[A, B, T]` over the mesh of the rows `[A, b, T]` of this process."""
        if not self.several:
            return jax.device_put(batch, self._batch)

        def one(local: np.ndarray) -> jax.Array:
            accumulation, _, length = local.shape
            shape = (accumulation, batch_size // accumulation, length)
            return jax.make_array_from_process_local_data(self._batch, local, shape)

        return jax.tree.map(one, batch)

    def gather(self, mine: Mapping[str, Any]) -> dict[str, Any]:
        """Return the entries of all processes. Every process must call it; values are JSON."""
        if not self.several:
            return dict(mine)
        text = np.frombuffer(json.dumps(mine).encode(), np.uint8)
        sizes = multihost_utils.process_allgather(np.asarray(len(text)))
        padded = np.zeros(int(sizes.max()), np.uint8)
        padded[: len(text)] = text
        texts = multihost_utils.process_allgather(padded)
        parts = [json.loads(bytes(t[:n])) for t, n in zip(texts, sizes, strict=True)]
        return {name: value for part in parts for name, value in part.items()}

    def largest(self, value: int) -> jax.Array:
        """Return the largest `value` of all processes, computed behind what the devices run.

        Every process must call it. `int(...)` of the result waits for it.
        """
        mine = np.full(len(self.mesh.local_devices), value, np.int32)
        across = NamedSharding(self.mesh, PartitionSpec(self.mesh.axis_names))
        size = (self.mesh.size,)
        return _largest(jax.make_array_from_process_local_data(across, mine, size))

    def meet(self, name: str) -> None:
        """Wait until every process has called this with the same name."""
        if self.several:
            multihost_utils.sync_global_devices(name)


@jax.jit
def _largest(values: jax.Array) -> jax.Array:
    return values.max()
