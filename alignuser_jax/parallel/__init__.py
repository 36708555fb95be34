"""The device mesh, the table of logical axes, and the processes of several hosts."""

from alignuser_jax.parallel.hosts import Hosts, start_hosts
from alignuser_jax.parallel.mesh import (
    RULES,
    batch_shards,
    constrain,
    make_mesh,
    mesh_sizes,
    place,
    replicate,
    shardings,
    show_cpu_devices,
    spec,
)

__all__ = [
    "RULES",
    "Hosts",
    "batch_shards",
    "constrain",
    "make_mesh",
    "mesh_sizes",
    "place",
    "replicate",
    "shardings",
    "show_cpu_devices",
    "spec",
    "start_hosts",
]
