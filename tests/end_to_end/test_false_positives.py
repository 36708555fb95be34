"""Re-sampled A/A tests: the family-wise error is what it is said to be."""

from pathlib import Path

import numpy as np
import pytest

from alignuser_jax import pipeline, simulation
from alignuser_jax.alignment import policy_and_agent_users, simulation_view
from alignuser_jax.datasets import synthetic
from alignuser_jax.evaluation.comparison import METRICS, arm_metrics
from alignuser_jax.evaluation.statistics import holm, paired_difference
from alignuser_jax.experiment import load_experiment
from alignuser_jax.recommenders import Random

TINY = Path(__file__).parents[2] / "configs" / "tiny.py"
SMALLER = ("pretrain.steps=30", "align.steps=3", "agents=48", "pretrain.batch_size=4")
REPETITIONS, TESTS = 12, 2000


@pytest.mark.slow
def test_family_wise_error_of_re_sampled_aa_tests(tmp_path):
    """Every agent visits one recommender 12 times with other randomness; an A/A test takes two
    different visits of each agent at random. 5 % +- 3 for the family and, since Holm is
    conservative where metrics are correlated, 5 % +- 1.5 (three standard errors) for each
    metric by itself. 200 tests alone are too few to tell: 3 to 11 false alarms were seen in
    ten such blocks of one simulation, whose rate was 3.6 %."""
    dataset = synthetic.generate(synthetic.SyntheticConfig(users=96, items=80))
    experiment = load_experiment(TINY, SMALLER)
    run = pipeline.open_run(experiment, dataset, tmp_path)
    for stage in ("pretrain", "align"):
        pipeline.build_stage(experiment, dataset, run, stage)
        pipeline.train_stage(experiment, dataset, run, stage)
    decoder, tokenizer, policy_id = pipeline.load_policy(experiment, run)
    arms = {f"visit {n:02d}": n for n in range(REPETITIONS)}
    events = simulation.simulate(
        experiment,
        dataset,
        simulation_view(dataset),
        {arm: Random(dataset.item_ids) for arm in arms},
        pipeline.make_engine(experiment, decoder, tokenizer),
        tokenizer.count,
        tmp_path / "simulation",
        users=policy_and_agent_users(dataset, experiment.agents, experiment.seed)[1],
        policy_id=policy_id,
        horizon=2,
        visit_numbers=arms,
        progress=False,
    )
    metrics = arm_metrics(events)
    values = {m: np.array([metrics.values[arm][m] for arm in metrics.arms]) for m in METRICS}
    n_users = len(metrics.user_ids)
    rng = np.random.default_rng(0)
    p_values = np.empty((TESTS, len(METRICS)))
    for test in range(TESTS):
        pairs = np.array([rng.choice(REPETITIONS, 2, replace=False) for _ in range(n_users)])
        users = np.arange(n_users)
        p_values[test] = [
            paired_difference(
                v[pairs[:, 0], users], v[pairs[:, 1], users], resamples=999, seed=test
            ).p
            for v in values.values()
        ]
    family = np.mean([holm(p).min() < 0.05 for p in p_values])
    assert 0.02 <= family <= 0.08, f"{family:.2%} of {TESTS}"
    single = (p_values < 0.05).mean(0)
    assert np.abs(single - 0.05).max() <= 0.015, dict(zip(METRICS, single, strict=True))
