import numpy as np
import pyarrow as pa
import pytest

from alignuser_jax.decision.compare import (
    across_exposures,
    arm_metrics,
    arms_table,
    compare,
    comparison_table,
    not_validated_table,
)


def event_table(rows):
    names = ("arm", "user_id", "kind", "value", "item_id")
    return pa.table({n: [row[i] for row in rows] for i, n in enumerate(names)})


def one_user(arm, user, ratings, exposed=4, exit_page=5, satisfaction=7):
    rows = [(arm, user, "page", 0.0, f"i{j}") for j in range(exposed)]
    rows += [(arm, user, "screen", float(j < len(ratings)), f"i{j}") for j in range(exposed)]
    rows += [(arm, user, "rate", float(r), f"i{j}") for j, r in enumerate(ratings)]
    return rows + [
        (arm, user, "exit", float(exit_page), ""),
        (arm, user, "interview", float(satisfaction), ""),
    ]


def test_metrics_by_hand():
    metrics = arm_metrics(event_table(one_user("a", "u", [5, 3, 4]) + one_user("a", "v", [])))
    values = {m: v[0] for m, v in metrics.values["a"].items()}
    assert values["likes per exposed"] == 2 / 4
    assert values["likes per viewed"] == 2 / 3
    assert values["mean rating"] == 4
    assert values["view ratio"] == 3 / 4
    assert values["exit page"] == 5 and values["satisfaction"] == 7
    assert metrics.values["a"]["likes per exposed"][1] == 0
    assert np.isnan(metrics.values["a"]["mean rating"][1])  # saw nothing: no rating, not 0


def test_a_user_missing_from_an_arm_is_named():
    rows = one_user("a", "u", [5]) + one_user("b", "u", [5]) + one_user("b", "v", [1])
    with pytest.raises(ValueError, match="every user in every arm.*a: 1"):
        arm_metrics(event_table(rows))


def test_a_better_arm_is_better_and_an_equal_one_cannot_be_told():
    rng = np.random.default_rng(0)
    rows = []
    for u in range(80):
        base = list(rng.integers(1, 6, 3))
        rows += one_user("control", f"u{u}", base)
        rows += one_user("good", f"u{u}", [min(r + 1, 5) for r in base] + [5])
        rows += one_user("same", f"u{u}", list(rng.integers(1, 6, 3)))
    table = {
        (c.treatment, c.metric): c for c in compare(arm_metrics(event_table(rows)), "control")
    }
    assert table["good", "mean rating"].verdict == "better"
    assert table["good", "likes per exposed"].verdict == "better"
    assert table["same", "mean rating"].verdict == "cannot tell"
    assert all(c.adjusted_p >= c.difference.p for c in table.values())


def test_an_unknown_control_is_named():
    with pytest.raises(ValueError, match="'nope'.*'a'"):
        compare(arm_metrics(event_table(one_user("a", "u", [5]))), "nope")


def test_a_verdict_that_flips_depends_on_the_exposure():
    assert across_exposures(["better", "better"]) == "better"
    assert across_exposures(["better", "cannot tell"]) == "depends on the exposure assumption"


def test_a_table_of_one_run_and_of_two():
    rows = one_user("a", "u", [5]) + one_user("b", "u", [4]) + one_user("a", "v", [5, 5])
    metrics = arm_metrics(event_table(rows + one_user("b", "v", [1])))
    comparisons = compare(metrics, "a")
    text = comparison_table(comparisons, {("b", "mean rating"): -0.5})
    assert "true lift" in text and "-0.500" in text and "cannot tell" in text
    both = comparison_table(comparisons, others={"uniform": comparisons})
    assert "verdict, uniform" in both and "depends" not in both
    with pytest.raises(ValueError, match="'uniform'. do not compare 'b' on"):
        comparison_table(comparisons, others={"uniform": comparisons[1:]})
    assert "| a     | 0.375" in arms_table(metrics)
    assert "satisfaction (not validated)" in not_validated_table(metrics)


def test_an_unknown_treatment_is_named():
    with pytest.raises(ValueError, match="treatments .'b'. are not in the run"):
        compare(arm_metrics(event_table(one_user("a", "u", [5]))), "a", ["b"])
