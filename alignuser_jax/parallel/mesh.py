"""The device mesh and the one table that maps logical axis names to its axes.

Parameters carry logical names in their `axes` metadata and activations are constrained by the
same names, so no other module mentions a mesh axis. Without a mesh everything is a no-op.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

RULES: dict[str, str | tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "embed": "fsdp",  # of parameters; the residual stream keeps its last axis whole
    "heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
}
"""Logical axis name -> mesh axis or axes; `None` as a name means replicated."""


def make_mesh(
    data: int = 1, fsdp: int = 1, tensor: int = 1, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """A mesh with axes (data, fsdp, tensor); enter it with `jax.set_mesh(mesh)`."""
    devices = jax.devices() if devices is None else devices
    if data * fsdp * tensor != len(devices):
        raise ValueError(
            f"a mesh of data={data} x fsdp={fsdp} x tensor={tensor} needs "
            f"{data * fsdp * tensor} devices, but there are {len(devices)}; "
            "choose sizes whose product is the number of devices"
        )
    return jax.make_mesh(
        (data, fsdp, tensor), ("data", "fsdp", "tensor"), (AxisType.Auto,) * 3, devices=devices
    )


def spec(*axes: str | None) -> PartitionSpec:
    """The partition of an array whose dimensions carry these logical names."""
    unknown = [name for name in axes if name is not None and name not in RULES]
    if unknown:
        raise ValueError(f"unknown logical axes {unknown}; known are {sorted(RULES)}")
    return PartitionSpec(*(name and RULES[name] for name in axes))


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """`x` laid out by its logical axes under the current mesh; `x` itself without one."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, spec(*axes))


def shardings(state: nnx.State, mesh: Mesh) -> nnx.State:
    """A `NamedSharding` for each leaf of `state` (arrays or `ShapeDtypeStruct`s), as a state.

    Axes in front of the named ones (stacked layers) are replicated. Raises `ValueError` naming
    every dimension that its mesh axis does not divide; of an axis of heads (a weight's `heads`
    metadata says how many) each must stay whole.
    """
    problems = []

    def one(path, variable):
        shape, axes = variable.get_value().shape, variable.get_metadata("axes")
        axes = (None,) * (len(shape) - len(axes)) + tuple(axes)
        heads = variable.get_metadata("heads", None)
        for size, name in zip(shape, axes, strict=True):
            size = heads if name == "heads" and heads else size
            if name and size % (shards := mesh.shape[RULES[name]]):
                where = ".".join(str(getattr(part, "key", part)) for part in path)
                problems.append(f"{where}: axis {name!r} of {size} into {shards}")
        return variable.replace(NamedSharding(mesh, spec(*axes)))

    result = jax.tree.map_with_path(one, state, is_leaf=lambda x: isinstance(x, nnx.Variable))
    if problems:
        raise ValueError("the mesh does not divide these parameters: " + "; ".join(problems))
    return result
