"""obp itself, where it is installed: it wants a Python before 3.10, so an environment of its
own, whose Python ALIGNUSER_OBP_PYTHON names (data_prep/README.md says how to make one)."""

import json
import os
import subprocess

import numpy as np
import pytest

from alignuser_jax.agents.events import to_table
from alignuser_jax.datasets.exports import bandit_feedback, write_feedback
from alignuser_jax.datasets.formats import synthetic
from alignuser_jax.records import Event

PYTHON = os.environ.get("ALIGNUSER_OBP_PYTHON", "")
pytestmark = pytest.mark.skipif(not PYTHON, reason="ALIGNUSER_OBP_PYTHON names no Python")
EVALUATE = """
import json, sys
import numpy as np
from obp.ope import DirectMethod, InverseProbabilityWeighting, OffPolicyEvaluation
from obp.ope import RegressionModel, SelfNormalizedInverseProbabilityWeighting
from sklearn.linear_model import LogisticRegression

with np.load(sys.argv[1]) as stored:
    feedback = dict(stored)
feedback |= {name: int(feedback[name]) for name in ("n_rounds", "n_actions")}
slots = int(feedback["position"].max()) + 1
wanted = np.load(sys.argv[2])
policy = np.tile(wanted[None, :, None], (feedback["n_rounds"], 1, slots))
model = RegressionModel(
    n_actions=feedback["n_actions"], len_list=slots, base_model=LogisticRegression(),
    action_context=feedback["action_context"],
)
rewards = model.fit_predict(
    context=feedback["context"], action=feedback["action"], reward=feedback["reward"],
    pscore=feedback["pscore"], position=feedback["position"], action_dist=policy,
    random_state=0,
)
estimators = [
    InverseProbabilityWeighting(), SelfNormalizedInverseProbabilityWeighting(), DirectMethod(),
]
evaluation = OffPolicyEvaluation(bandit_feedback=feedback, ope_estimators=estimators)
print(json.dumps(evaluation.estimate_policy_values(
    action_dist=policy, estimated_rewards_by_reg_model=rewards
)))
"""


def test_obp_evaluates_another_policy_on_our_feedback(tmp_path):
    """Slates drawn by known propensities; obp's estimates are those of their formulas."""
    config = synthetic.SyntheticConfig(users=20, items=12, ratings_per_user=8)
    dataset = synthetic.generate(config)
    draw = np.random.default_rng(0)
    shown, count = draw.dirichlet(np.ones(12)) * 0.5 + 0.5 / 12, 0
    events = []
    for user in dataset.user_ids:
        sequence = 0
        for page in range(1, 11):
            for position in (1, 2):
                item = int(draw.choice(12, p=shown))
                row = ("arm", user, page, sequence)
                fields = {"page": page, "position": position, "item_id": dataset.item_ids[item]}
                events.append(Event(*row, "page", **fields, probability=float(shown[item])))
                liked = draw.random() < (0.8 if item < 6 else 0.2)
                row = ("arm", user, page, sequence + 1)
                events.append(Event(*row, "rate", **fields, value=5.0 if liked else 1.0))
                sequence, count = sequence + 2, count + 1
    feedback = bandit_feedback(dataset, to_table(events), reward="liked")
    assert feedback["n_rounds"] == count == 400
    write_feedback(feedback, tmp_path / "feedback.npz")
    wanted = np.where(np.arange(12) < 6, 0.15, 0.1 / 6)
    np.save(tmp_path / "wanted.npy", wanted)
    (tmp_path / "evaluate.py").write_text(EVALUATE)
    command = [PYTHON, "evaluate.py", "feedback.npz", "wanted.npy"]
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    weight = wanted[feedback["action"]] / feedback["pscore"]
    assert found["ipw"] == pytest.approx((weight * feedback["reward"]).mean())
    assert found["snipw"] == pytest.approx(np.average(feedback["reward"], weights=weight))
    assert abs(found["ipw"] - (0.9 * 0.8 + 0.1 * 0.2)) < 0.15  # the truth
    assert 0 < found["dm"] < 1
