"""The dry run: what a training run needs and can reach, before a weight is read.

Everything is shapes: the step is compiled for the mesh from `ShapeDtypeStruct`s, and the
compiler says what memory it takes. It runs without the chips too, on simulated CPU devices
(`devices_for`). There the compiler's part is a guide and not the chip's own number: XLA's CPU
back end keeps float32 copies of bfloat16 weights and activations, which makes it larger, and
orders the work in its own way. For a training on the CPU itself it is the number that counts;
a CPU has no peak to reckon a speed from, so no speed is promised.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend.backend import clear_backends
from jax.sharding import Mesh, NamedSharding

from alignuser_jax.model import Decoder, count_parameters, split
from alignuser_jax.parallel import shardings, spec
from alignuser_jax.training.config import TrainConfig
from alignuser_jax.training.data import Batch
from alignuser_jax.training.flops import (
    Chip,
    attention_flops,
    find_chip,
    matmul_flops,
)
from alignuser_jax.training.step import (
    abstract_state,
    check_rows,
    make_train_step,
    trainable_parts,
)

MFU = 0.4
"""Share of the peak that the expected speed assumes; good LoRA runs reach it."""

USABLE = 0.92
"""Share of the HBM that a run may fill. JAX takes 0.75 of a GPU unless
XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise; the GPU launch scripts say this."""

HOST = "cpu"
"""JAX's `device_kind` of a CPU, and its name as a chip."""

WORKING = "working memory"
"""Name of the memory that the compiler reports, in `Plan.memory_bytes`."""


@dataclass(frozen=True)
class Plan:
    """What a training run needs and can reach.

    Attributes:
        base_parameters: Weights of the base model.
        adapter_parameters: Weights of the adapter.
        trainable: "lora" or "full".
        mesh: Axis -> size.
        chip: The chip that the run is meant for.
        platform: What the step was compiled for: "cpu", "gpu" or "tpu".
        rows: Rows of a step.
        length: Tokens of a row.
        accumulation: Micro-batches of a step.
        steps: Optimizer steps of the training.
        memory_bytes: Kind -> bytes on each device. All but `WORKING` follow from the shapes;
            that one is the compiler's for `platform`: gradients, activations, gathered weights.
        matmul_flops_per_token: Model FLOPs of the weights.
        attention_flops_per_token: Model FLOPs of attention.
    """

    base_parameters: int
    adapter_parameters: int
    trainable: str
    mesh: Mapping[str, int]
    chip: Chip
    platform: str
    rows: int
    length: int
    accumulation: int
    memory_bytes: Mapping[str, int]
    matmul_flops_per_token: float
    attention_flops_per_token: float
    steps: int = 1

    @property
    def devices(self) -> int:
        """Number of devices."""
        return math.prod(self.mesh.values())

    @property
    def total_bytes(self) -> int:
        """Bytes in use on each device."""
        return sum(self.memory_bytes.values())

    @property
    def usable_bytes(self) -> int:
        """Bytes of a device's memory that a run may fill."""
        return int(USABLE * self.chip.hbm_bytes)

    @property
    def fits(self) -> bool | None:
        """Whether the run fits.

        None if the shapes fit, but not with the working memory that the CPU's compiler reports
        for another chip: then only a dry run on the chip itself can tell.
        """
        if self.total_bytes <= self.usable_bytes:
            return True
        resident = self.total_bytes - self.memory_bytes[WORKING]
        guessed = self.platform == "cpu" and self.chip.name != HOST
        return None if guessed and resident <= self.usable_bytes else False

    @property
    def flops_per_token(self) -> float:
        """Model FLOPs of one token."""
        return self.matmul_flops_per_token + self.attention_flops_per_token

    @property
    def tokens_per_step(self) -> int:
        """Tokens of a step over all devices, padding included."""
        return self.rows * self.length

    @property
    def flops_per_step(self) -> float:
        """Model FLOPs of one step."""
        return self.flops_per_token * self.tokens_per_step

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens, padding included, of all devices at `MFU`; None without a known peak."""
        if self.chip.peak_flops is None:
            return None
        return self.devices * self.chip.peak_flops * MFU / self.flops_per_token

    def table(self) -> str:
        """Return the plan as text, sizes in GiB."""
        micro = f" in {self.accumulation} micro-batches" if self.accumulation > 1 else ""
        matmul = self.matmul_flops_per_token / 1e9
        attention = self.attention_flops_per_token / 1e9
        total = self.base_parameters + self.adapter_parameters
        verdict = {
            True: "yes",
            False: "no: more devices, more accumulation, or remat=full",
            None: "unknown: the shapes do, the working memory was estimated on a CPU",
        }[self.fits]
        rows = [
            (
                "parameters",
                f"{total:,}: base {self.base_parameters:,}, adapter "
                f"{self.adapter_parameters:,}; trained: {self.trainable}",
            ),
            (
                "devices",
                f"{self.devices} {self.chip.name}, "
                + " x ".join(f"{axis}={size}" for axis, size in self.mesh.items()),
            ),
            ("step", f"{self.rows} rows of {self.length} tokens{micro}"),
            (
                "training",
                f"{self.steps:,} steps, {self.steps * self.tokens_per_step:,} tokens with "
                "padding",
            ),
            ("on each device", "GiB"),
            *(
                (f"  {kind}", f"{size / 2**30:8.3f}")
                for kind, size in self.memory_bytes.items()
            ),
            ("  total", f"{self.total_bytes / 2**30:8.3f}"),
            (
                f"  of {self.chip.name}",
                f"{self.usable_bytes / 2**30:8.3f} ({USABLE:.0%} of its memory)",
            ),
            ("fits", verdict),
            ("compiled for", self.platform),
            (
                "model FLOPs",
                f"{matmul + attention:.1f} G per token: weights {matmul:.1f}, attention "
                f"{attention:.1f}; {self.flops_per_step / 1e12:,.0f} T per step",
            ),
            self._speed(),
        ]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {text}" for name, text in rows)

    def _speed(self) -> tuple[str, str]:
        """Return the table's row of speed."""
        rate = self.tokens_per_second
        if rate is None:
            unknown = "not known before it runs: training prints tokens/s"
            return "speed", f"{unknown} (docs/benchmarks.md, Training on two cores)"
        return (
            f"at {MFU:.0%} MFU",
            f"{rate / self.devices:,.0f} tokens/s per device, {rate:,.0f} in all, "
            f"{self.tokens_per_step / rate:.2f} s per step",
        )


