import numpy as np
import pyarrow as pa
import pytest

from alignuser_jax.decision.compare import ArmMetrics
from alignuser_jax.decision.held_out_order import agreement


def test_the_right_order_has_tau_one_beside_the_trivial_predictors():
    rng = np.random.default_rng(0)
    users, arms = tuple(f"u{n}" for n in range(60)), ("bad", "fair", "good")
    truth = {a: {u: 0.1 * k + rng.normal(0, 0.02) for u in users} for k, a in enumerate(arms)}
    values = {
        a: {"likes per exposed": 0.2 * k + rng.normal(0, 0.05, 60)} for k, a in enumerate(arms)
    }
    rows = [(a, u, f"i{2 - k}") for k, a in enumerate(arms) for u in users]
    events = pa.table(
        {
            "arm": [r[0] for r in rows],
            "user_id": [r[1] for r in rows],
            "item_id": [r[2] for r in rows],
            "kind": ["page"] * len(rows),
        }
    )
    popularity = {"i0": 1.0, "i1": 10.0, "i2": 100.0}
    means = {"i0": 4.0, "i1": 3.0, "i2": 2.0}
    result = agreement(ArmMetrics(arms, users, values), truth, events, popularity, means)
    taus = [result.tau[name].value for name in result.tau]
    assert taus == pytest.approx([1, -1, 1])
    assert result.tau["simulated likes per exposed"].low > 0.5


def test_one_arm_has_no_order():
    with pytest.raises(ValueError, match="two arms or more"):
        agreement(ArmMetrics(("a",), (), {}), {"a": {}}, pa.table({}), {}, {})
