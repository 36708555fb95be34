"""Checkpoints that resume bit for bit, or are refused.

A checkpoint holds the trained weights, the optimizer, the step, the data iterator and the
settings that they belong to. Orbax writes it in the background and renames it when it is whole,
so that a half-written one is never read. The frozen base is never saved.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import NamedSharding, PartitionSpec
from orbax.checkpoint.checkpoint_managers import preservation_policy as policies

from alignuser_jax.durable.whole import SOFTWARE, WRITTEN_BY, refuse_other
from alignuser_jax.model.config import LoraConfig
from alignuser_jax.parallel.mesh import PyTree


def flat(tree: Any) -> dict[str, Any]:
    """Return the leaves of `tree` by dotted path, in the tree's order."""

    def name(path: tuple[Any, ...]) -> str:
        parts = (getattr(k, "key", getattr(k, "name", getattr(k, "idx", k))) for k in path)
        return ".".join(str(part) for part in parts)

    return {name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def weights_hash(tree: Any, per_leaf: int = 1024) -> str:
    """Return a hash of names, shapes and some values of each leaf.

    It is the same however the leaves lie on devices and processes.

    Args:
        tree: A tree of arrays.
        per_leaf: About how many evenly spaced values of a leaf are hashed.
    """

    def sample(leaf: jax.Array) -> jax.Array:
        # By coordinates: flattening a sharded array would gather all of it.
        places = np.arange(0, leaf.size, max(1, leaf.size // per_leaf))
        if not leaf.ndim:
            return leaf[None]
        values = leaf[np.unravel_index(places, leaf.shape)]
        where = leaf.sharding
        if isinstance(where, NamedSharding):
            values = jax.device_put(values, NamedSharding(where.mesh, PartitionSpec()))
        return values

    digest = hashlib.blake2b(digest_size=16)
    for name, leaf in flat(tree).items():
        digest.update(f"{name}{leaf.shape}{leaf.dtype}".encode())
        digest.update(np.asarray(sample(leaf)).tobytes())
    return digest.hexdigest()


class Checkpoints:
    """The checkpoints of one run, in `directory/<step>/`.

    On several processes all of them save and restore together.

    Args:
        directory: A local folder, or any path that `etils.epath` opens (gs://...).
        metadata: Settings that a run must share with a checkpoint to go on from it.
        keep: How many of the last checkpoints stay.
        keep_best: How many checkpoints of the lowest loss stay beside them.
        about: Facts for people, saved beside the metadata.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        metadata: Mapping[str, Any],
        keep: int = 2,
        *,
        keep_best: int = 0,
        about: Mapping[str, Any] | None = None,
    ):
        self._metadata = json.loads(json.dumps({**metadata, WRITTEN_BY: SOFTWARE}))
        self._about = json.loads(json.dumps(about or {}))
        preserved: list[Any] = [policies.LatestN(keep)]
        if keep_best:
            preserved.append(
                policies.BestN(
                    get_metric_fn=_loss,
                    n=keep_best,
                    reverse=True,
                    keep_checkpoints_without_metrics=False,
                )
            )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(preserved),
            best_fn=_loss if keep_best else None,
            best_mode="min",
            cleanup_tmp_directories=True,
        )
        self._orbax = ocp.CheckpointManager(rooted(directory), options=options)

    def latest(self) -> int | None:
        """Return the step of the last checkpoint, `None` if there is none."""
        return self._orbax.latest_step()

    def best(self) -> int | None:
        """Return the step of the lowest loss, `None` if no checkpoint was saved with a loss."""
        losses = {
            step: metrics["loss"]
            for step in self._orbax.all_steps()
            if (metrics := self._orbax.metrics(step)) is not None
        }
        return min(losses, key=lambda step: losses[step]) if losses else None

    def save(self, step: int, state: Any, data_state: Any, loss: float | None = None) -> None:
        """Copy the state to the host and return; Orbax writes it in the background.

        Args:
            step: Number of steps done.
            state: PyTree of arrays.
            data_state: State of the data iterator, as JSON.
            loss: Held-out loss, for `best`; None if it was not measured.
        """
        self._orbax.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(flat(state)),
                data=ocp.args.JsonSave(data_state),
                metadata=ocp.args.JsonSave(self._metadata),
                about=ocp.args.JsonSave(self._about),
            ),
            metrics=None if loss is None else {"loss": loss},
        )

    def restore(self, like: PyTree, step: int | None = None) -> tuple[PyTree, Any]:
        """Read a checkpoint.

        Args:
            like: Arrays or `ShapeDtypeStruct`s; the state is laid out as they are, perhaps on
                other devices than those that saved it.
            step: Which checkpoint; None is the latest.

        Returns:
            The state, and the state of the data iterator.

        Raises:
            FileNotFoundError: If there is no checkpoint.
            ValueError: If it belongs to other settings; names every difference, and the
                version of the software that wrote it.
        """
        step = self.latest() if step is None else step
        if step is None:
            raise FileNotFoundError(f"no checkpoint in {self._orbax.directory}")
        args = ocp.args.Composite(metadata=ocp.args.JsonRestore())
        _check_same(self._orbax.restore(step, args=args)["metadata"], self._metadata, step)
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, flat(like))
        restored = self._orbax.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(abstract), data=ocp.args.JsonRestore()
            ),
        )
        leaves = [restored["state"][name] for name in flat(like)]  # jax sorts dicts
        return jax.tree.unflatten(jax.tree.structure(like), leaves), restored["data"]

    def wait(self) -> None:
        """Wait until everything is written; raises what went wrong in writing."""
        self._orbax.wait_until_finished()

    def close(self) -> None:
        """Wait, and release Orbax's threads."""
        self._orbax.close()


class AdapterCheckpoint(NamedTuple):
    """The adapter that a LoRA training had at a step.

    Attributes:
        arrays: Its weights, as `model.named_arrays` names them.
        lora: Its shape.
        num_layers: Layers of the base model.
        base: The base model, as the training recorded it.
    """

    arrays: dict[str, np.ndarray]
    lora: LoraConfig
    num_layers: int
    base: str


def adapter_at(directory: str | os.PathLike[str], step: int) -> AdapterCheckpoint:
    """Read the adapter of a checkpoint, without the decoder that it belongs to.

    Args:
        directory: The folder of the checkpoints.
        step: Which checkpoint.

    Raises:
        FileNotFoundError: There is no checkpoint of this step; names those that there are.
        ValueError: The training updated every parameter and has no adapter.
    """
    folder = rooted(directory)
    steps = ocp.utils.checkpoint_steps(folder) if folder.is_dir() else []
    if step not in steps:
        raise FileNotFoundError(
            f"{folder} has no checkpoint of step {step}; it has {sorted(steps) or 'none'}"
        )
    reading = ocp.args.Composite(
        state=ocp.args.StandardRestore(),
        metadata=ocp.args.JsonRestore(),
        about=ocp.args.JsonRestore(),
    )
    with ocp.CheckpointManager(folder) as manager:
        saved = manager.restore(step, args=reading)
    settings = saved["metadata"]
    if settings["config"]["trainable"] != "lora":
        raise ValueError(f"{folder}: the training has no adapter, it updated every parameter")
    start, end = "params.", ".value"
    arrays = {
        name.removeprefix(start).removesuffix(end): np.asarray(leaf)
        for name, leaf in saved["state"].items()
        if name.startswith(start)
    }
    lora = settings["lora"] | {"targets": tuple(settings["lora"]["targets"])}
    layers = settings["decoder"]["num_layers"]
    return AdapterCheckpoint(arrays, LoraConfig(**lora), layers, saved["about"]["base"])


def rooted(path: str | os.PathLike[str]) -> epath.Path:
    """Return an absolute local path, or a path of another file system as it is."""
    path = epath.Path(path)
    return path if "://" in str(path) else epath.Path(Path(path).absolute())


def _loss(metrics: Mapping[str, float]) -> float:
    return metrics["loss"]


def _check_same(saved: Any, now: Any, step: int) -> None:
    refuse_other(
        saved,
        now,
        f"the checkpoint of step {step}",
        option="output directory",
        error=ValueError,
    )
