import pytest

from alignuser_jax.decision.compare import Comparison
from alignuser_jax.report.plots import forest_plot
from alignuser_jax.statistics.paired import Difference


def test_a_forest_plot_has_a_row_per_treatment_and_a_panel_per_metric(tmp_path):
    comparisons = [
        Comparison(arm, "random", metric, Difference(0.1, lower, 0.2, 0.03, 50), 0.03, verdict)
        for arm in ("als", "popularity")
        for metric, lower, verdict in (
            ("mean rating", 0.01, "better"),
            ("view ratio", -0.1, "cannot tell"),
        )
    ]
    forest_plot(comparisons, tmp_path / "plot.png", "SYNTHETIC")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_without_comparisons_there_is_nothing_to_draw(tmp_path):
    with pytest.raises(ValueError, match="no comparisons to draw"):
        forest_plot([], tmp_path / "plot.png")
