"""Re-sampled A/A tests: the family-wise error is what it is said to be."""

from pathlib import Path

import numpy as np
import pytest

from alignuser_jax.datasets.formats import synthetic
from alignuser_jax.decision.compare import VERDICT_METRICS, arm_metrics
from alignuser_jax.driver.backend import Backend
from alignuser_jax.recommenders import Random
from alignuser_jax.runs import simulate as simulation
from alignuser_jax.runs.experiment import load_experiment
from alignuser_jax.runs.folder import open_run
from alignuser_jax.runs.policy import load_policy, make_engine
from alignuser_jax.runs.simulate import SimulationSettings
from alignuser_jax.runs.stages import build_stage, train_stage
from alignuser_jax.statistics.multiple import holm
from alignuser_jax.statistics.paired import paired_difference
from alignuser_jax.views import policy_and_agent_users, simulation_view

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
    run = open_run(experiment, dataset, tmp_path)
    for stage in ("pretrain", "align"):
        build_stage(experiment, dataset, run, stage)
        train_stage(experiment, dataset, run, stage)
    decoder, tokenizer, policy_id = load_policy(experiment, run)
    arms = {f"visit {n:02d}": n for n in range(REPETITIONS)}
    events = simulation.simulate(
        experiment,
        dataset,
        simulation_view(dataset),
        {arm: Random(dataset.item_ids) for arm in arms},
        Backend(make_engine(experiment, decoder, tokenizer), tokenizer.count, policy_id),
        tmp_path / "simulation",
        SimulationSettings(
            policy_and_agent_users(dataset, experiment.agents, experiment.seed)[1],
            horizon=2,
            visit_numbers=arms,
            progress=False,
        ),
    )
    metrics = arm_metrics(events)
    values = {
        m: np.array([metrics.values[arm][m] for arm in metrics.arms]) for m in VERDICT_METRICS
    }
    n_users = len(metrics.user_ids)
    rng = np.random.default_rng(0)
    p_values = np.empty((TESTS, len(VERDICT_METRICS)))
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
    assert np.abs(single - 0.05).max() <= 0.015, dict(zip(VERDICT_METRICS, single, strict=True))
