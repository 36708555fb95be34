"""Several processes as one program: start-up, what each holds of a batch, what all agree on.

With one process everything here is a plain function of local values.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from alignuser_jax.parallel.mesh import spec

Tree = TypeVar("Tree")


def start_hosts(
    coordinator: str | None = None, processes: int | None = None, process: int | None = None
) -> None:
    """Joins the processes of one program; before anything else touches a device.

    Without arguments the cluster is detected (Slurm, GKE, Cloud TPU, Open MPI: see
    `jax.distributed.initialize`); else `coordinator` is host:port of process 0.
    Raises `ValueError` where only some are given, `RuntimeError` where none is detected.
    """
    given = {"coordinator": coordinator, "processes": processes, "process": process}
    missing = [name for name, value in given.items() if value is None]
    if missing and len(missing) < len(given):
        raise ValueError(f"{missing} are missing: give coordinator, processes and process")
    try:
        jax.distributed.initialize(coordinator, processes, process)
    except ValueError as error:  # what JAX says where it detects nothing is about arguments
        raise RuntimeError(
            f"no cluster was joined ({error}): run under Slurm, GKE, Cloud TPU or MPI, or give"
            " the coordinator's host:port, the number of processes and this one's number"
        ) from error


class Hosts:
    """The processes of a mesh, and this one's part in them."""

    def __init__(self, mesh: Mesh):
        self.mesh = mesh
        self.first = jax.process_index() == 0
        self.several = jax.process_count() > 1
        self._batch = NamedSharding(mesh, spec(None, "batch", None))

    def rows(self, accumulation: int, batch_size: int) -> list[int]:
        """The numbers of the rows that this process's devices hold of a batch of
        `accumulation` micro-batches: row b of micro-batch a is a * rows + b."""
        shape = (accumulation, batch_size // accumulation, 1)
        numbers = np.arange(batch_size).reshape(shape)
        places = self._batch.addressable_devices_indices_map(shape).values()
        held = {tuple(numbers[place].ravel()) for place in places}
        return sorted({int(number) for part in held for number in part})

    def global_batch(self, batch: Tree, batch_size: int) -> Tree:
        """Arrays `[A, B, T]` over the mesh out of the rows `[A, b, T]` of this process."""
        if not self.several:
            return jax.device_put(batch, self._batch)

        def one(local: np.ndarray) -> jax.Array:
            accumulation, _, length = local.shape
            shape = (accumulation, batch_size // accumulation, length)
            return jax.make_array_from_process_local_data(self._batch, local, shape)

        return jax.tree.map(one, batch)

    def gather(self, mine: Mapping[str, Any]) -> dict[str, Any]:
        """The entries of all processes; every process calls it, values are JSON."""
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
        """The largest `value` of all processes, computed after what runs on the devices now.

        Every process asks; `int(...)` of the answer waits for it."""
        mine = np.full(len(self.mesh.local_devices), value, np.int32)
        across = NamedSharding(self.mesh, PartitionSpec(self.mesh.axis_names))
        size = (self.mesh.size,)
        return _largest(jax.make_array_from_process_local_data(across, mine, size))

    def meet(self, name: str) -> None:
        """Returns once every process has come here."""
        if self.several:
            multihost_utils.sync_global_devices(name)


@jax.jit
def _largest(values: jax.Array) -> jax.Array:
    return values.max()
