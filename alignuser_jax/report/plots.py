"""Plots of simulated A/B tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from alignuser_jax.decision.compare import (
    Comparison,
)


def forest_plot(comparisons: Sequence[Comparison], path: str | Path, title: str = "") -> None:
    """Differences with their intervals, one panel per metric; green, red or grey by verdict."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(c.metric for c in comparisons))
    colours = {"better": "tab:green", "worse": "tab:red", "cannot tell": "tab:gray"}
    height = 1.2 + 0.35 * (len(comparisons) // max(len(names), 1))
    figure, axes = plt.subplots(1, len(names), figsize=(3.2 * len(names), height), sharey=True)
    for axis, metric in zip(np.atleast_1d(axes), names, strict=True):
        axis.axvline(0, color="black", linewidth=0.8)
        rows = [c for c in comparisons if c.metric == metric]
        for y, c in enumerate(rows):
            axis.plot([c.difference.low, c.difference.high], [y, y], color=colours[c.verdict])
            axis.plot(c.difference.mean, y, "o", color=colours[c.verdict], markersize=4)
        axis.set_yticks(range(len(rows)), [f"{c.treatment} - {c.control}" for c in rows])
        axis.set_xlabel(metric, fontsize=8)
        axis.tick_params(labelsize=8)
    figure.suptitle(title, fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)
