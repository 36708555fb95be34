"""Make the device mesh, and map logical axis names to its axes in one table.

Parameters carry logical names in their `axes` metadata and activations are constrained by the
same names, so no other module mentions a mesh axis. Without a mesh everything is a no-op.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

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
"""Logical axis name to mesh axis or axes; a dimension without a name is replicated."""

AXES = ("data", "fsdp", "tensor")
"""The axes of every mesh; an axis of size 1 does nothing."""

PyTree = TypeVar("PyTree")
"""Any nesting of containers with arrays as leaves; what comes out is nested alike."""


def make_mesh(
    data: int = 1, fsdp: int = 1, tensor: int = 1, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """Make a mesh with axes (data, fsdp, tensor); enter it with `jax.set_mesh(mesh)`.

    Args:
        data: Copies of the parameters, each with its own part of the batch.
        fsdp: Devices over which parameters and batch are cut.
        tensor: Devices over which heads, hidden units and the vocabulary are cut.
        devices: The devices; all of them by default.

    Raises:
        ValueError: If the sizes do not make up the devices.

    Example:
        >>> mesh = make_mesh(fsdp=4, tensor=2)  # on 8 devices
        >>> with jax.set_mesh(mesh):
        ...     train(...)
    """
    devices = jax.devices() if devices is None else devices
    sizes = mesh_sizes({"data": data, "fsdp": fsdp, "tensor": tensor}, len(devices))
    return jax.make_mesh(tuple(sizes.values()), AXES, (AxisType.Auto,) * 3, devices=devices)


def show_cpu_devices(count: int) -> None:
    """Let JAX show `count` devices on a CPU, for programs that run side by side.

    It does nothing once JAX has started, and changes no other platform.

    Source: the option `jax_num_cpu_devices` in JAX's documentation.
    """
    with suppress(RuntimeError):  # JAX has started
        jax.config.update("jax_num_cpu_devices", count)


def batch_shards(mesh: Mesh | jax.sharding.AbstractMesh) -> int:
    """Return how many parts the rows of a batch are cut into."""
    return math.prod(mesh.shape[axis] for axis in RULES["batch"])


def mesh_sizes(wanted: Mapping[str, int], devices: int) -> dict[str, int]:
    """Return the sizes of all axes; without a size for fsdp it takes the devices left over.

    Args:
        wanted: Axis to its size; axes that are missing have size 1.
        devices: How many devices there are.

    Raises:
        ValueError: If an axis is unknown, or the sizes do not make up the devices.
    """
    unknown = sorted(set(wanted) - set(AXES))
    if unknown or any(size < 1 for size in wanted.values()):
        raise ValueError(f"mesh {dict(wanted)}: expected sizes of 1 or more of {AXES}")
    sizes = {"data": 1, "tensor": 1, **wanted}
    sizes.setdefault("fsdp", max(1, devices // (sizes["data"] * sizes["tensor"])))
    if math.prod(sizes.values()) != devices:
        product = " x ".join(f"{axis}={sizes[axis]}" for axis in AXES)
        raise ValueError(
            f"a mesh of {product} needs {math.prod(sizes.values())} devices, but there are"
            f" {devices}: choose sizes whose product is {devices}"
        )
    return {axis: sizes[axis] for axis in AXES}


def spec(*axes: str | None) -> PartitionSpec:
    """Return the partition of an array whose dimensions carry these logical names.

    Raises:
        ValueError: If a name is not in `RULES`.
    """
    unknown = [name for name in axes if name is not None and name not in RULES]
    if unknown:
        raise ValueError(f"unknown logical axes {unknown}; known are {sorted(RULES)}")
    return PartitionSpec(*(name and RULES[name] for name in axes))


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Lay out `x` by its logical axes under the current mesh; without a mesh return `x`."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, spec(*axes))


def shardings(state: nnx.State, mesh: Mesh) -> nnx.State:
    """Return a `NamedSharding` for each leaf of a state, as a state.

    Dimensions in front of the named ones (stacked layers) are replicated.

    Args:
        state: Arrays or `ShapeDtypeStruct`s whose metadata has `axes`, and `heads` for weights
            of attention.
        mesh: The mesh.

    Raises:
        ValueError: If a mesh axis does not divide a dimension, or would cut a head; names all.
    """
    problems = []

    def one(path: tuple[Any, ...], variable: nnx.Variable) -> nnx.Variable:
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
    """Lay out a state over the mesh by its logical axes; what lies so already is not copied.

    Every process must pass the same values.

    Raises:
        ValueError: As `shardings` does.
    """

    def one(array: jax.Array, where: NamedSharding) -> jax.Array:
        if isinstance(array, jax.Array) and array.sharding.is_equivalent_to(where, array.ndim):
            return array
        if not where.is_fully_addressable and array.is_fully_addressable:
            return jax.device_put(np.asarray(array), where)
        return jax.device_put(array, where)

    return jax.tree.map(one, state, shardings(state, mesh))


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """Copy every leaf whole to every device, so that each process can read it."""
    return jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, PartitionSpec()))(tree)
