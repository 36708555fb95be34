"""Checkpoints that resume bit for bit or are refused.

A checkpoint holds the trained weights, the optimizer, the step, the data iterator and the
metadata of what they belong to. Orbax writes it beside the training and names it when it is
whole, so that a half-written one is never taken. The frozen base is never saved.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp

Tree = TypeVar("Tree")


def flat(tree: Any) -> dict[str, Any]:
    """The leaves of `tree` by dotted path, in the tree's order."""

    def name(path: tuple[Any, ...]) -> str:
        parts = (getattr(k, "key", getattr(k, "name", getattr(k, "idx", k))) for k in path)
        return ".".join(str(part) for part in parts)

    return {name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def weights_hash(tree: Any, per_leaf: int = 1024) -> str:
    """A hash of names, shapes and up to `per_leaf` evenly spaced values of each leaf."""
    digest = hashlib.blake2b(digest_size=16)
    for name, leaf in flat(tree).items():
        sample = leaf.reshape(-1)[:: max(1, leaf.size // per_leaf)]
        digest.update(f"{name}{leaf.shape}{leaf.dtype}".encode())
        digest.update(np.asarray(sample).tobytes())
    return digest.hexdigest()


class Checkpoints:
    """The checkpoints of one run, `directory/<step>/`; the last `keep` stay."""

    def __init__(
        self, directory: str | os.PathLike[str], metadata: Mapping[str, Any], keep: int = 2
    ):
        self._metadata = json.loads(json.dumps(metadata))
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True)
        self._orbax = ocp.CheckpointManager(Path(directory).absolute(), options=options)

    def latest(self) -> int | None:
        """The last whole checkpoint's step, `None` where there is none."""
        return self._orbax.latest_step()

    def save(self, step: int, state: Any, data_state: Any) -> None:
        """Copies to the host and returns; the writing goes on beside the training."""
        self._orbax.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(flat(state)),
                data=ocp.args.JsonSave(data_state),
                metadata=ocp.args.JsonSave(self._metadata),
            ),
        )

    def restore(self, like: Tree) -> tuple[Tree, Any]:
        """`(state, data_state)` of the latest checkpoint, laid out as `like`.

        Raises `ValueError` that spells out every difference in metadata.
        """
        step = self.latest()
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
        """Returns once everything saved is whole; raises what went wrong in writing."""
        self._orbax.wait_until_finished()

    def close(self) -> None:
        self._orbax.close()


def _check_same(saved: Any, now: Any, step: int) -> None:
    def leaves(value: Any, path: str = "") -> dict[str, Any]:
        if isinstance(value, dict) and value:
            return {
                k: v
                for name, inner in value.items()
                for k, v in leaves(inner, f"{path}.{name}" if path else name).items()
            }
        return {path: value}

    before, after = leaves(saved), leaves(now)
    differences = [
        f"{name}: checkpoint {before.get(name, 'absent')!r}, now {after.get(name, 'absent')!r}"
        for name in sorted({*before, *after})
        if before.get(name, "absent") != after.get(name, "absent")
    ]
    if differences:
        raise ValueError(
            f"the checkpoint of step {step} belongs to another run:\n  "
            + "\n  ".join(differences)
            + "\nGive the same settings to resume it, or another output directory to start anew"
        )
