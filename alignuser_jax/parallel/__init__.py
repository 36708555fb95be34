"""Where arrays live: one mesh, one table from logical axis names to mesh axes; many hosts."""

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
    "spec",
    "start_hosts",
]
