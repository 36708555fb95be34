"""The device mesh and the one table that maps logical axis names to its axes.

Parameters carry logical names in their `axes` metadata and activations are constrained by the
same names, so no other module mentions a mesh axis. Without a mesh everything is a no-op.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeVar

import jax
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

RULES: dict[str, str | tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "data": "data",  # of a batch whose columns, not rows, are spread over fsdp
    "embed": "fsdp",  # of parameters; the residual stream keeps its last axis whole
    "heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
}
"""Logical axis name -> mesh axis or axes; `None` as a name means replicated."""
AXES = ("data", "fsdp", "tensor")
Tree = TypeVar("Tree")


def make_mesh(
    data: int = 1, fsdp: int = 1, tensor: int = 1, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """A mesh with axes (data, fsdp, tensor); enter it with `jax.set_mesh(mesh)`."""
    devices = jax.devices() if devices is None else devices
    sizes = mesh_sizes({"data": data, "fsdp": fsdp, "tensor": tensor}, len(devices))
    return jax.make_mesh(tuple(sizes.values()), AXES, (AxisType.Auto,) * 3, devices=devices)


def batch_shards(mesh: Mesh | jax.sharding.AbstractMesh) -> int:
    """How many parts the rows of a batch are cut into."""
    return math.prod(mesh.shape[axis] for axis in RULES["batch"])


def mesh_sizes(asked: Mapping[str, int], devices: int) -> dict[str, int]:
    """The sizes of all axes; without an fsdp size that axis takes the devices left.

    Raises `ValueError` with the numbers where the axes do not make up the devices.
    """
    unknown = sorted(set(asked) - set(AXES))
    if unknown or any(size < 1 for size in asked.values()):
        raise ValueError(f"mesh {dict(asked)}: expected sizes of 1 or more of {AXES}")
    sizes = {"data": 1, "tensor": 1, **asked}
    sizes.setdefault("fsdp", max(1, devices // (sizes["data"] * sizes["tensor"])))
    if math.prod(sizes.values()) != devices:
        given = " x ".join(f"{axis}={sizes[axis]}" for axis in AXES)
        raise ValueError(
            f"a mesh of {given} needs {math.prod(sizes.values())} devices, but there are"
            f" {devices}: choose sizes whose product is {devices}"
        )
    return {axis: sizes[axis] for axis in AXES}


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


def place(state: nnx.State, mesh: Mesh) -> nnx.State:
    """`state` laid out over `mesh` by its logical axes, without a copy where it is so already.

    Every process passes the same values. Raises `ValueError` as `shardings` does.
    """

    def one(array, where):
        if isinstance(array, jax.Array) and array.sharding.is_equivalent_to(where, array.ndim):
            return array
        if not where.is_fully_addressable and array.is_fully_addressable:
            array = np.asarray(array)
        return jax.device_put(array, where)

    return jax.tree.map(one, state, shardings(state, mesh))


def replicate(tree: Tree, mesh: Mesh) -> Tree:
    """Every leaf whole on every device, so that each process can read it."""
    return jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, PartitionSpec()))(tree)
