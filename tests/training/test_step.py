"""One step: the global weighted loss, accumulation, what changes and what does not."""

import jax
import numpy as np
import pytest

from alignuser_jax.model import split
from alignuser_jax.model.attention import RowLayout
from alignuser_jax.training.config import TrainConfig
from alignuser_jax.training.data import Batches
from alignuser_jax.training.optimizer import decayed, learning_rate, warmup_steps
from alignuser_jax.training.step import (
    init_state,
    make_eval_step,
    make_train_step,
    trainable_parts,
)

TASKS = ["reflection", "world_model"]


def config(**changes):
    given = {"batch_size": 8, "seq_len": 64, "learning_rate": 1e-2, "loss_chunk": 64}
    return TrainConfig(**{"steps": 10, **given, **changes}).on("cpu")


@pytest.fixture(scope="module")
def batch(shards, tokenizer):
    quotas = dict.fromkeys(TASKS, 4)
    return next(Batches(str(shards), tokenizer, quotas, config()))


def cut(batch, accumulation):
    """The batch of one micro-batch as several."""
    return jax.tree.map(lambda x: x.reshape(accumulation, -1, x.shape[-1]), batch)


def one_step(decoder, batch, config, steps=1):
    batch = cut(batch, config.accumulation)
    parts = trainable_parts(decoder, config.trainable)
    step, state = make_train_step(parts, TASKS, config), init_state(parts, config)
    for _ in range(steps):
        state, output = step(state, parts.frozen, batch)
    assert step._cache_size() == 1
    return parts, state, output


def task_means(decoder, batch):
    batch = jax.tree.map(lambda x: x[0], batch)
    hidden = decoder(batch.tokens, batch.positions, RowLayout(batch.segment_ids))
    nll = -np.take_along_axis(
        np.asarray(jax.nn.log_softmax(decoder.logits(hidden))), batch.targets[..., None], -1
    )[..., 0]
    weighted, masks = nll * batch.weights, [batch.task == k for k in range(2)]
    return [weighted[mask].sum() / batch.weights[mask].sum() for mask in masks]


def test_loss_is_the_sum_over_tasks_and_equal_for_any_accumulation(make_decoder, batch):
    decoder = make_decoder(rank=2, layers=1)
    means = task_means(decoder, batch)
    moments = []
    for accumulation in (1, 4):
        settings = config(accumulation=accumulation, task_weights={"reflection": 0.25})
        _, state, output = one_step(decoder, batch, settings)
        np.testing.assert_allclose(output.nll / output.weight, means, rtol=1e-5)
        np.testing.assert_allclose(output.loss, 0.25 * means[0] + means[1], rtol=1e-5)
        assert output.tokens == (batch.segment_ids > 0).sum()
        # Adam's moments and not the weights: its first step is a sign, which rounding flips.
        moments.append([np.asarray(m) for m in jax.tree.leaves(state.opt_state[1][0].mu)])
    for one, four in zip(*moments, strict=True):
        np.testing.assert_allclose(one, four, atol=1e-6, rtol=1e-3)
    assert max(np.abs(m).max() for m in moments[0]) > 1e-3


def test_only_the_adapter_changes_and_the_caller_keeps_its_decoder(make_decoder, batch):
    decoder = make_decoder(rank=2, layers=1)
    before = jax.tree.map(np.array, split(decoder)[1:])
    settings = config(accumulation=4, task_weights={"reflection": 0.25})
    parts, state, _ = one_step(decoder, batch, settings, steps=3)
    trained = split(parts.join(state.params, parts.frozen))
    jax.tree.map(np.testing.assert_array_equal, trained[2], before[1])
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), trained[1], before[0])
    assert all(jax.tree.leaves(changed))
    jax.tree.map(np.testing.assert_array_equal, split(decoder)[1:], before)


def test_full_training_changes_every_leaf_and_measures_every_task(make_decoder, batch):
    decoder = make_decoder(tied=False, layers=1)
    means = task_means(decoder, batch)
    settings = config(trainable="full", accumulation=2, task_weights={"reflection": 0.0})
    parts, _, output = one_step(decoder, batch, settings)
    np.testing.assert_allclose(output.loss, means[1], rtol=1e-5)
    assert output.nll[0] == 0  # not computed: its lambda is 0
    _, state, _ = one_step(decoder, batch, settings, steps=2)
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), state.params, parts.params)
    assert all(jax.tree.leaves(changed))
    sums, weights = make_eval_step(parts, TASKS, settings)(parts.params, parts.frozen, batch)
    np.testing.assert_allclose(sums / weights, means, rtol=1e-5)


def test_structure_and_setting_must_agree(make_decoder):
    with pytest.raises(ValueError, match="'lora' needs a rank"):
        trainable_parts(make_decoder(), "lora")
    with pytest.raises(ValueError, match="'full' needs rank 0"):
        trainable_parts(make_decoder(rank=2), "full")


def test_schedule_warms_up_and_decays():
    rate = learning_rate(config(steps=100, warmup_ratio=0.1, final_lr_ratio=0.1))
    values = [float(rate(step)) for step in range(101)]
    rise = np.arange(1, 11) / 10 * 1e-2  # the first step has a tenth of the peak, not 0
    np.testing.assert_allclose(values[:10], rise, rtol=1e-6)
    assert np.all(np.diff(values[9:]) < 0) and values[100] == pytest.approx(1e-3)
    halfway = 9 + (100 - 9) / 2
    at_half = (values[int(halfway)] + values[int(halfway) + 1]) / 2
    assert at_half == pytest.approx((1e-2 + 1e-3) / 2, rel=1e-3)  # of a cosine


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 50])
@pytest.mark.parametrize("warmup", [0.0, 0.03, 0.5, 1.0])
def test_no_step_has_a_rate_of_0(schedule, steps, warmup):
    settings = config(steps=steps, schedule=schedule, warmup_ratio=warmup)
    rate = learning_rate(settings)
    values = np.array([float(rate(step)) for step in range(steps)])
    assert (values > 0).all() and values.max() == pytest.approx(1e-2)
    count = warmup_steps(settings)
    np.testing.assert_allclose(
        values[:count], np.arange(1, count + 1) / count * 1e-2, rtol=1e-5
    )


def test_norms_do_not_decay(make_decoder):
    marks = decayed(split(make_decoder())[2])
    assert marks["layers"]["q"]["kernel"].get_value() is True
    assert marks["norm"]["scale"].get_value() is False
    assert marks["layers"]["q_norm"]["scale"].get_value() is False
