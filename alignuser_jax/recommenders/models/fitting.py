"""The one loop of MF, LightGCN and MultVAE: train in epochs until validation stops improving.

The parameters of the best epoch are kept, and an interrupted fit is resumed from a checkpoint.
Imports jax: only `fit` methods import this module.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from alignuser_jax.randomness import named_generator
from alignuser_jax.recommenders.base import write_arrays
from alignuser_jax.recommenders.checks.ranking import recall_ndcg, top_codes
from alignuser_jax.recommenders.models.trained import FitPlan, Summary

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

CHECKPOINT_EVERY = 5
"""Epochs between two checkpoints."""
VALIDATION_USERS = 5000
"""Users that validation ranks for, at most; drawn by seed when there are more (DEFAULT)."""
CUTOFF = 20
"""Length of the rankings that validation judges."""

Parameters = Any
"""A pytree of arrays: what an optimizer changes, or its moments."""
Validate = Callable[[Parameters], tuple[float, float]]
"""Parameters to (recall, nDCG) of the validation part."""
Scores = Callable[[np.ndarray], np.ndarray]
"""int64[b] user codes to float32[b, n_items], a new array."""


class TrainState(NamedTuple):
    """What an epoch changes.

    Attributes:
        params: the model's parameters.
        moments: the optimizer's state.
    """

    params: Parameters
    moments: Parameters


class Best(NamedTuple):
    """The best epoch so far.

    Attributes:
        recall: its validation recall@20; nan without validation.
        ndcg: its validation nDCG@20; nan without validation.
        epoch: its number, counted from 1; 0 before the first.
    """

    recall: float = -1.0
    ndcg: float = -1.0
    epoch: int = 0


@dataclass(frozen=True)
class FitResult:
    """What a fit leaves behind.

    Attributes:
        params: the parameters after the best epoch, with NumPy leaves.
        best: the best epoch, or the last one when there is no validation.
        epochs: how many epochs were run.
    """

    params: Parameters
    best: Best
    epochs: int

    def summary(self) -> Summary:
        """Return what is saved beside the settings; metrics are `None` without validation."""
        metrics = {f"recall@{CUTOFF}": self.best.recall, f"ndcg@{CUTOFF}": self.best.ndcg}
        return {"best_epoch": self.best.epoch, "epochs": self.epochs} | {
            f"validation_{name}": value if np.isfinite(value) else None
            for name, value in metrics.items()
        }


@dataclass(frozen=True, eq=False)
class Validation:
    """Recall@20 and nDCG@20 of held-out pairs among the items that training does not have.

    Attributes:
        seen: float32[n_users, n_items], the training pairs, which no ranking contains.
        truth: the same shape, the pairs to rank high; none of them is in `seen`.
        users: int64[u], users with something in `truth`, at most `VALIDATION_USERS`.
    """

    seen: csr_matrix
    truth: csr_matrix
    users: np.ndarray

    @classmethod
    def of(cls, seen: csr_matrix, truth: csr_matrix, seed: int) -> Validation:
        """Choose the users to validate on.

        Raises:
            ValueError: if `truth` has no pair that `seen` lacks.
        """
        # a pair of both would be excluded from the ranking that it should stand in
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
            draw = named_generator("validation users", seed)
            users = np.sort(draw.choice(users, VALIDATION_USERS, replace=False))
        return cls(seen, truth, users)

    def __call__(self, scores: Scores, rows: int = 512) -> tuple[float, float]:
        """Return the mean recall and nDCG over the users, `rows` of them scored at a time."""
        metrics = []
        for start in range(0, len(self.users), rows):
            some = self.users[start : start + rows]
            top = top_codes(np.array(scores(some), np.float32), self.seen[some], CUTOFF)
            metrics.append(recall_ndcg(top, self.truth[some]))
        recall, ndcg = (np.concatenate(part) for part in zip(*metrics, strict=True))
        return float(recall.mean()), float(ndcg.mean())


def fit_epochs(
    plan: FitPlan,
    state: TrainState,
    run_epoch: Callable[[TrainState, int], tuple[TrainState, float]],
    validate: Validate | None,
) -> FitResult:
    """Train in epochs 1, 2, … until the plan's patience or its epochs are used up.

    Args:
        plan: how long to train, and the checkpoint to resume from.
        state: where to start.
        run_epoch: from a state and an epoch's number to the next state and the mean loss. It
            must draw from the epoch's number alone, so that a resumed fit ends with the same
            bits.
        validate: judges the parameters after each epoch; without it all epochs are run and the
            last one counts as the best.

    Raises:
        ValueError: if the checkpoint was left by a fit with another fingerprint.
        FloatingPointError: if a loss is not finite.
    """
    file, done, best, best_params = plan.checkpoint, 0, Best(), _on_host(state.params)
    if file and file.is_file():
        state, best_params, done, best = _resume(file, state, best_params, plan.fingerprint)
    with tqdm(
        total=plan.epochs,
        initial=done,
        unit="epoch",
        desc=plan.name,
        disable=None if plan.progress else True,
    ) as bar:
        while done < plan.epochs and (validate is None or done - best.epoch < plan.patience):
            done += 1
            state, loss = run_epoch(state, done)
            if not np.isfinite(loss):
                raise FloatingPointError(
                    f"the loss of {plan.name} is {loss} in epoch {done}: use a smaller "
                    "learning rate"
                )
            postfix = {"loss": f"{loss:.4f}"}
            if validate is None:
                best = Best(float("nan"), float("nan"), done)
            else:
                recall, ndcg = validate(state.params)
                if ndcg > best.ndcg:
                    best, best_params = Best(recall, ndcg, done), _on_host(state.params)
                postfix[f"recall@{CUTOFF}"] = f"{recall:.4f}"
                postfix[f"ndcg@{CUTOFF}"] = f"{ndcg:.4f}"
                postfix["best"] = str(best.epoch)
            bar.set_postfix(postfix, refresh=False)
            bar.update()
            if file and done % CHECKPOINT_EVERY == 0:
                _checkpoint(file, (state, best_params), done, best, plan.fingerprint)
    if validate is None:
        best_params = state.params
    if file:
        file.unlink(missing_ok=True)
    return FitResult(_on_host(best_params), best, done)


def _on_host(tree: Parameters) -> Parameters:
    return jax.tree.map(np.array, tree)  # copies: the next epoch may reuse the buffers


def _checkpoint(
    file: Path,
    trees: tuple[TrainState, Parameters],
    done: int,
    best: Best,
    fingerprint: str,
) -> None:
    about = json.dumps({"done": done, "best": best, "fingerprint": fingerprint})
    leaves = {f"leaf{n}": np.asarray(leaf) for n, leaf in enumerate(jax.tree.leaves(trees))}
    file.parent.mkdir(parents=True, exist_ok=True)
    write_arrays(file, {"about": np.array(about), **leaves})


def _resume(
    file: Path, state: TrainState, params: Parameters, fingerprint: str
) -> tuple[TrainState, Parameters, int, Best]:
    """Return (state, best parameters, epochs done, best epoch) of a checkpoint."""
    with np.load(file, allow_pickle=False) as stored:
        about = json.loads(str(stored["about"]))
        if about["fingerprint"] != fingerprint:
            raise ValueError(
                f"{file} was left by a fit with other settings or data: remove it to start "
                "anew, or give the same ones to go on"
            )
        leaves, tree = jax.tree.flatten((state, params))
        leaves = [stored[f"leaf{n}"] for n in range(len(leaves))]
    state, params = jax.tree.unflatten(tree, leaves)
    return jax.tree.map(jax.numpy.asarray, state), params, about["done"], Best(*about["best"])