def plan(
    decoder: Decoder, tasks: Sequence[str], config: TrainConfig, mesh: Mesh, chip: str
) -> Plan:
    """Compile one step of `config` for the mesh and add up; nothing is allocated.

    XLA's own count of FLOPs is not used: it counts the body of a loop once, and the layers, the
    micro-batches and the loss are loops.

    Args:
        decoder: From `abstract_decoder`.
        tasks: Names of the shards' tasks.
        config: The training's settings.
        mesh: From `parallel.make_mesh`, of real or simulated devices.
        chip: What the run is meant for: a name of `flops.CHIPS`, a `device_kind`, or "cpu" for
            this machine's CPU and memory.

    Raises:
        ValueError: If the chip is unknown, the mesh does not divide parameters or rows, or the
            decoder does not suit `config.trainable`.
    """
    target = this_machine(mesh.size) if chip == HOST else find_chip(chip)
    check_rows(config, mesh)
    platform = mesh.devices.flat[0].platform
    config = config.on(platform, str(decoder.dtype), decoder.config.head_dim)
    graphdef, weights = nnx.split(decoder)
    parts = trainable_parts(nnx.merge(graphdef, _placed(weights, mesh)), config.trainable)
    state, batch = abstract_state(parts, config), abstract_batch(config, mesh)
    with jax.set_mesh(mesh):
        step = make_train_step(parts, tasks, config).lower(state, parts.frozen, batch)
        memory: Any = step.compile().memory_analysis()
    _, lora, base = split(decoder)
    adapted = decoder.lora.adapted_layers(decoder.config.num_layers)
    return Plan(
        base_parameters=count_parameters(base),
        adapter_parameters=count_parameters(lora),
        trainable=config.trainable,
        mesh=dict(mesh.shape),
        chip=target,
        platform=platform,
        rows=config.batch_size,
        length=config.longest_row,
        accumulation=config.accumulation,
        memory_bytes={
            "frozen weights": _bytes_per_device(parts.frozen),
            "trained weights": _bytes_per_device(state.params),
            "optimizer state": _bytes_per_device(state.opt_state),
            "batch": _bytes_per_device(batch),
            WORKING: memory.temp_size_in_bytes
            + memory.output_size_in_bytes
            - memory.alias_size_in_bytes,
        },
        matmul_flops_per_token=matmul_flops(decoder.config, config.trainable, adapted),
        attention_flops_per_token=attention_flops(decoder.config, config.seq_len, adapted),
        steps=config.steps,
    )


def this_machine(devices: int) -> Chip:
    """Return this machine's CPU as a chip: its memory, shared by `devices` simulated ones."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Chip(HOST, None, memory // devices, (HOST,))


def abstract_batch(config: TrainConfig, mesh: Mesh) -> Batch:
    """Return the shapes of a global batch `[accumulation, rows, T]`, rows over (data, fsdp)."""
    shape = (config.accumulation, config.batch_size // config.accumulation, config.longest_row)
    spread = NamedSharding(mesh, spec(None, "batch", None))
    dtypes = {name: jnp.float32 if name == "weights" else jnp.int32 for name in Batch._fields}
    return Batch(
        **{n: jax.ShapeDtypeStruct(shape, d, sharding=spread) for n, d in dtypes.items()}
    )


def devices_for(count: int) -> list[jax.Device]:
    """Return `count` devices: this machine's own if it has as many, else simulated CPU ones.

    For simulated ones JAX's back ends are started anew, so call it before any array exists.
    """
    if len(jax.devices()) < count:
        clear_backends()
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", count)
    return jax.devices()[:count]


def _placed(state: nnx.State, mesh: Mesh) -> nnx.State:
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        state,
        shardings(state, mesh),
    )


def _bytes_per_device(tree: Any) -> int:
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )
