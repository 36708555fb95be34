"""Time ways to multiply MovieLens-1M's matrix of interactions by 64 factors.

    alignuser import-logs --input=../shared/data/ml-1m --output=runs/ml-1m
    python -m tests.benchmarks.propagation --dataset=runs/ml-1m

Prints milliseconds: the fastest and the median of `--rounds` calls after the one that compiles,
and the largest difference from SciPy.
"""

import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from jax.experimental import sparse

from alignuser_jax.datasets import load_dataset
from alignuser_jax.recommenders.checks.ranking import interaction_matrix
from alignuser_jax.recommenders.models.propagation import product

FLAGS = flags.FLAGS
flags.DEFINE_string("dataset", None, "Folder of an imported MovieLens-1M.", required=True)
flags.DEFINE_integer("rounds", 10, "Timed calls.")


def ways(matrix, x):
    """Return name to a function without arguments that multiplies once."""
    coordinates = matrix.tocoo()
    row, column = jnp.asarray(coordinates.row), jnp.asarray(coordinates.col)
    ones = jnp.ones(matrix.nnz, jnp.float32)
    shape = matrix.shape
    index = jnp.stack([row, column], 1)
    bcoo = sparse.BCOO((ones, index), shape=shape, indices_sorted=True, unique_indices=True)
    starts = jnp.asarray(matrix.indices), jnp.asarray(matrix.indptr)
    bcsr = sparse.BCSR((ones, *starts), shape=shape)
    dense = jnp.asarray(matrix.toarray())

    def segments(x):
        return jax.ops.segment_sum(x[column], row, shape[0], indices_are_sorted=True)

    functions = {
        "segment_sum": segments,
        "BCOO": lambda x: bcoo @ x,
        "dense": lambda x: dense @ x,
        "BCSR": lambda x: bcsr @ x,
        "runs (ours)": product(matrix),
    }
    jitted = {name: jax.jit(way) for name, way in functions.items()}
    calls = {
        name: lambda way=way: jax.block_until_ready(way(x)) for name, way in jitted.items()
    }
    return {"scipy.sparse": lambda: matrix @ x} | calls


def main(argv):
    from tabulate import tabulate

    matrix = interaction_matrix(load_dataset(FLAGS.dataset).log.of_split("train"))
    x = np.random.default_rng(0).standard_normal((matrix.shape[1], 64), np.float32)
    rows = []
    for name, way in ways(matrix, x).items():
        error = abs(np.asarray(way()) - matrix @ x).max()
        took = []
        for _ in range(FLAGS.rounds):
            start = time.perf_counter()
            way()
            took.append(1e3 * (time.perf_counter() - start))
        rows.append([name, f"{min(took):.1f}", f"{np.median(took):.1f}", f"{error:.1e}"])
    print(f"{matrix.shape[0]} x {matrix.shape[1]}, {matrix.nnz} interactions, 64 factors")
    print(tabulate(rows, ["way", "ms", "median", "error"], disable_numparse=True))


if __name__ == "__main__":
    app.run(main)
