"""Draw plots of simulated A/B tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from alignuser_jax.decision.compare import Comparison

VERDICT_COLOURS = {"better": "tab:green", "worse": "tab:red", "cannot tell": "tab:gray"}
"""Colour of a comparison by its verdict."""


def forest_plot(comparisons: Sequence[Comparison], path: str | Path, title: str = "") -> None:
    """Draw differences with their intervals: one panel per metric, coloured by verdict.

    Args:
        comparisons: As `decision.compare.compare` returns them.
        path: The picture's file; its suffix decides the format.
        title: Printed above the panels.

    Example:
        >>> forest_plot(compare(metrics, "random"), "ab_test.png")
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(c.metric for c in comparisons))
    if not names:
        raise ValueError("no comparisons to draw: pass at least one")
    height = 1.2 + 0.35 * (len(comparisons) // len(names))
    figure, axes = plt.subplots(1, len(names), figsize=(3.2 * len(names), height), sharey=True)
    for axis, metric in zip(np.atleast_1d(axes), names, strict=True):
        axis.axvline(0, color="black", linewidth=0.8)
        rows = [c for c in comparisons if c.metric == metric]
        for y, c in enumerate(rows):
            axis.plot(
                [c.difference.low, c.difference.high], [y, y], color=VERDICT_COLOURS[c.verdict]
            )
            axis.plot(c.difference.mean, y, "o", color=VERDICT_COLOURS[c.verdict], markersize=4)
        axis.set_yticks(range(len(rows)), [f"{c.treatment} - {c.control}" for c in rows])
        axis.set_xlabel(metric, fontsize=8)
        axis.tick_params(labelsize=8)
    figure.suptitle(title, fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)
