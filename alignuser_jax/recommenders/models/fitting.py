"""One loop for MF, LightGCN and MultVAE: epochs until the validation nDCG@20 stops rising, the
best parameters kept, resumable at the epochs that a checkpoint names. Imports jax: only `fit`
methods import this module."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from tqdm import tqdm

from alignuser_jax.durable.whole import replacing
from alignuser_jax.recommenders.base import generator
from alignuser_jax.recommenders.checks.ranking import recall_ndcg, top_codes

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

CHECKPOINT_EVERY = 5
VALIDATION_USERS = 5000
"""Users that validation ranks for, at most: drawn by seed where there are more (DEFAULT)."""
CUTOFF = 20

Tree = Any
Scores = Callable[[np.ndarray], np.ndarray]
"""int64[b] user codes -> float32[b, n_items], a new array."""


@dataclass(frozen=True)
class Fitted:
    """`epochs` were run; `params` (NumPy leaves) are those after epoch `best`, counted from 1,
    whose validation metrics are `recall` and `ndcg` (nan without validation)."""

    params: Tree
    best: int
    epochs: int
    recall: float
    ndcg: float

    def summary(self) -> dict[str, Any]:
        """What is saved beside the settings; None where there was no validation."""
        seen = {f"recall@{CUTOFF}": self.recall, f"ndcg@{CUTOFF}": self.ndcg}
        return {"best_epoch": self.best, "epochs": self.epochs} | {
            f"validation_{name}": value if np.isfinite(value) else None
            for name, value in seen.items()
        }


@dataclass(frozen=True, eq=False)
class Validation:
    """Recall@20 and nDCG@20 of `truth` over the items that `seen` does not have."""

    seen: csr_matrix
    truth: csr_matrix
    users: np.ndarray  # int64[u], those with something in truth, at most VALIDATION_USERS

    @classmethod
    def of(cls, seen: csr_matrix, truth: csr_matrix, seed: int) -> Validation:
        # a pair of both would be excluded from the ranking that is to find it
        truth = (truth - truth.multiply(seen)).tocsr()
        truth.eliminate_zeros()
        truth.sort_indices()
        users = np.flatnonzero(np.diff(truth.indptr))
        if not len(users):
            raise ValueError(
                "the validation part has no interaction that training lacks: give another "
                "part, or None to train for all epochs"
            )
        if len(users) > VALIDATION_USERS:
            draw = generator("validation users", seed)
            users = np.sort(draw.choice(users, VALIDATION_USERS, replace=False))
        return cls(seen, truth, users)

    def __call__(self, scores: Scores, rows: int = 512) -> tuple[float, float]:
        found = []
        for start in range(0, len(self.users), rows):
            some = self.users[start : start + rows]
            top = top_codes(np.array(scores(some), np.float32), self.seen[some], CUTOFF)
            found.append(recall_ndcg(top, self.truth[some]))
        recall, ndcg = (float(np.concatenate(part).mean()) for part in zip(*found, strict=True))
        return recall, ndcg


def fit_epochs(
    name: str,
    state: Tree,
    run_epoch: Callable[[Tree, int], tuple[Tree, float]],
    params_of: Callable[[Tree], Tree],
    validate: Callable[[Tree], tuple[float, float]] | None,
    *,
    epochs: int,
    patience: int,
    checkpoint: str | Path | None = None,
    fingerprint: str = "",
    progress: bool = True,
) -> Fitted:
    """Run `state, loss = run_epoch(state, epoch)` for epochs 1, 2, … up to `epochs`, or until
    `patience` epochs bring no better nDCG; without `validate` all of them.

    `run_epoch` draws from the epoch's number alone, so that a run taken up from `checkpoint`
    (a file that is written every few epochs and removed at the end) ends with the same bits.
    A checkpoint of another `fingerprint` is refused. Raises `FloatingPointError` for a loss
    that is not finite.
    """
    file = Path(checkpoint) if checkpoint else None
    done, best, best_params = 0, (-1.0, -1.0, 0), _on_host(params_of(state))
    if file and file.is_file():
        state, best_params, done, best = _resume(file, state, best_params, fingerprint)
    with tqdm(
        total=epochs, initial=done, unit="epoch", desc=name, disable=None if progress else True
    ) as bar:
        while done < epochs and (validate is None or done - best[2] < patience):
            done += 1
            state, loss = run_epoch(state, done)
            if not np.isfinite(loss):
                raise FloatingPointError(
                    f"the loss of {name} is {loss} in epoch {done}: use a smaller learning rate"
                )
            shown = {"loss": f"{loss:.4f}"}
            if validate is None:
                best = (float("nan"), float("nan"), done)
            else:
                recall, ndcg = validate(params_of(state))
                if ndcg > best[1]:
                    best, best_params = (recall, ndcg, done), _on_host(params_of(state))
                shown |= {f"recall@{CUTOFF}": f"{recall:.4f}", f"ndcg@{CUTOFF}": f"{ndcg:.4f}"}
                shown["best"] = str(best[2])
            bar.set_postfix(shown, refresh=False)
            bar.update()
            if file and done % CHECKPOINT_EVERY == 0:
                _checkpoint(file, state, best_params, done, best, fingerprint)
    if validate is None:
        best_params = params_of(state)
    if file:
        file.unlink(missing_ok=True)
    recall, ndcg, epoch = best
    return Fitted(_on_host(best_params), epoch, done, recall, ndcg)


def _on_host(tree: Tree) -> Tree:
    return jax.tree.map(np.array, tree)  # copies: the next epoch may reuse the buffers


def _checkpoint(
    file: Path, state: Tree, params: Tree, done: int, best: tuple, fingerprint: str
) -> None:
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves((state, params))]
    about = json.dumps({"done": done, "best": best, "fingerprint": fingerprint})
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as unfinished, unfinished.open("wb") as stream:
        np.savez(stream, about=np.array(about), **{f"leaf{n}": a for n, a in enumerate(leaves)})


def _resume(file: Path, state: Tree, params: Tree, fingerprint: str) -> tuple:
    with np.load(file, allow_pickle=False) as stored:
        about = json.loads(str(stored["about"]))
        if about["fingerprint"] != fingerprint:
            raise ValueError(
                f"{file} was left by a fit with other settings or data: remove it to start "
                "anew, or give the same ones to go on"
            )
        treedef = jax.tree.structure((state, params))
        leaves = [stored[f"leaf{n}"] for n in range(treedef.num_leaves)]
    state, params = jax.tree.unflatten(treedef, leaves)
    return jax.tree.map(jax.numpy.asarray, state), params, about["done"], tuple(about["best"])
